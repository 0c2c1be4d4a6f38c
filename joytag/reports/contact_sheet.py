"""Contact sheets: images with the tags that a model predicted rightly, wrongly or missed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from joytag.data import fonts, images, preprocessing
from joytag.data.dataset import Dataset
from joytag.tagging.tagger import Tagger

RIGHT, WRONG, MISSED, INK, FRAME = "#1a7f37", "#cf222e", "#6e7781", "#1f2328", "#d8dee4"

# Sizes in units of SCALE pixels.
SCALE = 2
SIDE = 128  # of an image
CELL = 200  # width of an image's column
GAP = 14  # between cells
LINE = 17  # height of a line of text
LEGEND = 34  # height of the legend above the images
FONT = 12
SCORE = 36  # width of a score after a tag's name

MOST_TAGS = 9  # lines below an image


class Sample(NamedTuple):
    """A contact sheet, and the file of the image whose tags have the highest F1."""

    sheet: Image.Image
    best: Path


def draw_validation_sample(tagger: Tagger, dataset: Dataset, count: int, seed: int, threshold: float) -> Sample:
    """Draw up to `count` random validation images with the tagger's tags.

    Warns of damaged images, which are left out. Raises ValueError if the tagger and the dataset have different tags,
    and ImageError if no image can be used.
    """
    if list(tagger.tags) != list(dataset.tags.names):
        raise ValueError(
            f"{dataset.directory}: its {len(dataset.tags):,} tags are not the model's {len(tagger.tags):,}; "
            "use the dataset that the model was trained on"
        )
    posts = dataset.posts("validation")
    rows, paths, decoded, errors = [], [], [], []
    for row in np.random.default_rng(seed).choice(len(posts), min(count, len(posts)), replace=False):
        path = dataset.image_path(posts.hashes[row].tobytes())
        try:
            decoded.append(images.decode(path))
        except images.ImageError as error:
            errors.append(error)
            continue
        rows.append(row)
        paths.append(path)
    if errors and not decoded:
        raise errors[0]
    if errors:
        warnings.warn(f"{errors[0]} ({len(errors)} of {len(errors) + len(rows)} images left out)", stacklevel=2)
    labels = posts.labels(np.array(rows), len(dataset.tags))
    scores = np.stack([result.scores for result in tagger.stream(decoded)])
    predicted = scores > threshold
    f1 = 2 * (predicted & labels).sum(axis=1) / np.maximum(1, predicted.sum(axis=1) + labels.sum(axis=1))
    return Sample(contact_sheet(decoded, labels, scores, tagger.tags, threshold), paths[f1.argmax()])


def contact_sheet(
    decoded: Sequence[Image.Image],
    labels: NDArray[np.bool_],
    scores: NDArray[np.float32],
    names: Sequence[str],
    threshold: float,
    columns: int = 5,
) -> Image.Image:
    """Draw RGB images with their tags, best first: wrong ones are struck through, missed ones are in brackets.

    Takes labels and scores [images, tags], and the tags' names [tags].
    """
    columns = min(columns, max(2, len(decoded)))  # the legend needs the width of two
    lines = np.minimum(((scores > threshold) | labels).sum(axis=1), MOST_TAGS)
    heights = [SIDE + GAP + LINE * int(lines[i : i + columns].max()) for i in range(0, len(decoded), columns)]
    tops = np.cumsum([LEGEND + GAP, *(height + GAP for height in heights)])
    sheet = Sheet(columns * (CELL + GAP) + GAP, int(tops[-1]))
    x = sheet.write(GAP, 10, "right", RIGHT)
    x = sheet.write(x + 18, 10, "wrong", WRONG, struck=True)
    x = sheet.write(x + 18, 10, "(missed)", MISSED)
    sheet.write(x + 18, 10, f"tags scoring above {threshold:g}", INK)
    for i, image in enumerate(decoded):
        left, top = GAP + (i % columns) * (CELL + GAP), int(tops[i // columns])
        sheet.paste(image, left, top)
        _write_tags(sheet, left, top + SIDE + 4, labels[i], scores[i], names, threshold)
    return sheet.image


def _write_tags(
    sheet: Sheet,
    left: int,
    top: int,
    labels: NDArray[np.bool_],
    scores: NDArray[np.float32],
    names: Sequence[str],
    threshold: float,
) -> None:
    """Write the tags of one image below it, at most MOST_TAGS lines; labels and scores are [tags]."""
    shown = [tag for tag in np.argsort(-scores) if scores[tag] > threshold or labels[tag]]
    for line, tag in enumerate(shown[:MOST_TAGS]):
        name, y = fonts.shorten(names[tag], FONT * SCALE, (CELL - SCORE) * SCALE), top + line * LINE
        if line == MOST_TAGS - 1 and len(shown) > MOST_TAGS:
            sheet.write(left, y, f"... {len(shown) - line} more", MISSED)
        elif scores[tag] > threshold:
            right = bool(labels[tag])
            sheet.write(left, y, f"{name} {scores[tag]:.2f}", RIGHT if right else WRONG, struck=not right)
        else:
            sheet.write(left, y, f"({name})", MISSED)


class Sheet:
    """A white image to paste images and write text on; positions and sizes are in units of SCALE pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def paste(self, image: Image.Image, x: int, y: int) -> None:
        """Paste an image, on a white square of SIDE."""
        square = preprocessing.square(image, SIDE * SCALE, Image.Resampling.LANCZOS)
        self.image.paste(square, (x * SCALE, y * SCALE))
        self._draw.rectangle([n * SCALE for n in (x, y, x + SIDE, y + SIDE)], outline=FRAME)

    def write(self, x: int, y: int, text: str, colour: str, struck: bool = False) -> int:
        """Write a line of text and return the position where it ends."""
        font = fonts.load(text, FONT * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font)
        width = font.getlength(text)
        if struck:
            middle = (y + 9) * SCALE
            self._draw.line((x * SCALE, middle, x * SCALE + width, middle), fill=colour, width=SCALE)
        return x + int(width / SCALE)

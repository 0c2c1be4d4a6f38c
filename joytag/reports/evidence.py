"""Drawings of where an image speaks for its tags: the image, then once for each tag, with its evidence map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joytag.core import files
from joytag.data import fonts, images, preprocessing
from joytag.reports.contact_sheet import CELL, FONT, GAP, INK, LINE, MISSED, SCALE, SIDE, Sheet
from joytag.tagging.tagger import Tagger

FOR, AGAINST = (230, 97, 0), (0, 90, 181)  # orange and blue, which colour-blind readers tell apart
OPACITY = 0.8  # of the patch that weighs most
COLUMNS = 5
MOST = 24  # maps in a drawing


def write(tagger: Tagger, image: Path, tags: list[str], path: Path) -> dict[str, float]:
    """Draw an image's evidence for the best MOST of some tags into a PNG file; return their scores, best first.

    Raises ImageError, and what `Tagger.evidence` raises.
    """
    decoded = images.decode(image)
    maps = dict(zip(tags, tagger.evidence(np.asarray(decoded), tags), strict=True))
    maps = dict(sorted(maps.items(), key=lambda item: -item[1].sum())[:MOST])
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        sheet(decoded, maps).save(partial, "PNG")
    return {tag: score(evidence) for tag, evidence in maps.items()}


def score(evidence: NDArray[np.float32]) -> float:
    """Return the score that follows from a map: the sigmoid of its sum."""
    return float(1 / (1 + np.exp(-evidence.sum(dtype=np.float64))))


def sheet(image: Image.Image, maps: Mapping[str, NDArray[np.float32]]) -> Image.Image:
    """Draw an RGB image and its maps [rows, columns], by tag.

    Below each map stand the tag, its score, and its logit as the sum of what is for it and what is against it.
    """
    count = 1 + len(maps)
    columns, height = min(count, COLUMNS), SIDE + 2 * LINE + GAP
    drawn = Sheet(columns * (CELL + GAP) + GAP, -(-count // columns) * (height + GAP) + GAP)
    drawn.paste(image, GAP, GAP)
    for number, (tag, evidence) in enumerate(maps.items(), 1):
        left, top = GAP + number % columns * (CELL + GAP), GAP + number // columns * (height + GAP)
        drawn.paste(overlay(image, evidence), left, top)
        name = fonts.shorten(f"{score(evidence):.2f} {tag}", FONT * SCALE, CELL * SCALE)
        drawn.write(left, top + SIDE + 4, name, INK)
        logit, gain, loss = evidence.sum(), evidence.clip(min=0).sum(), -evidence.clip(max=0).sum()
        drawn.write(left, top + SIDE + 4 + LINE, f"logit {logit:+.2f} = {gain:.2f} - {loss:.2f}", MISSED)
    return drawn.image


def overlay(image: Image.Image, evidence: NDArray[np.float32]) -> Image.Image:
    """Lay a map [rows, columns] over the white square around an RGB image: orange is for the tag, blue against it.

    The patch that weighs most is coloured most; patches that do not count stay grey.
    """
    side = SIDE * SCALE
    grey = np.asarray(preprocessing.square(image, side, Image.Resampling.LANCZOS).convert("L"), dtype=np.float32)
    weight = evidence / max(np.abs(evidence).max(), np.finfo(np.float32).tiny)
    weight = np.asarray(Image.fromarray(weight).resize((side, side), Image.Resampling.NEAREST))[..., None]
    colour = np.where(weight > 0, np.array(FOR, dtype=np.float32), np.array(AGAINST, dtype=np.float32))
    share = OPACITY * np.abs(weight)
    return Image.fromarray(((1 - share) * grey[..., None] + share * colour).round().astype(np.uint8))

"""A sheet of images that look alike, so that a person can judge when they count as copies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep import dedup, image_table
from data_prep.config import BuildSettings
from data_prep.image_table import ImageTable
from joytag.core import settings
from joytag.data import dataset, images

CELL = 160  # pixels an image
TEXT = 34
COLUMNS = 4  # pairs


class Pair(NamedTuple):
    """Rows of two look-alikes of different files, the better copy first; how far their hashes and colours are apart."""

    better: int
    other: int
    bits: int
    difference: int


def draw(directory: Path, pairs: int) -> Path:
    """Draw `copies.png` into a dataset directory, and return its path.

    Each pair is the best of a group of look-alikes and another of it: red where they count as copies, blue where not.
    Raises ValueError for a directory that no build has worked in.
    """
    description = dataset.read_description(directory)
    config = settings.validate(BuildSettings, description.get("config", {}), f"{directory / 'dataset.json'}: config")
    places = [directory / "work" / source.name for source in config.sources]
    scans = [sorted((place / "scan").glob("*.parquet")) for place in places]
    if not any(scans):
        raise ValueError(f"{directory / 'work'}: no scan here; build the dataset again, with images")
    found = image_table.load([place / "images.parquet" for place in places], scans, [[] for _ in places])
    ranked = rank(found, scans, config.copies.radius, config.copies.max_difference)
    if not ranked:
        raise ValueError(f"{directory}: no two images look alike; there is nothing to show")
    shown = ranked[:pairs]
    names = [source.name for source in config.sources]
    width = min(COLUMNS, len(shown)) * (2 * CELL + 12)
    canvas = Image.new("RGB", (width, -(-len(shown) // COLUMNS) * (CELL + TEXT + 8)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for number, pair in enumerate(shown):
        x, y = number % COLUMNS * (2 * CELL + 12) + 4, number // COLUMNS * (CELL + TEXT + 8) + 4
        for row, left in ((pair.better, x), (pair.other, x + CELL + 2)):
            path = dataset.image_path(directory, found.sha256[row].tobytes(), description["extension"])
            canvas.paste(images.square(images.decode(path), CELL), (left, y))
            label = f"{names[found.source[row]]}/{found.post_id[row]}"
            pen.text((left, y + CELL + 2), label[:26], "black", font)
        copy = pair.bits <= config.copies.radius and pair.difference <= config.copies.max_difference
        verdict = f"{'copy' if copy else 'kept'}: {pair.bits} bits, {pair.difference} levels"
        pen.text((x, y + CELL + 16), verdict, "firebrick" if copy else "steelblue", font)
        pen.rectangle((x - 2, y - 2, x + 2 * CELL + 3, y + CELL + TEXT), outline="firebrick" if copy else "steelblue")
    path = directory / "copies.png"
    canvas.save(path)
    return path


def rank(found: ImageTable, scans: list[list[Path]], radius: int, max_difference: int) -> list[Pair]:
    """All pairs of a group's best image and another, those nearest to the limit of colours first."""
    usable = np.flatnonzero(found.usable)
    phash = found.phash[usable]
    first, group = dedup.same_files(found.sha256[usable]), dedup.look_alikes(phash, radius)
    rows = dedup.candidates(first, phash, group)
    thumbnails = image_table.thumbnails(scans, usable[rows])
    best = np.lexsort((rows, -found.area[usable[rows]], group[rows]))
    starts = np.flatnonzero(np.diff(group[rows[best]], prepend=-1))
    ranked = []
    for members in np.split(best, starts[1:]) if len(rows) else []:
        levels = dedup.difference(thumbnails[members[1:]], thumbnails[members[0]])
        bits = np.bitwise_count(phash[rows[members[1:]]] ^ phash[rows[members[0]]])
        for member, level, bit in zip(members[1:], levels, bits, strict=True):
            ranked.append(Pair(usable[rows[members[0]]], usable[rows[member]], int(bit), int(level)))
    return sorted(ranked, key=lambda pair: (abs(pair.difference - max_difference - 0.5), pair.better, pair.other))

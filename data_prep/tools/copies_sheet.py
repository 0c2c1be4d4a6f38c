"""Draw pairs of look-alikes, so that a person can judge which of them should count as copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data_prep import dedup, image_table
from data_prep.config import BuildSettings, Copies
from data_prep.image_table import ImageTable, SourceFiles
from joytag.core import settings
from joytag.core.files import ABANDONED, remove_partials, replacing
from joytag.data import dataset, fonts, images, preprocessing

CELL = 160  # side of an image, pixels
TEXT = 48  # height of the text below, pixels
LINE = 13
FONT = 11
COLUMNS = 4  # pairs in a row


class Pair(NamedTuple):
    """Two look-alikes: the row of the better copy, the other's, and their distance in pHash bits and colour levels."""

    better: int
    other: int
    bits: int
    difference: int

    def are_copies(self, copies: Copies) -> bool:
        """Return whether the settings count the two as copies."""
        return self.bits <= copies.radius and self.difference <= copies.max_difference


def draw(directory: Path, pairs: int) -> Path:
    """Draw `copies.png` into a dataset directory, and return its path.

    Each pair is the best image of a group of look-alikes and another of the group, with their paths: red if
    they count as copies, blue if not. Raises ValueError for a dataset that was not built with images.
    """
    description = dataset.read_description(directory)
    config = settings.validate(BuildSettings, description.get("config", {}), f"{directory / 'dataset.json'}: config")
    names = [source.name for source in config.sources]
    works = [image_table.work_directory(directory, name) for name in names]
    files = [SourceFiles([], work.listing, work.scans()) for work in works]
    if not any(its.scan for its in files):
        raise ValueError(f"{directory / 'work'}: no scan here; build the dataset again, with images")
    table = image_table.load(files)
    shown = rank(table, files, config.copies)[:pairs]
    if not shown:
        raise ValueError(f"{directory}: no two images look alike; there is nothing to show")
    width = min(COLUMNS, len(shown)) * (2 * CELL + 12)
    paths = pa.concat_tables([pq.read_table(its.listing, columns=["path"]) for its in files])["path"]
    canvas = Image.new("RGB", (width, -(-len(shown) // COLUMNS) * (CELL + TEXT + 8)), "white")
    pen = ImageDraw.Draw(canvas)
    for number, pair in enumerate(shown):
        x, y = number % COLUMNS * (2 * CELL + 12) + 4, number // COLUMNS * (CELL + TEXT + 8) + 4
        for row, left in ((pair.better, x), (pair.other, x + CELL + 2)):
            path = dataset.image_path(directory, table.sha256[row].tobytes(), description["extension"])
            canvas.paste(preprocessing.square(images.decode(path), CELL), (left, y))
            name = f"{names[table.source[row]]}/" * (len(names) > 1) + str(paths[int(row)])
            for line, text in enumerate(fonts.wrap(name, FONT, CELL, 2)):
                pen.text((left, y + CELL + 2 + line * LINE), text, "black", fonts.load(text, FONT))
        verdict, colour = ("copy", "firebrick") if pair.are_copies(config.copies) else ("kept", "steelblue")
        text = f"{verdict}: {pair.bits} bits, {pair.difference} levels"
        pen.text((x, y + CELL + 3 + 2 * LINE), text, colour, fonts.load(text, FONT))
        pen.rectangle((x - 2, y - 2, x + 2 * CELL + 3, y + CELL + TEXT), outline=colour)
    path = directory / "copies.png"
    remove_partials(directory, ABANDONED)
    with replacing(path) as partial:
        canvas.save(partial, "PNG")
    return path


def rank(table: ImageTable, files: Sequence[SourceFiles], copies: Copies) -> list[Pair]:
    """Pair the best image of each group with each other one; pairs closest to the limit of colours come first."""
    usable = np.flatnonzero(table.usable)
    phash = table.phash[usable]
    first, group = dedup.same_files(table.sha256[usable]), dedup.look_alikes(phash, copies.radius)
    rows = dedup.candidates(first, phash, group)
    thumbnails = image_table.thumbnails(files, usable[rows])
    pairs = []
    for members in dedup.best_first(group[rows], table.area[usable[rows]]):
        levels = dedup.difference(thumbnails[members[1:]], thumbnails[members[0]])
        bits = np.bitwise_count(phash[rows[members[1:]]] ^ phash[rows[members[0]]])
        for member, level, bit in zip(members[1:], levels, bits, strict=True):
            pairs.append(Pair(usable[rows[members[0]]], usable[rows[member]], int(bit), int(level)))
    return sorted(pairs, key=lambda pair: (abs(pair.difference - copies.max_difference - 0.5), pair.better, pair.other))

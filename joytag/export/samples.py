"""Images on which an export is compared with its release: of a dataset, or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joytag.core.terminal import printable
from joytag.data.dataset import Dataset
from joytag.tagging.tagger import prepare

MOST = 256  # images of a dataset
DRAWN = 24
SIZES = ((1, 1), (3, 400), (400, 3), (640, 480), (96, 128), (200, 200))  # tiny, tall, wide and ordinary


class Samples(NamedTuple):
    """Images with their origin; `squares` are a model's inputs, uint8 [B, 3, S, S]."""

    squares: NDArray[np.uint8]
    origin: str


def drawn(size: int) -> Samples:
    """Draw images of coloured blots, some of them transparent, tiny or tall, for inputs of `size` pixels."""
    return Samples(np.stack([prepare(image, size) for image in _draw()]), "drawn blots")


def _draw() -> Iterator[Image.Image]:
    rng = np.random.default_rng(0)
    for number in range(DRAWN):
        channels = 4 if number % 3 == 0 else 3
        blots = Image.fromarray(rng.integers(0, 256, (8, 8, channels), dtype=np.uint8))
        yield blots.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


def validation(dataset: Dataset, size: int) -> Samples:
    """Take images of a dataset's validation split, at regular intervals of its rows, for inputs of `size` pixels.

    Raises DatasetError and ImageError.
    """
    posts = dataset.posts("validation")
    rows = np.unique(np.linspace(0, len(posts) - 1, MOST).astype(int))
    paths: list[Path] = [dataset.image_path(posts.hashes[row].tobytes()) for row in rows]
    origin = f"validation images of {printable(dataset.directory.resolve().name)}"  # where it lies is the owner's alone
    return Samples(np.stack([prepare(path, size) for path in paths]), origin)

"""Image files to load in benchmarks, as a dataset with random tags."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from joytag.data import dataset

TAGS = 5813  # of the recipe's vocabulary
TAGS_PER_IMAGE = 32


@dataclass(frozen=True)
class StoredImages(dataset.Dataset):
    """A dataset of image files in any directory, with random tags."""

    files: Sequence[Path]

    @classmethod
    def of(cls, files: Sequence[Path], n_tags: int = TAGS) -> StoredImages:
        """Create the dataset of these files."""
        counts = np.full(n_tags, max(1, TAGS_PER_IMAGE * len(files) // n_tags))
        names = [f"tag_{i}" for i in range(n_tags)]
        tags = dataset.TagTable(names, counts.astype(np.int8), counts, counts)
        return cls(Path(), ["files"], "jpg", tags, {}, [True], files)

    def posts(self, split: str) -> dataset.Posts:
        """Return the files as posts, each with 32 random tags and its number as hash; all splits are the same."""
        rows = np.arange(len(self.files))
        rng = np.random.default_rng(0)
        tags = rng.integers(0, len(self.tags), TAGS_PER_IMAGE * len(rows)).astype(np.int16)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        hashes[:, :8] = rows[:, None].view(np.uint8)
        offsets = TAGS_PER_IMAGE * np.arange(len(rows) + 1)
        return dataset.Posts(rows, offsets, tags, hashes, np.zeros_like(rows))

    def image_path(self, sha256: bytes) -> Path:
        """Return the file whose number is the hash."""
        return self.files[int.from_bytes(sha256[:8], "little")]


def encode(copies: Sequence[Image.Image]) -> dict[str, list[bytes]]:
    """Encode images as two stores hold them: JPEG of quality 90, and WebP as in the original dataset.

    Of the WebP files 45 % have quality 90, 45 % quality 100, and 10 % are lossless.
    """
    kinds = [dict(quality=90)] * 9 + [dict(quality=100)] * 9 + [dict(lossless=True)] * 2
    files: dict[str, list[bytes]] = {"JPEG": [], "WebP": []}
    for number, copy in enumerate(copies):
        for kind, options in (("JPEG", dict(quality=90)), ("WebP", kinds[7 * number % 20])):
            buffer = io.BytesIO()
            copy.save(buffer, kind, **options)
            files[kind].append(buffer.getvalue())
    return files


def write(folder: Path, kind: str, files: Sequence[bytes]) -> list[Path]:
    """Write encoded images into a folder, and return their paths."""
    paths = [folder / f"{number}.{kind.lower()}" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths

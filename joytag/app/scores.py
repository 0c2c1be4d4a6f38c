"""The scores of one model for many images: files that only grow, read where they are needed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEY = 32  # bytes of a sha256


class Scores:
    """Scores float16 [rows, N] in NAME.f16, and the images' sha256 in NAME.keys, row by row.

    A process may be killed while it writes: a row counts once both are whole. Threads may share an object.
    """

    def __init__(self, path: Path, n_tags: int) -> None:
        self._n, self._lock = n_tags, threading.Lock()
        self._files = [path.with_suffix(suffix).open("ab+") for suffix in (".f16", ".keys")]
        sizes = [2 * n_tags, KEY]
        count = min(file.seek(0, 2) // size for file, size in zip(self._files, sizes, strict=True))
        for file, size in zip(self._files, sizes, strict=True):
            file.truncate(count * size)
        self._files[1].seek(0)
        keys = self._files[1].read()
        self._rows = {keys[row * KEY : (row + 1) * KEY].hex(): row for row in range(count)}

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._rows

    def add(self, sha256: str, scores: NDArray[np.float32]) -> None:
        """Append an image's scores, float32 [N], unless they are there. Raises OSError."""
        with self._lock:
            if sha256 not in self._rows:
                for file, content in zip(
                    self._files, (scores.astype("<f2").tobytes(), bytes.fromhex(sha256)), strict=True
                ):
                    file.write(content)
                    file.flush()
                self._rows[sha256] = len(self._rows)

    def rows(self, images: list[str]) -> NDArray[np.int64]:
        """Return the rows of images, int64; -1 for those without scores."""
        return np.array([self._rows.get(image, -1) for image in images], dtype=np.int64)

    def table(self) -> NDArray[np.float16]:
        """Return all scores, [rows, N]: a view of the file, of which only what is used is read."""
        count = len(self._rows)
        if not count:
            return np.zeros((0, self._n), dtype="<f2")
        return np.memmap(self._files[0].name, dtype="<f2", mode="r", shape=(count, self._n))

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

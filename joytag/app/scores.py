"""The scores of one model for many images: a file that only grows, read where it is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Scores:
    """A file of rows: an image's sha256, 32 bytes, and its scores, float16 [N].

    A process may be killed while it writes: a row counts once it is whole. Threads may share an object.
    """

    def __init__(self, path: Path, n_tags: int) -> None:
        self._row, self._lock = np.dtype([("sha256", "V32"), ("scores", "<f2", (n_tags,))]), threading.Lock()
        self._file = path.open("ab+")
        self._count = self._file.seek(0, 2) // self._row.itemsize  # more than different images in a damaged file
        self._file.truncate(self._count * self._row.itemsize)
        self._rows = {key.tobytes().hex(): row for row, key in enumerate(self._read()["sha256"])}

    def _read(self) -> NDArray[Any]:
        if not self._count:
            return np.empty(0, self._row)
        return np.memmap(self._file.name, self._row, mode="r", shape=(self._count,))

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._rows

    def add(self, sha256: str, scores: NDArray[np.float32]) -> None:
        """Append an image's scores, float32 [N], unless they are there. Raises OSError."""
        with self._lock:
            if sha256 not in self._rows:
                self._file.write(bytes.fromhex(sha256) + scores.astype("<f2").tobytes())
                self._file.flush()
                self._count += 1
                self._rows[sha256] = self._count - 1

    def rows(self, images: list[str]) -> NDArray[np.int64]:
        """Return the rows of images, int64; -1 for those without scores."""
        return np.array([self._rows.get(image, -1) for image in images], dtype=np.int64)

    def table(self) -> NDArray[np.float16]:
        """Return all scores, [rows, N]: a view of the file, of which only what is used is read."""
        return self._read()["scores"]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

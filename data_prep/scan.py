"""Decode each picture once: verdict, sha256, pHash, colour thumbnail, and the resized training copy."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from joytag import image, records

THUMBNAIL = 16  # pixels a side


@dataclass(frozen=True)
class Scan:
    """What one decode found. `verdict` is `ok` or the reason why the picture cannot be used.

    `thumbnail` is uint8 [16, 16, 3] of the whole picture as a white square; unless the verdict is
    `ok`, every field after it holds nothing of use.
    """

    verdict: str
    sha256: bytes = b""
    width: int = 0
    height: int = 0
    phash: int = 0
    thumbnail: np.ndarray | None = None


def scan_all(jobs: Iterable[tuple[str, str | None]], directory: Path, longest: int) -> Iterator[Scan]:
    """Scan (path, expected md5 or None) pairs on all cores; results come in order."""
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(scan, directory=directory, longest=longest), jobs, chunksize=32)


def scan(job: tuple[str, str | None], directory: Path, longest: int) -> Scan:
    """Scan one picture and store its copy, at most `longest` pixels a side, below `directory`."""
    path, md5 = job
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Scan(f"cannot be read ({error.strerror})")
    if md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        return Scan("md5 differs from the metadata")
    try:
        picture = image.decode(data, still=True, opaque=True)
    except image.ImageError as error:
        return Scan(str(error))
    sha256 = hashlib.sha256(data).digest()
    _store(image.fit(picture, longest), records.image_path(directory, sha256, "jpg"))
    return Scan(
        "ok", sha256, picture.width, picture.height, phash(picture), np.asarray(image.square(picture, THUMBNAIL))
    )


def phash(picture: Image.Image) -> int:
    """imagehash's 64-bit pHash as an integer (its own hash() collides)."""
    return int(str(imagehash.phash(picture)), 16)


def _store(picture: Image.Image, path: Path) -> None:
    """Write a JPEG (quality 95, full chroma) whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial_file.write_bytes(buffer.getvalue())
    partial_file.replace(path)

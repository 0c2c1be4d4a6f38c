"""Decode each image once: verdict, sha256, pHash, colour thumbnail, and the resized training copy."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fft
from PIL import Image

from joytag.data import dataset, images

THUMBNAIL = 16  # pixels a side
VERSION = 1  # of what is found; another one scans again
MIN_SIDE = 16  # pixels; less is no image to learn from
SHARD = 512  # images
MAX_FILE = 1 << 30  # bytes
UNFINISHED = "unfinished"  # in work/: what is being written; what a killed process leaves, the next build removes

Format = Literal["jpeg", "webp", "mixed"]
FORMATS: tuple[Format, ...] = get_args(Format)

SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),  # why the image can't be used; null if it can, and only then the rest
        pa.field("detail", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL * 3)),
    ]
)

# How far the median of imagehash's 64 coefficients may lie from its neighbours for a JPEG decoded at a
# fraction of its size to have the very same hash. See `reduced_phash`.
SAFE_GAP = 48.0


class Scan(NamedTuple):
    """What one decode found: SCHEMA's columns. `thumbnail` is uint8 [16, 16, 3], of the whole image."""

    reason: str | None = None
    detail: str | None = None
    sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    phash: int | None = None
    thumbnail: bytes | None = None


class Store(NamedTuple):
    """Where and how the training copies are stored: longest side in pixels, format."""

    directory: Path
    longest: int
    format: Format


class Part(NamedTuple):
    """A row group of a table of images (columns `path` and `md5`), whose paths are relative to `folder`."""

    table: Path
    group: int
    folder: Path
    store: Store


def scan_part(part: Part) -> pa.Table:
    """Scan the images of a part: a table of SCHEMA, row by row."""
    rows = pq.ParquetFile(part.table).read_row_group(part.group, ["path", "md5"]).to_pylist()
    scans = [scan(part.folder / row["path"], row["md5"], part.store) for row in rows]
    columns = zip(*scans, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)


def scan(path: Path, md5: str | None, store: Store) -> Scan:
    """Scan one image and store its copy, unless it is missing, damaged, moving, transparent, or of another md5."""
    try:
        if path.stat().st_size > MAX_FILE:
            return Scan("too large", f"more than {MAX_FILE} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        return Scan("missing")
    except OSError as error:
        return Scan("cannot be read", error.strerror)
    if md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        return Scan("md5 differs from the metadata")
    try:
        reduced = images.decode_reduced(data, store.longest, still=True, opaque=True)
        if min(reduced.size) < MIN_SIDE:
            return Scan("too small", f"{reduced.size[0]}x{reduced.size[1]}")
        hashed = reduced_phash(reduced)
        if hashed is None:
            hashed = phash(images.decode(data))
    except images.ImageError as error:
        return Scan(error.kind, str(error))
    sha256 = hashlib.sha256(data).digest()
    copy = reduced.fit(store.longest)
    _write(encode(copy, store.format, sha256), store, sha256)
    # Stretched, so that what a scaled copy's rounded sides shift does not show at the rim.
    thumbnail = np.asarray(copy.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)).tobytes()
    return Scan(None, None, sha256, *reduced.size, hashed, thumbnail)


def phash(image: Image.Image) -> int:
    """imagehash's 64-bit pHash as an integer (its own hash() collides)."""
    return int(str(imagehash.phash(image)), 16)


def reduced_phash(reduced: images.Reduced) -> int | None:
    """The pHash of an image decoded at a fraction of its size, or None if it might differ from the whole image's.

    imagehash compares 64 coefficients of a 32x32 image's cosine transform with their median. Decoding at
    a fraction changes some pixels of the 32x32 by a level, and a coefficient by rarely more than 50. So the
    hash is the same where the two coefficients around the median are at least SAFE_GAP apart.
    """
    if reduced.is_whole:
        return phash(reduced.image)
    grey = reduced.image.convert("L").resize((32, 32), Image.Resampling.LANCZOS, box=reduced.box)
    coefficients = scipy.fft.dct(scipy.fft.dct(np.asarray(grey, dtype=np.float64), axis=0), axis=1)[:8, :8].ravel()
    below, above = np.sort(coefficients)[31:33]
    if above - below < SAFE_GAP:
        return None
    return int.from_bytes(np.packbits(coefficients >= above).tobytes(), "big")


def extension(format: Format) -> str:
    """The extension of stored copies."""
    return "jpg" if format == "jpeg" else "webp"


def encode(image: Image.Image, format: Format, sha256: bytes) -> bytes:
    """A stored copy's bytes.

    `jpeg` is quality 95 with full chroma, `webp` quality 90; `mixed`, the original build's, is WebP of quality 90 for
    45 % of images, quality 100 for 45 % and lossless for 10 %, as drawn from the original file's hash.
    """
    buffer = io.BytesIO()
    draw = int.from_bytes(sha256[:4], "big") / 2**32
    if format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    elif format == "mixed" and draw >= 0.9:
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "WEBP", quality=100 if format == "mixed" and draw >= 0.45 else 90)
    return buffer.getvalue()


def _write(data: bytes, store: Store, sha256: bytes) -> None:
    """Write a copy whole or not at all."""
    path = dataset.image_path(store.directory, sha256, extension(store.format))
    unfinished = store.directory / "work" / UNFINISHED / f"{path.name}.{os.getpid()}"
    for file in (path, unfinished):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise

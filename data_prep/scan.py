"""Decode each image once: verdict, sha256, pHash, colour thumbnail and resized training copy."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fft
from PIL import Image

from joytag.core.files import naming, rename
from joytag.data import dataset, images

THUMBNAIL = 16  # pixels a side
VERSION = 3  # increase it when the results of a scan change, so that images are scanned again
MIN_SIDE = 16  # pixels; smaller images are refused
SHARD = 512  # images
MAX_FILE = 1 << 30  # bytes
UNFINISHED = "unfinished"  # in work/: files being written; the next build removes those of a killed process

Format = Literal["jpeg", "webp", "mixed"]
FORMATS: tuple[Format, ...] = get_args(Format)

SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),  # why the image is refused; null if it is usable
        pa.field("detail", pa.string()),
        pa.field("sha256", pa.binary(32)),  # this and the next columns are null for refused images
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary(THUMBNAIL * THUMBNAIL * 3)),
        pa.field("size", pa.int64()),  # of the file, bytes; this and the next column are null if it could not be read
        pa.field("mtime", pa.int64()),  # nanoseconds since 1970
    ]
)

# The gap around the median of imagehash's 64 coefficients that ensures that a JPEG decoded at a fraction of its size
# has the same hash; see `reduced_phash`.
SAFE_GAP = 48.0


class Scan(NamedTuple):
    """A row of SCHEMA; `thumbnail` is uint8 [16, 16, 3] and shows the whole image."""

    reason: str | None = None
    detail: str | None = None
    sha256: bytes | None = None
    width: int | None = None
    height: int | None = None
    phash: int | None = None
    thumbnail: bytes | None = None
    size: int | None = None
    mtime: int | None = None


class Store(NamedTuple):
    """The dataset directory, the longest side (pixels) and the format of the training copies.

    Transparent images are put on white, or refused if the copies must be `opaque`.
    """

    directory: Path
    longest: int
    format: Format
    opaque: bool = False


class Part(NamedTuple):
    """A row group of a table with columns `path`, relative to `folder`, and `md5`."""

    table: Path
    group: int
    folder: Path
    store: Store


def scan_part(part: Part) -> pa.Table:
    """Scan the images of a part; return a table of SCHEMA with one row per image."""
    rows = pq.ParquetFile(part.table).read_row_group(part.group, ["path", "md5"]).to_pylist()
    scans = [scan(part.folder / row["path"], row["md5"], part.store) for row in rows]
    columns = zip(*scans, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)


def is_outdated(file: Path, read_paths: Callable[[], pa.ChunkedArray], folder: Path, are_final: bool) -> bool:
    """Return whether images of a scan's file have changed since, or appeared: their size and time differ.

    `read_paths` reads their paths below `folder`. Of images that are final, which are never replaced once they are
    good, only refused ones are compared.
    """
    try:
        scans = pq.read_table(file, columns=["reason", "size", "mtime"])
    except (OSError, pa.ArrowException):  # damaged, or of another version: `shards.run` replaces it
        return False
    rows = np.arange(len(scans))
    if are_final:
        rows = np.flatnonzero(scans["reason"].is_valid())
        if not len(rows):
            return False
    paths = read_paths()
    if len(paths) != len(scans):
        return True
    columns = (column.take(rows).to_pylist() for column in (paths, scans["size"], scans["mtime"]))
    return any((size, mtime) != _stamp(folder / path) for path, size, mtime in zip(*columns, strict=True))


def _stamp(path: Path) -> tuple[int | None, int | None]:
    """Return a file's size and modification time, which identify its content; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


def scan(path: Path, md5: str | None, store: Store) -> Scan:
    """Scan one image and store its copy; missing, damaged and animated images are refused, perhaps transparent ones."""
    size, mtime = _stamp(path)  # before reading: a file that is replaced meanwhile is outdated
    if size is not None and size > MAX_FILE:
        return Scan("too large", f"more than {MAX_FILE} bytes", size=size, mtime=mtime)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Scan("missing")
    except OSError as error:
        return Scan("cannot be read", error.strerror)
    return _scan(data, md5, store)._replace(size=size, mtime=mtime)


def _scan(data: bytes, md5: str | None, store: Store) -> Scan:
    """Scan the bytes of an image and store its copy."""
    if md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        return Scan("md5 differs from the metadata")
    try:
        reduced = images.decode_reduced(data, store.longest, still=True, opaque=store.opaque)
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
    # Stretched to a square, so that the rounded sides of scaled copies cannot shift the image's edges.
    thumbnail = np.asarray(copy.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)).tobytes()
    return Scan(None, None, sha256, *reduced.size, hashed, thumbnail)


def phash(image: Image.Image) -> int:
    """Return imagehash's 64-bit pHash as an integer; hash() of imagehash's own type has collisions."""
    return int(str(imagehash.phash(image)), 16)


def reduced_phash(reduced: images.Reduced) -> int | None:
    """Return the pHash of an image decoded at a fraction of its size, or None if it may differ from the whole image's.

    imagehash compares 64 coefficients of a 32x32 image's cosine transform with their median. Decoding at a fraction
    changes some of the 32x32 pixels by one level, and a coefficient rarely by more than 50. The hash is therefore the
    same if the two coefficients around the median are at least SAFE_GAP apart.
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
    """Return the extension of stored copies."""
    return "jpg" if format == "jpeg" else "webp"


def encode(image: Image.Image, format: Format, sha256: bytes) -> bytes:
    """Encode a copy to be stored.

    `jpeg` has quality 95 and full chroma resolution, `webp` quality 90. `mixed` is the original build's: WebP of
    quality 90 for 45 % of images, quality 100 for 45 %, and lossless for 10 %, drawn from the original file's hash.
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
    """Write a copy atomically."""
    path = dataset.image_path(store.directory, sha256, extension(store.format))
    unfinished = store.directory / "work" / UNFINISHED / f"{path.name}.{os.getpid()}"
    for file in (path, unfinished):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path, unfinished):
            unfinished.write_bytes(data)
            rename(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise

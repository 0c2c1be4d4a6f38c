"""A table of all images: what the sources list, what the scan found, and the raw tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep import scan
from data_prep.tags import Chunk, Rows
from joytag.core.errors import system_error
from joytag.data import tables

LISTING = pa.schema(
    [
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("md5", pa.string()),
        pa.field("shard", pa.int32()),  # the number of the file of posts with the tags, and the row in it
        pa.field("row", pa.int32()),
    ]
)
FILES_AT_ONCE = 16  # files of posts whose tags are numbered together
MEMORY = "1GB"  # limit of DuckDB, which then writes to disk


class WorkDirectory(NamedTuple):
    """The paths below `work/SOURCE/`: a folder of posts, the listing, and a folder of scans."""

    posts: Path
    listing: Path
    scan: Path

    def scans(self) -> list[Path]:
        """Return the existing files of the scan, in order."""
        return sorted(self.scan.glob("*.parquet"))


def work_directory(output: Path, source: str) -> WorkDirectory:
    """Return the paths that a build of a dataset directory uses for one source."""
    work = output / "work" / source
    return WorkDirectory(work / "posts", work / "images.parquet", work / "scan")


class SourceFiles(NamedTuple):
    """The files that the first stages write for one source.

    `posts` are tables of `posts.SCHEMA`; `listing` is a table of LISTING; `scan` are tables of `scan.SCHEMA`, together
    row by row those of the listing, or empty if images are not scanned.
    """

    posts: list[Path]
    listing: Path
    scan: list[Path]


def write_listing(files: Sequence[Path], path: Path) -> None:
    """List the usable posts in files of `posts.SCHEMA`: a table of LISTING by id, one row group per shard of the scan.

    If several posts have the same id, the first by md5, path and position is listed. Raises OSError.
    """
    spill = path.parent / "spill"
    try:
        _write_listing(files, path, spill)
    except duckdb.IOException as error:
        raise system_error(error, spill) from None


def _write_listing(files: Sequence[Path], path: Path, spill: Path) -> None:
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false")
        db.execute("SET temp_directory = ?", [str(spill)])
        names = [str(file) for file in files]
        # A post's shard is the number of its file, which is joined by the file's name.
        numbered = pa.table({"name": names, "shard": pa.array(range(len(names)), pa.int32())})
        rows = db.sql(
            f"""
            SELECT post_id, path, md5, shard, row::INTEGER AS row
            FROM (SELECT post_id, path, md5, filename AS name, file_row_number AS row
                  FROM read_parquet([{", ".join(map(_quoted, names))}], filename = true, file_row_number = true)
                  WHERE reason IS NULL) JOIN numbered USING (name)
            QUALIFY row_number() OVER (PARTITION BY post_id ORDER BY md5, path, shard, row) = 1
            ORDER BY post_id
            """
        )
        tables.write_table(_regrouped(rows.to_arrow_reader(1 << 16), scan.SHARD), LISTING, path)
        del numbered  # DuckDB looks the table up by the name of this variable


def _quoted(path: str) -> str:
    """Quote a path for SQL, so that none of its characters is a wildcard."""
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in path)
    return "'" + escaped.replace("'", "''") + "'"


def _regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `size` rows, the last one possibly shorter."""
    waiting = LISTING.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(LISTING)])
        complete = len(waiting) // size * size
        for start in range(0, complete, size):
            yield waiting.slice(start, size)
        waiting = waiting.slice(complete)
    if len(waiting):
        yield waiting


@dataclass(frozen=True)
class ImageTable:
    """All images, by source and id; row i of every array is image i.

    `source` is a source's number; `shard` and `row` are the position of the tags, where `shard` counts the files of
    posts of all sources. `usable` is the verdict of the scan. `sha256` is [rows, 32], `area` that of the original in
    pixels; `sha256`, `phash` and `area` are 0 for unusable images.
    """

    source: NDArray[np.int16]
    post_id: NDArray[np.int64]
    shard: NDArray[np.int64]
    row: NDArray[np.int32]
    usable: NDArray[np.bool_]
    sha256: NDArray[np.uint8]
    phash: NDArray[np.uint64]
    area: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)


def load(files: Sequence[SourceFiles]) -> ImageTable:
    """Read the images that the sources list, and what the scans found; without scans, all images are usable."""
    listings = [pq.read_table(its.listing, columns=["post_id", "shard", "row"]) for its in files]
    source = np.repeat(np.arange(len(files), dtype=np.int16), [len(table) for table in listings])
    shards_before = np.cumsum([0, *(len(its.posts) for its in files[:-1])])
    shard = np.concatenate(
        [table["shard"].to_numpy() + before for table, before in zip(listings, shards_before, strict=True)]
    )
    post_id, row = (np.concatenate([table[name].to_numpy() for table in listings]) for name in ("post_id", "row"))
    scans = [_read_scan(path) for its in files for path in its.scan]
    if not scans:
        zeros = np.zeros(len(source), dtype=np.int64)
        sha256 = np.zeros((len(source), 32), dtype=np.uint8)
        return ImageTable(source, post_id, shard, row, zeros == 0, sha256, zeros.astype(np.uint64), zeros)
    return ImageTable(source, post_id, shard, row, *(np.concatenate(column) for column in zip(*scans, strict=True)))


def _read_scan(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read `usable`, `sha256`, `phash` and `area` of ImageTable from a table of `scan.SCHEMA`."""
    table = pq.read_table(path, columns=["reason", "sha256", "width", "height", "phash"])
    usable = table["reason"].is_null().to_numpy(zero_copy_only=False)
    sha256 = np.zeros((len(table), 32), dtype=np.uint8)
    sha256[usable] = _bytes(table["sha256"], 32)
    width, height, phash = (table[name].fill_null(0).to_numpy() for name in ("width", "height", "phash"))
    return usable, sha256, phash, width.astype(np.int64) * height


def _bytes(column: pa.ChunkedArray, length: int) -> np.ndarray:
    """Return the values of a binary column that are not null, uint8 [values, length]."""
    return np.frombuffer(b"".join(column.drop_null().to_pylist()), dtype=np.uint8).reshape(-1, length)


def thumbnails(files: Sequence[SourceFiles], rows: np.ndarray) -> np.ndarray:
    """Read the colour thumbnails of usable images, whose rows ascend: uint8 [rows, side, side, 3]."""
    found = np.empty((len(rows), scan.THUMBNAIL, scan.THUMBNAIL, 3), dtype=np.uint8)
    scans = [path for its in files for path in its.scan]
    bounds = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in scans)])
    for path, (start, stop) in zip(scans, pairwise(bounds), strict=True):
        low, high = np.searchsorted(rows, [start, stop])
        if high > low:
            column = pq.read_table(path, columns=["thumbnail"])["thumbnail"].take(rows[low:high] - start)
            found[low:high] = _bytes(column, found[0].size).reshape(-1, *found.shape[1:])
    return found


def raw_negatives(files: Sequence[SourceFiles], images: ImageTable) -> tuple[list[Chunk], list[str]]:
    """Read the rejected tags as the sources have them, of the images that have some; return the tags' names, too."""
    chunks, names = raw_tags(files, images, "negatives")
    has_some = [np.flatnonzero(chunk.tags.counts) for chunk in chunks]
    pairs = zip(chunks, has_some, strict=True)
    return [Chunk(chunk.rows[kept], chunk.tags.take(kept)) for chunk, kept in pairs if len(kept)], names


def raw_tags(files: Sequence[SourceFiles], images: ImageTable, column: str = "tags") -> tuple[list[Chunk], list[str]]:
    """Read the tags as the sources have them, one chunk per file of posts; return the tags' names, too."""
    names = pa.array([], pa.string())
    order = np.lexsort((images.row, images.shard))
    posts = [path for its in files for path in its.posts]
    bounds = np.searchsorted(images.shard[order], np.arange(len(posts) + 1))
    chunks = []
    for first in range(0, len(posts), FILES_AT_ONCE):
        paths = posts[first : first + FILES_AT_ONCE]
        columns = [pq.read_table(path, columns=[column])[column].combine_chunks() for path in paths]
        values = pa.chunked_array([lists.values for lists in columns]).unify_dictionaries()
        own_names = values.chunk(0).dictionary if values.num_chunks else names[:0]
        known = pc.index_in(own_names, names)
        new = own_names.filter(known.is_null())
        numbers = known.fill_null(-1).to_numpy().copy()
        numbers[numbers < 0] = np.arange(len(names), len(names) + len(new))
        names = pa.concat_arrays([names, new])
        for shard, (lists, chunk) in enumerate(zip(columns, values.chunks, strict=True), first):
            rows = order[bounds[shard] : bounds[shard + 1]]
            tags = Rows(lists.offsets.to_numpy().astype(np.int64), numbers[chunk.indices.to_numpy()])
            chunks.append(Chunk(rows, tags.take(images.row[rows])))
    pa.default_memory_pool().release_unused()
    return chunks, names.to_pylist()

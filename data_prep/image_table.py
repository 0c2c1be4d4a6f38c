"""The images of all sources, a row each: what the sources list, what the scan found, and the tags people gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import scan
from data_prep.tags import Rows
from joytag.data import tables

LISTING = pa.schema(
    [
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("md5", pa.string()),
        pa.field("shard", pa.int32()),  # where the post's tags are: the number of a file of posts, and the row in it
        pa.field("row", pa.int32()),
    ]
)
TOGETHER = 16  # files of posts whose tags are looked up at once
MEMORY = "1GB"  # of DuckDB, which spills to disk beyond


def write_listing(files: Sequence[Path], path: Path) -> None:
    """Write the good posts in files of `posts.SCHEMA` as a table of LISTING by id, a row group a shard of the scan.

    Of posts with one id the first by md5, path and place stays.
    """
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false")
        db.execute("SET temp_directory = ?", [str(path.parent / "spill")])
        names = [str(file) for file in files]
        # By number, since a folder's name may hold what DuckDB takes for a pattern.
        found = pa.table({"name": names, "shard": pa.array(range(len(names)), pa.int32())})
        rows = db.sql(
            f"""
            SELECT post_id, path, md5, shard, row::INTEGER AS row
            FROM (SELECT post_id, path, md5, filename AS name, file_row_number AS row
                  FROM read_parquet([{", ".join(map(_quoted, names))}], filename = true, file_row_number = true)
                  WHERE reason IS NULL) JOIN found USING (name)
            QUALIFY row_number() OVER (PARTITION BY post_id ORDER BY md5, path, shard, row) = 1
            ORDER BY post_id
            """
        )
        tables.write_table(_regrouped(rows.to_arrow_reader(1 << 16), scan.SHARD), LISTING, path)
        del found  # DuckDB read it by this name


def _quoted(path: str) -> str:
    """A path in SQL, none of whose letters is a pattern's."""
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in path)
    return "'" + escaped.replace("'", "''") + "'"


def _regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size`."""
    waiting = LISTING.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(LISTING)])
        whole = len(waiting) // size * size
        for start in range(0, whole, size):
            yield waiting.slice(start, size)
        waiting = waiting.slice(whole)
    if len(waiting):
        yield waiting


@dataclass(frozen=True)
class ImageTable:
    """All images, by source and id; row i of every array is image i.

    `usable` (bool) tells whether the scan found nothing against it; `sha256` is uint8 [rows, 32], `area` in pixels;
    unusable images have zeros. `shard` counts through the files of posts of all sources.
    """

    source: np.ndarray
    post_id: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    usable: np.ndarray
    sha256: np.ndarray
    phash: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


def load(listings: Sequence[Path], scans: Sequence[Sequence[Path]], posts: Sequence[Sequence[Path]]) -> ImageTable:
    """The images in the sources' listings, and in the scans of each; without scans all are usable."""
    shards_before = np.cumsum([0, *map(len, posts)])
    listed = [pq.read_table(path, columns=["post_id", "shard", "row"]) for path in listings]
    columns = {name: np.concatenate([t.column(name).to_numpy() for t in listed]) for name in ("post_id", "row")}
    source = np.repeat(np.arange(len(listed), dtype=np.int16), [len(table) for table in listed])
    shard = np.concatenate(
        [t.column("shard").to_numpy() + before for t, before in zip(listed, shards_before, strict=False)]
    )
    files = [file for found in scans for file in found]
    if not files:
        nothing = np.zeros(len(source), dtype=np.int64)
        usable, sha256 = nothing == 0, np.zeros((len(source), 32), dtype=np.uint8)
        return ImageTable(
            source, columns["post_id"], shard, columns["row"], usable, sha256, nothing.astype(np.uint64), nothing
        )
    parts = [_found(file) for file in files]
    usable, sha256, phash, area = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ImageTable(source, columns["post_id"], shard, columns["row"], usable, sha256, phash, area)


def _found(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    table = pq.read_table(file, columns=["reason", "sha256", "width", "height", "phash"])
    usable = table.column("reason").is_null().to_numpy(zero_copy_only=False)
    sha256 = np.zeros((len(table), 32), dtype=np.uint8)
    sha256[usable] = _bytes(table.column("sha256"), 32)
    width, height, phash = (table.column(name).fill_null(0).to_numpy() for name in ("width", "height", "phash"))
    return usable, sha256, phash, width.astype(np.int64) * height


def _bytes(column: pa.ChunkedArray, length: int) -> np.ndarray:
    """A binary column's values that are not null, uint8 [values, length]."""
    return np.frombuffer(b"".join(column.drop_null().to_pylist()), dtype=np.uint8).reshape(-1, length)


def thumbnails(scans: Sequence[Sequence[Path]], rows: np.ndarray) -> np.ndarray:
    """The colour thumbnails of usable images, given by ascending rows: uint8 [rows, side, side, 3]."""
    found = np.empty((len(rows), scan.THUMBNAIL, scan.THUMBNAIL, 3), dtype=np.uint8)
    files = [file for source in scans for file in source]
    bounds = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)])
    for file, (start, stop) in zip(files, pairwise(bounds), strict=True):
        low, high = np.searchsorted(rows, [start, stop])
        if high > low:
            column = pq.read_table(file, columns=["thumbnail"]).column("thumbnail").take(rows[low:high] - start)
            found[low:high] = _bytes(column, found[0].size).reshape(-1, *found.shape[1:])
    return found


def raw_tags(posts: Sequence[Path], images: ImageTable) -> tuple[list[tuple[np.ndarray, Rows]], list[str]]:
    """The tags that people gave, file by file: rows (int64) of images with their raw tags, and those tags' names."""
    names = pa.array([], pa.string())
    order = np.lexsort((images.row, images.shard))
    bounds = np.searchsorted(images.shard[order], np.arange(len(posts) + 1))
    found = []
    for first in range(0, len(posts), TOGETHER):
        columns = [pq.read_table(file, columns=["tags"])["tags"].combine_chunks() for file in posts[first:][:TOGETHER]]
        values = pa.chunked_array([column.values for column in columns]).unify_dictionaries()
        own = values.chunk(0).dictionary if values.num_chunks else names[:0]
        known = pc.index_in(own, names)
        new = own.filter(known.is_null())
        numbers = known.fill_null(-1).to_numpy().copy()
        numbers[numbers < 0] = np.arange(len(names), len(names) + len(new))
        names = pa.concat_arrays([names, new])
        for shard, (column, chunk) in enumerate(zip(columns, values.chunks, strict=True), first):
            rows = order[bounds[shard] : bounds[shard + 1]]
            lists = Rows(column.offsets.to_numpy().astype(np.int64), numbers[chunk.indices.to_numpy()])
            found.append((rows, lists.take(images.row[rows])))
    pa.default_memory_pool().release_unused()
    return found, names.to_pylist()

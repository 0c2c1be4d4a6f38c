"""Write a dataset directory: splits, tags, rejected posts with reasons, and the description."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from data_prep import inputs, scan
from data_prep.config import BuildSettings, Source
from data_prep.image_table import ImageTable, SourceFiles
from data_prep.sources import json_reader
from data_prep.sources.posts import Unreadable
from data_prep.tags import Rows
from joytag.core.files import write_text
from joytag.data import dataset, tag_names
from joytag.data.tables import write_table

ROW_GROUP = 1 << 16  # images
FILES = ("train.parquet", "validation.parquet", "tags.parquet", tag_names.FILE, "rejected.parquet")
LIBRARIES = ("duckdb", "imagehash", "numpy", "pillow", "pyarrow", "scipy")
REJECTED = pa.schema(
    [
        pa.field("source", pa.int16(), nullable=False),
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),  # of the image, relative to the source's folder
        pa.field("file", pa.string()),  # the text file with the post, if the source has text files
        pa.field("line", pa.int64()),  # of that file, counted from 1
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Content:
    """The images and tags of a dataset.

    `rows` (int64, ascending) are those of `images` that are in the dataset. `tags` holds the tags of each, as numbers
    of the `vocabulary`. `validation` (bool [rows]) is true for held-out images. `categories` is by tag name.
    """

    images: ImageTable
    rows: np.ndarray
    tags: Rows
    validation: np.ndarray
    vocabulary: list[str]
    categories: dict[str, int]


@dataclass(frozen=True)
class Ledger:
    """What the first stages read and wrote: the parts and the files of each source, and unreadable rows of tags."""

    sources: Sequence[Source]
    parts: Sequence[Sequence[inputs.Part]]
    files: Sequence[SourceFiles]
    unreadable: Sequence[Sequence[Unreadable]]


class SourceCounts(TypedDict):
    """The posts of a source: all of them, those rejected for each reason, and those of each split."""

    posts: int
    rejected: dict[str, int]
    train: int
    validation: int


class Rejected(NamedTuple):
    """A row of REJECTED; `file` is a full path, and `offset` is the line's first byte."""

    source: int
    post_id: int | None
    path: str | None
    file: Path | None
    offset: int | None
    reason: str
    detail: str | None


def write(output: Path, content: Content, ledger: Ledger) -> None:
    """Write `tags.parquet`, `top_tags.txt`, `train.parquet` and `validation.parquet`."""
    vocabulary, n_tags = content.vocabulary, len(content.vocabulary)
    if n_tags > np.iinfo(np.int16).max:
        raise ValueError(f"tags.min_count: leaves {n_tags} tags, more than int16 can number; raise it")
    counts = _counts(content, len(ledger.sources))
    # The order of a release's top_tags.txt: most frequent in both splits together first, ties by name.
    (train, validation), total = counts.sum(axis=1), counts.sum(axis=(0, 1))
    order = sorted(range(n_tags), key=lambda i: (-total[i], vocabulary[i]))
    table = pa.table(
        {
            "index": list(range(n_tags)),
            "name": [vocabulary[i] for i in order],
            "category": [content.categories.get(vocabulary[i], 0) for i in order],
            "count": total[order],
            "count_train": train[order],
            "count_validation": validation[order],
            "count_by_source": counts.sum(axis=0).T[order].tolist(),
        }
    )
    write_table(table, dataset.TAGS_SCHEMA, output / "tags.parquet")
    write_text(output / tag_names.FILE, "\n".join(vocabulary[i] for i in order))
    index = np.empty(n_tags, dtype=np.int32)
    index[order] = np.arange(n_tags)
    paths = _paths(ledger)
    for split, chosen in (("train", ~content.validation), ("validation", content.validation)):
        tables = _split_tables(content, np.flatnonzero(chosen), index, paths)
        write_table(tables, dataset.POSTS_SCHEMA.append(dataset.PATH), output / f"{split}.parquet")
        print(f"{chosen.sum():>9,} images: {split}")
    print(f"{n_tags:>9,} tags")


def _counts(content: Content, n_sources: int) -> np.ndarray:
    """Count the images of each tag: int64 [splits, sources, tags], training first."""
    n_tags = len(content.vocabulary)
    counts = np.zeros((2, n_sources, n_tags), dtype=np.int64)
    cells = content.validation * n_sources + content.images.source[content.rows].astype(np.int64)
    for start in range(0, len(cells), ROW_GROUP):
        group = np.arange(start, min(start + ROW_GROUP, len(cells)))
        tags = content.tags.take(group)
        flat = np.bincount(cells[group][tags.row_of_each()] * n_tags + tags.tags, minlength=counts.size)
        counts += flat.reshape(counts.shape)
    return counts


def _paths(ledger: Ledger) -> pa.ChunkedArray:
    """Return the paths of all images, relative to their sources' folders."""
    return pa.concat_tables([pq.read_table(its.listing, columns=["path"]) for its in ledger.files])["path"]


def _split_tables(
    content: Content, chosen: np.ndarray, index: np.ndarray, paths: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Yield row groups of some images; `index` is each vocabulary number's position in `tags.parquet`."""
    images = content.images
    for start in range(0, len(chosen), ROW_GROUP):
        group = chosen[start : start + ROW_GROUP]
        rows = content.rows[group]
        tags = content.tags.take(group)
        tags = Rows(tags.offsets, index[tags.tags]).sets()
        sha256 = pa.py_buffer(np.ascontiguousarray(images.sha256[rows]))
        yield pa.table(
            {
                "post_id": images.post_id[rows],
                "tags": pa.ListArray.from_arrays(tags.offsets.astype(np.int32), tags.tags.astype(np.int16)),
                "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(rows), [None, sha256]),
                "source": images.source[rows],
                "phash": images.phash[rows],
                "path": paths.take(rows),
            }
        )


def write_rejected(
    output: Path, ledger: Ledger, content: Content, keeper: np.ndarray, min_tags: int
) -> dict[str, SourceCounts]:
    """Write `rejected.parquet`, one row for each post that is in neither split; return the counts by source."""
    rejected = [*_refused_posts(ledger), *_rejected_images(ledger, content, keeper, min_tags)]
    table = _rejected_table(rejected, [inputs.folder(source) for source in ledger.sources])
    write_table(table, REJECTED, output / "rejected.parquet")
    reasons = Counter(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
    most_frequent = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    source = content.images.source[content.rows]
    counts: dict[str, SourceCounts] = {}
    for number, name in enumerate(source.name for source in ledger.sources):
        its_reasons = {reason: count for (of, reason), count in most_frequent if of == number}
        train = int((~content.validation & (source == number)).sum())
        validation = int((content.validation & (source == number)).sum())
        posts = train + validation + sum(its_reasons.values())
        counts[name] = {"posts": posts, "rejected": its_reasons, "train": train, "validation": validation}
        for reason, count in its_reasons.items():
            print(f"{count:>9,} of {name}: {reason}{_example(table, number, reason)}")
    if len(table):
        print(f"{'':>9} all rejected posts, with reasons: {output / 'rejected.parquet'}")
    return counts


def _example(rejected: pa.Table, source: int, reason: str) -> str:
    """Return the path and the detail of the first post of a source that was rejected for a reason."""
    is_same = pc.and_(pc.equal(rejected["source"], source), pc.equal(rejected["reason"], reason))
    first = rejected.filter(is_same).slice(0, 1).to_pylist()[0]
    return "".join(f", {text}" for text in (first["path"] and f"such as {first['path']}", first["detail"]) if text)


def _rejected_table(rejected: Sequence[Rejected], folders: Sequence[Path]) -> pa.Table:
    """Return a sorted table of REJECTED: files relative to their source's folder, line numbers for offsets."""
    offsets = defaultdict(set)
    for row in rejected:
        if row.file is not None and row.offset is not None:
            offsets[row.file].add(row.offset)
    lines: dict[tuple[Path, int], int] = {}
    for file, its_offsets in offsets.items():
        ascending = sorted(its_offsets)
        numbers = json_reader.line_numbers(file, ascending)
        lines |= {(file, offset): number for offset, number in zip(ascending, numbers, strict=True)}

    def values(row: Rejected) -> tuple[Any, ...]:
        if row.file is None or row.offset is None:
            return (*row[:3], None, None, *row[5:])
        file = row.file.relative_to(folders[row.source]).as_posix()
        return (*row[:3], file, lines[row.file, row.offset], *row[5:])

    columns = list(zip(*map(values, rejected), strict=True)) or [()] * len(REJECTED)
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, REJECTED, strict=True)], REJECTED)
    return table.sort_by([(name, "ascending") for name in ("source", "post_id", "file", "line", "path")])


def _refused_posts(ledger: Ledger) -> Iterator[Rejected]:
    """Yield posts that the sources refused, posts that were listed before, and unreadable rows of tag tables."""
    for number, (parts, files) in enumerate(zip(ledger.parts, ledger.files, strict=True)):
        listing = pq.read_table(files.listing, columns=["shard", "row"])
        shard, row = listing["shard"].to_numpy(), listing["row"].to_numpy()
        ends = np.cumsum(np.bincount(shard, minlength=len(parts)))
        listed = np.split(row[np.argsort(shard, kind="stable")], ends[:-1])
        for part, path, rows in zip(parts, files.posts, listed, strict=True):
            table = pq.read_table(path, columns=["post_id", "path", "offset", "reason", "detail"])
            is_unlisted = np.ones(len(table), dtype=bool)
            is_unlisted[rows] = False
            for post in table.filter(is_unlisted).to_pylist():
                reason = post["reason"] or "listed twice"
                yield Rejected(
                    number, post["post_id"], post["path"], part.text_file, post["offset"], reason, post["detail"]
                )
    for number, unreadable in enumerate(ledger.unreadable):
        for file, offset, reason in unreadable:
            yield Rejected(number, None, None, file, offset, "bad row of tags", reason)


def _rejected_images(ledger: Ledger, content: Content, keeper: np.ndarray, min_tags: int) -> Iterator[Rejected]:
    """Yield images that the scan refused, copies, and images with too few tags."""
    images, names = content.images, [source.name for source in ledger.sources]
    is_rejected = np.ones(len(images), dtype=bool)
    is_rejected[content.rows] = False
    rejected = np.flatnonzero(is_rejected)
    all_paths = _paths(ledger)
    paths = all_paths.take(rejected).to_pylist()
    scans = [pq.read_table(path, columns=["reason", "detail"]) for files in ledger.files for path in files.scan]
    verdicts: list[dict[str, Any]] = pa.concat_tables(scans).take(rejected).to_pylist() if scans else []
    for i, row in enumerate(rejected.tolist()):
        kept = keeper[row]
        if kept < 0:
            reason, detail = verdicts[i]["reason"], verdicts[i]["detail"]
        elif kept != row:
            reason, detail = "copy", f"of {names[images.source[kept]]}/{all_paths[int(kept)]}"
        else:
            reason, detail = f"fewer than {min_tags} tags", None
        yield Rejected(int(images.source[row]), int(images.post_id[row]), paths[i], None, None, reason, detail)


def describe(output: Path, config: BuildSettings, counts: dict[str, SourceCounts], irregular: dict[str, int]) -> None:
    """Write `config.yaml`, then `dataset.json`, whose presence means that the dataset is complete."""
    description = {
        "sources": [source.name for source in config.sources],
        "extension": scan.extension(config.format) if config.images else "none",
        "counts": counts,
        "relations": irregular,
        "config": config.model_dump(),
        "inputs": {source.name: inputs.content_hashes(source) for source in config.sources},
        "outputs": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES},
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES},
    }
    write_text(output / dataset.CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    dataset.write_description(output, description)
    print(f"Dataset: {output}")

"""The files of a dataset directory: splits, tags, what was rejected and why, and where all of it is from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from data_prep import scan
from data_prep.config import BuildSettings, Source
from data_prep.image_table import ImageTable
from data_prep.sources import json_reader, registry
from data_prep.tags import Rows
from joytag.core.files import write_text
from joytag.data import dataset, tag_names
from joytag.data.tables import write_table

ROW_GROUP = 1 << 16
LIBRARIES = ("duckdb", "imagehash", "numpy", "pillow", "pyarrow", "scipy")
REJECTED = pa.schema(
    [
        pa.field("source", pa.int16(), nullable=False),
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),  # of the image, below the source's folder
        pa.field("file", pa.string()),  # and the line of it, for rows of a text
        pa.field("line", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Content:
    """What a dataset holds: `rows` of `images`, ascending, with their `tags` as numbers of the `vocabulary`.

    `validation` (bool [rows]) tells which are held out; `categories` gives those of tags that have one.
    """

    images: ImageTable
    rows: np.ndarray
    tags: Rows
    validation: np.ndarray
    vocabulary: list[str]
    categories: dict[str, int]


@dataclass(frozen=True)
class Ledger:
    """Where the stages wrote what they found: for each source the parts with their files of posts, listing, scan."""

    settings: Sequence[Source]
    posts: Sequence[tuple[Sequence[registry.Part], Sequence[Path]]]
    listings: Sequence[Path]
    scans: Sequence[Sequence[Path]]
    refused: Sequence[registry.Refused]


def write(output: Path, content: Content, source_names: list[str]) -> None:
    """Write `tags.parquet`, `top_tags.txt`, `train.parquet` and `validation.parquet`."""
    vocabulary, n_tags = content.vocabulary, len(content.vocabulary)
    if n_tags > np.iinfo(np.int16).max:
        raise ValueError(f"tags.min_count: leaves {n_tags} tags, more than the format can number; raise it")
    counts = np.zeros((2, len(source_names), n_tags), dtype=np.int64)  # by split, source and tag
    cells = content.validation * len(source_names) + content.images.source[content.rows].astype(np.int64)
    for start in range(0, len(cells), ROW_GROUP):
        some = np.arange(start, min(start + ROW_GROUP, len(cells)))
        tags = content.tags.take(some)
        counts += np.bincount(cells[some][tags.numbers()] * n_tags + tags.tags, minlength=counts.size).reshape(
            counts.shape
        )
    # By training count, descending, as in a release's top_tags.txt; ties by name.
    train = counts[0].sum(axis=0)
    order = sorted(range(n_tags), key=lambda i: (-train[i], vocabulary[i]))
    index = np.empty(n_tags, dtype=np.int32)
    index[order] = np.arange(n_tags)
    table = pa.table(
        {
            "index": list(range(n_tags)),
            "name": [vocabulary[i] for i in order],
            "category": [content.categories.get(vocabulary[i], 0) for i in order],
            "count": counts.sum(axis=(0, 1))[order],
            "count_train": train[order],
            "count_validation": counts[1].sum(axis=0)[order],
            "count_by_source": counts.sum(axis=0).T[order].tolist(),
        }
    )
    write_table(table, dataset.TAGS_SCHEMA, output / "tags.parquet")
    write_text(output / tag_names.FILE, "\n".join(vocabulary[i] for i in order))
    for split, chosen in (("train", ~content.validation), ("validation", content.validation)):
        tables = _split_tables(content, np.flatnonzero(chosen), index)
        write_table(tables, dataset.POSTS_SCHEMA, output / f"{split}.parquet")
        print(f"{chosen.sum():>9,} images: {split}")
    print(f"{n_tags:>9,} tags")


def _split_tables(content: Content, chosen: np.ndarray, index: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, len(chosen), ROW_GROUP):
        some = chosen[start : start + ROW_GROUP]
        rows = content.rows[some]
        tags = content.tags.take(some)
        tags = Rows(tags.offsets, index[tags.tags]).sets()
        found = content.images
        hashes = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), len(rows), [None, pa.py_buffer(np.ascontiguousarray(found.sha256[rows]))]
        )
        yield pa.table(
            {
                "post_id": found.post_id[rows],
                "tags": pa.ListArray.from_arrays(tags.offsets.astype(np.int32), tags.tags.astype(np.int16)),
                "hash": hashes,
                "source": found.source[rows],
                "phash": found.phash[rows],
            }
        )


def write_rejected(
    output: Path, ledger: Ledger, content: Content, keeper: np.ndarray, min_tags: int
) -> dict[str, dict[str, Any]]:
    """Write `rejected.parquet`, a row for every post that is in neither split, and why; return the counts by source."""
    tables = [_refused_rows(ledger), _rejected_images(ledger, content, keeper, min_tags)]
    table = pa.concat_tables(tables).sort_by(
        [(name, "ascending") for name in ("source", "post_id", "file", "line", "path")]
    )
    write_table(table, REJECTED, output / "rejected.parquet")
    reasons = Counter(zip(table.column("source").to_pylist(), table.column("reason").to_pylist(), strict=True))
    source = content.images.source[content.rows]
    counts: dict[str, dict[str, Any]] = {}
    for number, its in enumerate(ledger.settings):
        rejected = {reason: n for (s, reason), n in sorted(reasons.items(), key=lambda i: (-i[1], i[0])) if s == number}
        train = int((~content.validation & (source == number)).sum())
        validation = int((content.validation & (source == number)).sum())
        total = train + validation + sum(rejected.values())
        counts[its.name] = {"posts": total, "rejected": rejected, "train": train, "validation": validation}
        for reason, count in rejected.items():
            print(f"{count:>9,} of {its.name}: {reason}{_example(table, number, reason)}")
    if len(table):
        print(f"{'':>9} which ones, and why: {output / 'rejected.parquet'}")
    return counts


def _example(rejected: pa.Table, source: int, reason: str) -> str:
    """The path of the first such post, where there is one, and what was wrong with it."""
    same = pc.and_(pc.equal(rejected.column("source"), source), pc.equal(rejected.column("reason"), reason))
    first = rejected.filter(same).slice(0, 1).to_pylist()[0]
    return "".join(f", {text}" for text in (first["path"] and f"such as {first['path']}", first["detail"]) if text)


def _refused_rows(ledger: Ledger) -> pa.Table:
    """Rows that the sources refused, posts that were listed before, and rows of tag tables."""
    found: list[tuple[Any, ...]] = []
    for number, ((parts, files), listing) in enumerate(zip(ledger.posts, ledger.listings, strict=True)):
        listed = pq.read_table(listing, columns=["shard", "row"])
        order = np.argsort(listed.column("shard").to_numpy(), kind="stable")
        bounds = np.searchsorted(listed.column("shard").to_numpy()[order], np.arange(len(files) + 1))
        for shard, (part, file) in enumerate(zip(parts, files, strict=True)):
            table = pq.read_table(file, columns=["post_id", "path", "offset", "reason", "detail"])
            gone = np.ones(len(table), dtype=bool)
            gone[listed.column("row").to_numpy()[order[bounds[shard] : bounds[shard + 1]]]] = False
            for row in table.filter(gone).to_pylist():
                reason = row["reason"] or "listed twice"
                line = registry.lines(part), row["offset"]
                found.append((number, row["post_id"], row["path"], *line, reason, row["detail"]))
    for refused in ledger.refused:
        found.append((refused.source, None, None, refused.file, refused.offset, "bad row of tags", refused.detail))
    place: dict[tuple[Path, int], int] = {}
    for file in {row[3] for row in found if row[3] is not None}:
        offsets = sorted({row[4] for row in found if row[3] == file})
        place |= {(file, o): n for o, n in zip(offsets, json_reader.line_numbers(file, offsets), strict=True)}
    folders = [registry.folder(source) for source in ledger.settings]
    rows = [
        (s, i, path, f and f.relative_to(folders[s]).as_posix(), place.get((f, o)), reason, detail)
        for s, i, path, f, o, reason, detail in found
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(REJECTED)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, REJECTED, strict=True)], REJECTED)


def _rejected_images(ledger: Ledger, content: Content, keeper: np.ndarray, min_tags: int) -> pa.Table:
    """Images that the scan found unusable, copies, and images with too few tags."""
    found = content.images
    gone = np.ones(len(found), dtype=bool)
    gone[content.rows] = False
    rows = np.flatnonzero(gone)
    names = [source.name for source in ledger.settings]
    verdicts = [pq.read_table(f, columns=["reason", "detail"]) for files in ledger.scans for f in files]
    verdict = pa.concat_tables(verdicts).take(rows) if verdicts else None
    reason = verdict.column("reason").to_pylist() if verdict is not None else [None] * len(rows)
    detail = verdict.column("detail").to_pylist() if verdict is not None else [None] * len(rows)
    for place, row in enumerate(rows.tolist()):
        kept = keeper[row]
        if kept >= 0 and kept != row:
            reason[place], detail[place] = "copy", f"of {names[found.source[kept]]}/{found.post_id[kept]}"
        elif kept >= 0:
            reason[place] = f"fewer than {min_tags} tags"
    paths = (
        pa.concat_tables([pq.read_table(path, columns=["path"]) for path in ledger.listings]).column("path").take(rows)
    )
    nothing = pa.nulls(len(rows))
    columns = [found.source[rows], found.post_id[rows], paths, nothing, nothing, reason, detail]
    return pa.table(
        [
            pa.array(c).cast(f.type) if not isinstance(c, pa.ChunkedArray) else c
            for c, f in zip(columns, REJECTED, strict=True)
        ],
        REJECTED,
    )


def describe(output: Path, config: BuildSettings, counts: dict[str, Any], oddities: dict[str, int]) -> None:
    """Write `config.yaml`, and `dataset.json` last, since its presence says that the dataset is whole."""
    files = ("train.parquet", "validation.parquet", "tags.parquet", tag_names.FILE, "rejected.parquet")
    description = {
        "sources": [source.name for source in config.sources],
        "extension": scan.extension(config.format) if config.images else "none",
        "counts": counts,
        "relations": oddities,
        "config": config.model_dump(),
        "inputs": {source.name: registry.content_hashes(source) for source in config.sources},
        "outputs": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in files},
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES},
    }
    write_text(output / dataset.CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    dataset.write_description(output, description)
    print(f"Dataset: {output}")

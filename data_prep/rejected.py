"""Write `rejected.parquet`: every post that is in neither split, with the reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import inputs
from data_prep.config import Source
from data_prep.image_table import ImageTable, SourceFiles
from data_prep.sources import json_reader
from data_prep.sources.posts import Unreadable
from data_prep.vocabulary import Labelled
from joytag.core.terminal import print
from joytag.data.tables import write_table

FILE = "rejected.parquet"
SCHEMA = pa.schema(
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
class Ledger:
    """What the first stages read and wrote: the parts and the files of each source, and unreadable rows of tags."""

    sources: Sequence[Source]
    parts: Sequence[Sequence[inputs.Part]]
    files: Sequence[SourceFiles]
    unreadable: Sequence[Sequence[Unreadable]]

    def paths(self) -> pa.ChunkedArray:
        """Return the paths of all images, relative to their sources' folders."""
        return pa.concat_tables([pq.read_table(its.listing, columns=["path"]) for its in self.files])["path"]


class Rejected(NamedTuple):
    """A row of SCHEMA; `file` is a full path, and `offset` is the line's first byte."""

    source: int
    post_id: int | None
    path: str | None
    file: Path | None
    offset: int | None
    reason: str
    detail: str | None


class Reason(NamedTuple):
    """Why posts of a source were rejected, how many, and the path and the detail of the first."""

    source: str
    reason: str
    posts: int
    example: str

    def __str__(self) -> str:
        return f"{self.posts:,} of {self.source}: {self.reason}{self.example}"


def write(
    output: Path, ledger: Ledger, images: ImageTable, labelled: Labelled, keeper: np.ndarray, min_tags: int
) -> list[Reason]:
    """Write one row for each post that is in neither split; print and return the reasons, source by source."""
    posts = [*_refused_posts(ledger), *_rejected_images(ledger, images, labelled, keeper, min_tags)]
    table = _table(posts, [inputs.folder(source) for source in ledger.sources])
    write_table(table, SCHEMA, output / FILE)
    counts = Counter(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
    by_source = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    reasons = [
        Reason(ledger.sources[number].name, reason, count, _example(table, number, reason))
        for (number, reason), count in by_source
    ]
    for reason in reasons:
        print(f"{reason.posts:>9,} {str(reason).partition(' ')[2]}")
    if reasons:
        print(f"{'':>9} all rejected posts, with reasons: {output / FILE}")
    if len(table) > len(labelled.rows):
        print(f"{'':>9} most posts were rejected: {len(table):,} of {len(table) + len(labelled.rows):,}")
    return reasons


def _example(rejected: pa.Table, source: int, reason: str) -> str:
    """Return the path and the detail of the first post of a source that was rejected for a reason."""
    is_same = pc.and_(pc.equal(rejected["source"], source), pc.equal(rejected["reason"], reason))
    first = rejected.filter(is_same).slice(0, 1).to_pylist()[0]
    return "".join(f", {text}" for text in (first["path"] and f"such as {first['path']}", first["detail"]) if text)


def _table(rejected: Sequence[Rejected], folders: Sequence[Path]) -> pa.Table:
    """Return a sorted table of SCHEMA: files relative to their source's folder, line numbers for offsets."""
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

    columns = list(zip(*map(values, rejected), strict=True)) or [()] * len(SCHEMA)
    table = pa.table([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
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


def _rejected_images(
    ledger: Ledger, images: ImageTable, labelled: Labelled, keeper: np.ndarray, min_tags: int
) -> Iterator[Rejected]:
    """Yield images that the scan refused, copies, and images with too few tags or none that is learned."""
    names = [source.name for source in ledger.sources]
    is_rejected, is_unlabelled = np.ones(len(images), dtype=bool), np.zeros(len(images), dtype=bool)
    is_rejected[labelled.rows] = False
    is_unlabelled[labelled.unlabelled] = True
    rejected = np.flatnonzero(is_rejected)
    all_paths = ledger.paths()
    paths = all_paths.take(rejected).to_pylist()
    scans = [pq.read_table(path, columns=["reason", "detail"]) for files in ledger.files for path in files.scan]
    verdicts: list[dict[str, Any]] = pa.concat_tables(scans).take(rejected).to_pylist() if scans else []
    for i, row in enumerate(rejected.tolist()):
        kept = keeper[row]
        if kept < 0:
            reason, detail = verdicts[i]["reason"], verdicts[i]["detail"]
        elif kept != row:
            reason, detail = "copy", f"of {names[images.source[kept]]}/{all_paths[int(kept)]}"
        elif is_unlabelled[row]:
            reason, detail = "no tag of the vocabulary", None
        else:
            reason, detail = "no tag" if min_tags == 1 else f"fewer than {min_tags} tags", None
        yield Rejected(int(images.source[row]), int(images.post_id[row]), paths[i], None, None, reason, detail)

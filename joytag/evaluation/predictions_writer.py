"""Predictions written block by block, by any number of processes, resumable at any time."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csc_array

from joytag.core import files, jsonl
from joytag.core.errors import describe
from joytag.core.lock import sole_writer
from joytag.data import dataset, tables
from joytag.evaluation.predictions import (
    ARRAYS,
    CHUNK,
    FILES,
    PROVENANCE,
    TAGS_SCHEMA,
    VERSION,
    WORK,
    PredictionsError,
    are_valid_scores,
    load_array,
    read_json,
    read_provenance,
    remedy,
)

# Keys of the provenance that may differ when an evaluation resumes, and those that change scores only by rounding. The
# latter are no reason to repeat a finished evaluation.
MOVABLE = {"version", "model", "dataset", "date", "versions", "undecodable", "sha256"}
ROUNDING = {"device", "batch"}
WORDS = {"model_files": "model", "split_sha256": "dataset", "dtype": "precision"}  # keys by their names in messages


class OutputError(PredictionsError):
    """A directory that cannot hold these predictions: it has other content, or its disk is full."""


def write(
    directory: Path,
    scores: NDArray[np.float16],
    ids: NDArray[np.int64],
    hashes: NDArray[np.uint8],
    sources: NDArray[np.int64],
    families: NDArray[np.int64],
    labels: csc_array,
    tags: dataset.TagTable,
    provenance: Mapping[str, Any],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Write a predictions directory; the arguments have the types and shapes of the fields of Predictions.

    `provenance` holds the names of the `sources`. With `rows`, int64 [K], only these of the P images are written.
    Raises OutputError when the directory cannot be written.
    """
    rows = np.arange(len(scores)) if rows is None else rows
    arrays: dict[str, np.ndarray] = dict(zip(ARRAYS, (scores, ids, hashes, sources, families), strict=True))
    table = pa.table(
        {
            "index": range(len(tags)),
            "name": tags.names,
            "category": tags.categories,
            "count": tags.totals,
            "count_train": tags.counts,
        }
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, (dtype, _) in ARRAYS.items():
            assert arrays[name].dtype == dtype, name
            _save_rows(directory / f"{name}.npy", arrays[name], rows)
        kept = csc_array(labels.tocsr()[rows], dtype=bool)
        scipy.sparse.save_npz(directory / "labels.npz", kept, compressed=False)
        tables.write_table(table, TAGS_SCHEMA, directory / "tags.parquet")
        for name in FILES:
            files.sync(directory / name)
        sums = {name: files.file_hash(directory / name) for name in FILES}
        text = json.dumps({"version": VERSION, **provenance, "sha256": sums}, indent=2)
        files.write_text(directory / PROVENANCE, text + "\n")
    except OSError as error:
        raise _cannot_write(directory, error) from None


def is_finished(directory: Path, provenance: Mapping[str, Any]) -> bool:
    """Return whether a directory holds finished predictions of this provenance; remove the rest of the work.

    Raises OutputError when it holds predictions of another provenance.
    """
    if not (directory / PROVENANCE).exists():
        return False
    _check_same_provenance(directory, read_provenance(directory), provenance, MOVABLE | ROUNDING)
    shutil.rmtree(directory / WORK, ignore_errors=True)  # of a process killed between its last two steps
    return True


def lock_unless_finished(directory: Path, provenance: Mapping[str, Any], stack: ExitStack) -> bool:
    """Return whether predictions must still be computed; if so, this process alone writes them until `stack` closes.

    Raises InUse when another process does, and OutputError as `is_finished` does.
    """
    if is_finished(directory, provenance):
        return False
    stack.enter_context(sole_writer(directory))
    return not is_finished(directory, provenance)  # another process may have finished just now


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Return 12 hex digits of a provenance: equal for predictions that `is_finished` accepts for each other."""
    lasting = {key: provenance[key] for key in sorted(provenance.keys() - MOVABLE - ROUNDING)}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12]


def _check_same_provenance(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    """Raise OutputError at the first key that differs and is not in `free`."""
    unknown = set(dataset.COPIES) - before.keys()  # older versions did not record them
    for key in sorted(now.keys() - free - unknown):
        if before.get(key) != now[key]:
            values = f" ({before.get(key)} there, {now[key]} now)" if isinstance(now[key], str | int) else ""
            raise OutputError(
                f"{directory}: holds predictions of another {WORDS.get(key, key)}{values:.80}; "
                "remove it, or choose another output directory"
            )


class JournalEntry(NamedTuple):
    """A finished block: its number, the CRC-32 of its scores, and its rows that cannot be decoded, with reasons."""

    block: int
    crc: int
    bad: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class PredictionsWriter:
    """Unfinished predictions of a split of `rows` images, written in blocks of `batch` consecutive rows.

    Any number of processes may write blocks, in any order, and each may be killed at any time. `done` returns the
    complete blocks: each has a line in a journal, written after its scores, with their checksum.
    """

    directory: Path
    rows: int
    n_tags: int
    batch: int

    @property
    def _work(self) -> Path:
        return self.directory / WORK

    @property
    def _scores(self) -> Path:
        return self._work / "scores.npy"

    @property
    def _provenance(self) -> Path:
        return self._work / PROVENANCE

    def begin(self, provenance: Mapping[str, Any]) -> set[int]:
        """Start, or resume, and return the numbers of the blocks that need not be computed.

        Raises PredictionsError when the directory is damaged, and OutputError when it holds something else, cannot be
        written, or the disk is too small.
        """
        if self._provenance.exists():
            _check_same_provenance(self.directory, read_json(self._provenance), provenance, MOVABLE)
            # Blocks with images that could not be decoded are repeated: a disk may have been missing.
            return {block for block, bad in self.done().items() if not bad}
        others = {path.name for path in self.directory.glob("*")} - {WORK}
        others |= {path.name for path in self._work.glob("*")} - {self._scores.name}  # of a process killed in _start
        if {name for name in others if not name.startswith(".")}:
            raise OutputError(
                f"{self.directory}: holds something other than predictions; choose another output directory"
            )
        try:
            self._start(provenance)
        except OSError as error:
            raise _cannot_write(self.directory, error) from None
        return set()

    def _start(self, provenance: Mapping[str, Any]) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        size = 2 * self.rows * self.n_tags
        free = shutil.disk_usage(self._work).free
        if free < 2 * size:  # finishing makes a copy
            raise OutputError(
                f"{self.directory}: needs {2 * size / 1e6:,.1f} MB, but the disk has {free / 1e6:,.1f} MB free; "
                "free some space, or choose another output directory"
            )
        with self._scores.open("wb") as file:
            _write_header(file, np.float16, (self.rows, self.n_tags))
            file.truncate(file.tell() + size)
        files.write_text(self._provenance, json.dumps(dict(provenance), indent=2) + "\n")

    def write(
        self, block: int, rows: NDArray[np.int64], scores: NDArray[np.float16], bad: list[tuple[int, str]], writer: int
    ) -> None:
        """Write a block: the rows that could be decoded, int64 [B], their scores, float16 [B, N], and the bad rows.

        `writer` is the number of this process, different in each. Raises PredictionsError when a score is not from 0
        to 1, and OutputError when they cannot be written.
        """
        if not are_valid_scores(scores):
            row = next(row for row, values in zip(rows, scores, strict=True) if not are_valid_scores(values))
            raise PredictionsError(
                f"{self.directory}: row {row}: the model's scores are not numbers from 0 to 1; "
                "try another precision, such as fp32"
            )
        first = block * self.batch
        content = np.zeros((min(self.batch, self.rows - first), self.n_tags), dtype=np.float16)
        content[rows - first] = scores
        entry = JournalEntry(block, zlib.crc32(content.data), bad)
        try:
            with self._scores.open("r+b") as file:
                file.seek(self._open().offset + 2 * first * self.n_tags)
                file.write(content.data)
            jsonl.append(self._work / f"done.{writer}.jsonl", entry._asdict())
        except OSError as error:
            raise _cannot_write(self.directory, error) from None

    def done(self) -> dict[int, list[tuple[int, str]]]:
        """Return the complete blocks, each with its rows that cannot be decoded and the reasons.

        Raises PredictionsError when the scores are damaged.
        """
        scores, blocks = self._open(), {}
        for block, crc, bad in self._journal():
            first = block * self.batch
            if crc == zlib.crc32(scores[first : first + self.batch].data):
                blocks[block] = [(int(row), str(reason)) for row, reason in bad]
        return blocks

    def _open(self) -> np.memmap:
        try:
            scores = load_array(self._scores, *ARRAYS["scores"])
        except PredictionsError as error:
            raise PredictionsError(f"{error}; {remedy(self.directory)}") from None
        if scores.shape != (self.rows, self.n_tags):
            raise PredictionsError(f"{self._scores}: damaged, its shape is {scores.shape}; {remedy(self.directory)}")
        return scores

    def _journal(self) -> Iterator[JournalEntry]:
        for path in sorted(self._work.glob("done.*.jsonl")):
            yield from (JournalEntry(**row) for row in jsonl.read(path) if row.keys() == set(JournalEntry._fields))

    def finish(
        self,
        posts: dataset.Posts,
        labels: csc_array,
        tags: dataset.TagTable,
        originals: Callable[[], pa.ChunkedArray | None] = lambda: None,
    ) -> None:
        """Write the finished predictions of all images that could be decoded, and remove the work.

        Takes the split, its labels, bool [rows, N], and the model's vocabulary. `originals` reads the original file of
        each image, [rows], to name those that could not be decoded. Raises PredictionsError when a block is
        missing or no image could be decoded, and OutputError when the predictions cannot be written.
        """
        blocks = self.done()
        missing = -(-self.rows // self.batch) - len(blocks)
        if missing:
            raise PredictionsError(f"{self._scores}: {missing} blocks changed after they were written; evaluate again")
        bad = [entry for block in sorted(blocks) for entry in blocks[block]]
        kept = np.setdiff1d(np.arange(self.rows), [row for row, _ in bad])
        if not len(kept):
            raise PredictionsError(f"{bad[0][1]}, and {self.rows - 1} other images failed, too; is the disk mounted?")
        if bad:
            warnings.warn(
                f"{len(bad)} of {self.rows} images are left out, the first because of {bad[0][1]}; "
                f"{self.directory / PROVENANCE} lists them",
                stacklevel=2,
            )
        paths = originals() if bad else None
        undecodable = [
            {
                "id": int(posts.ids[row]),
                "hash": posts.hashes[row].tobytes().hex(),
                **({} if paths is None else {"path": paths[row].as_py()}),
                "reason": reason,
            }
            for row, reason in bad
        ]
        provenance = read_json(self._provenance) | {"undecodable": undecodable}
        families = np.arange(self.rows) if posts.families is None else posts.families
        about_rows = posts.ids, posts.hashes, posts.sources.astype(np.int64), families
        write(self.directory, self._open(), *about_rows, labels, tags, provenance, kept)  # no longer opened then
        shutil.rmtree(self._work, ignore_errors=True)  # a reader may have begun to remove it


def _save_rows(path: Path, array: np.ndarray, rows: NDArray[np.int64]) -> None:
    """Write some rows of an array as .npy, without holding them in memory."""
    with path.open("wb") as file:
        _write_header(file, array.dtype, (len(rows), *array.shape[1:]))
        for start in range(0, len(rows), CHUNK):
            file.write(np.ascontiguousarray(array[rows[start : start + CHUNK]]).data)


def _write_header(file: BinaryIO, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})


def _cannot_write(directory: Path, error: OSError) -> OutputError:
    error.filename = error.filename or str(directory)
    return OutputError(f"cannot write {describe(error)}; then evaluate again, which resumes")

"""Predictions written block by block by any number of processes, resumable."""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
from scipy.sparse import csc_array

from joytag.core import files, jsonl
from joytag.data import dataset, tables
from joytag.evaluation.predictions import (
    ARRAYS,
    CHUNK,
    FILES,
    MOVABLE,
    PROVENANCE,
    ROUNDING,
    TAGS_SCHEMA,
    VERSION,
    WORDS,
    PredictionsError,
    _load,
    _read_json,
    _read_provenance,
    _remedy,
    are_valid_scores,
)


def write(
    directory: Path,
    scores: np.ndarray,
    ids: np.ndarray,
    hashes: np.ndarray,
    sources: np.ndarray,
    labels: csc_array,
    tags: dataset.TagTable,
    provenance: Mapping[str, Any],
    rows: np.ndarray | None = None,
) -> None:
    """Write a directory, with the types and shapes of Predictions; `provenance` holds the names of the `sources`.

    All are of P images; with `rows`, int64 [K], only those are kept. Raises PredictionsError when it cannot be
    written.
    """
    rows = np.arange(len(scores)) if rows is None else rows
    arrays = {"scores": scores, "ids": ids, "hashes": hashes, "sources": sources}
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
            _save(directory / f"{name}.npy", arrays[name], rows)
        kept = csc_array(labels.tocsr()[rows], dtype=bool)
        scipy.sparse.save_npz(directory / "labels.npz", kept, compressed=False)
        tables.write_table(table, TAGS_SCHEMA, directory / "tags.parquet")
        for name in FILES:
            files.sync(directory / name)
        sums = {name: files.file_hash(directory / name) for name in FILES}
        text = json.dumps({"version": VERSION, **provenance, "sha256": sums}, indent=2)
        files.write_text(directory / PROVENANCE, text + "\n")
    except OSError as error:
        raise _unwritten(directory, error) from None


@dataclass(frozen=True)
class PredictionsWriter:
    """Predictions in the making, in blocks of `batch` consecutive rows of a split of `rows` images.

    Any number of processes may write blocks, in any order. Whichever of them is killed, and whenever, `done` tells
    the blocks that are whole: each is vouched for by a line in a journal, written after it, with its checksum.
    """

    directory: Path
    rows: int
    n_tags: int
    batch: int

    @property
    def _scores(self) -> Path:
        return self.directory / "work" / "scores.npy"

    @property
    def _facts(self) -> Path:
        return self.directory / "work" / PROVENANCE

    def begin(self, facts: Mapping[str, Any]) -> set[int]:
        """Make room, or go on with what is there; returns the numbers of the blocks that need not be done.

        `facts` are the provenance, which JSON can hold. Raises PredictionsError when the directory holds something
        else or is damaged, or when the disk is too small.
        """
        if self._facts.exists():
            _compare(self.directory, _read_json(self._facts), facts, MOVABLE)
            # Where images could not be decoded the disk may be back.
            return {block for block, bad in self.done().items() if not bad}
        work = self._facts.parent
        if self.directory.is_dir() and any(path != work for path in self.directory.iterdir()):
            raise PredictionsError(f"{self.directory}: holds no predictions, but something else; give another --output")
        shutil.rmtree(work, ignore_errors=True)
        size = 2 * self.rows * self.n_tags
        try:
            work.mkdir(parents=True)
            free = shutil.disk_usage(work).free
            if free < 2 * size:  # finishing makes a copy
                raise PredictionsError(
                    f"{self.directory}: needs {2 * size / 1e6:,.0f} MB, but the disk has {free / 1e6:,.0f} left; "
                    "make room, or give another --output"
                )
            with self._scores.open("wb") as file:
                _write_header(file, np.float16, (self.rows, self.n_tags))
                file.truncate(file.tell() + size)
            files.write_text(self._facts, json.dumps(dict(facts), indent=2) + "\n")
        except OSError as error:
            raise _unwritten(self.directory, error) from None
        return set()

    def write(self, block: int, rows: np.ndarray, scores: np.ndarray, bad: list[tuple[int, str]], writer: int) -> None:
        """Keep a block: the rows that could be decoded, int64 [B], their scores, float16 [B, N], and the bad ones.

        `writer` is the number of this process, which no other has. Raises PredictionsError when scores are no numbers
        from 0 to 1, or when they cannot be written.
        """
        if not are_valid_scores(scores):
            row = next(row for row, line in zip(rows, scores, strict=True) if not are_valid_scores(line))
            raise PredictionsError(f"{self.directory}: row {row}: the model's scores are no numbers; try another "
                                   "--precision, such as fp32")  # fmt: skip
        first = block * self.batch
        content = np.zeros((min(self.batch, self.rows - first), self.n_tags), dtype=np.float16)
        content[rows - first] = scores
        line = {"block": block, "crc": zlib.crc32(content.data), "bad": bad}
        try:
            with self._scores.open("r+b") as file:
                file.seek(self._open().offset + 2 * first * self.n_tags)
                file.write(content.data)
            jsonl.append(self._scores.parent / f"done.{writer}.jsonl", line)
        except OSError as error:
            raise _unwritten(self.directory, error) from None

    def done(self) -> dict[int, list[tuple[int, str]]]:
        """The blocks that are whole, with their rows that cannot be decoded, and why. Raises PredictionsError."""
        scores, blocks = self._open(), {}
        for line in self._journal():
            first = line["block"] * self.batch
            if line["crc"] == zlib.crc32(scores[first : first + self.batch].data):
                blocks[line["block"]] = [(int(row), str(reason)) for row, reason in line["bad"]]
        return blocks

    def _open(self) -> np.memmap:
        try:
            scores = _load(self._scores, *ARRAYS["scores"])
        except PredictionsError as error:
            raise PredictionsError(f"{error}; {_remedy(self.directory)}") from None
        if scores.shape != (self.rows, self.n_tags):
            raise PredictionsError(f"{self._scores}: damaged, its shape is {scores.shape}; {_remedy(self.directory)}")
        return scores

    def _journal(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self._scores.parent.glob("done.*.jsonl")):
            yield from (line for line in jsonl.read(path) if line.keys() == {"block", "crc", "bad"})

    def finish(self, posts: dataset.Posts, labels: csc_array, tags: dataset.TagTable) -> None:
        """Turn the work, all blocks of which are done, into predictions of the images that could be decoded.

        Takes the split, its labels, bool [rows, N], and the model's vocabulary. Raises PredictionsError when no image
        is left, or when they cannot be written.
        """
        blocks = self.done()
        missing = -(-self.rows // self.batch) - len(blocks)
        if missing:
            raise PredictionsError(f"{self._scores}: {missing} blocks are not as they were written; evaluate again")
        bad = [entry for block in sorted(blocks) for entry in blocks[block]]
        kept = np.setdiff1d(np.arange(self.rows), [row for row, _ in bad])
        if not len(kept):
            raise PredictionsError(f"{bad[0][1]}, and {self.rows - 1} others neither; is the disk there?")
        undecodable = [
            {"id": int(posts.ids[row]), "hash": posts.hashes[row].tobytes().hex(), "reason": reason}
            for row, reason in bad
        ]
        if bad:
            told = f"{len(bad)} of {self.rows} images are left out, the first since {bad[0][1]}"
            warnings.warn(f"{told}; {self.directory / PROVENANCE} lists them", stacklevel=2)
        provenance = _read_json(self._facts) | {"undecodable": undecodable}
        sources = posts.sources.astype(np.int64)
        write(self.directory, self._open(), posts.ids, posts.hashes, sources, labels, tags, provenance, kept)
        shutil.rmtree(self._scores.parent)


def is_finished(directory: Path, facts: Mapping[str, Any]) -> bool:
    """Whether predictions with these facts are there already. Raises PredictionsError when they are of others."""
    if not (directory / PROVENANCE).exists():
        return False
    _compare(directory, _read_provenance(directory), facts, MOVABLE | ROUNDING)
    shutil.rmtree(directory / "work", ignore_errors=True)  # of one that was killed in its last moment
    return True


def _compare(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    """Raise PredictionsError at the first fact that differs and is not `free` to."""
    for key in sorted(now.keys() - free):
        if before.get(key) != now[key]:
            told = f" ({before.get(key)} there, {now[key]} now)" if isinstance(now[key], str | int) else ""
            raise PredictionsError(
                f"{directory}: holds predictions of another {WORDS.get(key, key)}{told:.80}; "
                "remove it, or give another --output"
            )


def _save(path: Path, array: np.ndarray, rows: np.ndarray) -> None:
    """Write some rows of an array as .npy, without holding them in memory."""
    with path.open("wb") as file:
        _write_header(file, array.dtype, (len(rows), *array.shape[1:]))
        for start in range(0, len(rows), CHUNK):
            file.write(np.ascontiguousarray(array[rows[start : start + CHUNK]]).data)


def _write_header(file: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})


def _unwritten(directory: Path, error: OSError) -> PredictionsError:
    return PredictionsError(
        f"{error.filename or directory}: cannot be written ({error.strerror or error}); make room, then the same "
        "command goes on, or give another --output"
    )

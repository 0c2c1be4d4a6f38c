"""Predictions on disk: a model's scores of all images of a split beside their labels; every report starts from them.

scores.npy       float16 [P, N], in [0, 1]
ids.npy          int64 [P]
hashes.npy       uint8 [P, 32], sha256 of the original files
sources.npy      int64 [P], numbers of provenance.json's sources
labels.npz       bool [P, N], a sparse matrix for scipy.sparse.load_npz
tags.parquet     one row an output of the model, in order
provenance.json  of what, by what and when, the images left out, and the files' sha256; written last
work/            what an evaluation needs to go on after it was stopped; gone at its end
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
from scipy.sparse import csc_array

from joytag.core import files
from joytag.data import dataset
from joytag.data.tables import TableError
from joytag.evaluation.metrics import LEVELS

VERSION = 1
PROVENANCE = "provenance.json"
ARRAYS = {"scores": (np.float16, 2), "ids": (np.int64, 1), "hashes": (np.uint8, 2), "sources": (np.int64, 1)}
FILES = (*(f"{name}.npy" for name in ARRAYS), "labels.npz", "tags.parquet")
TAGS_SCHEMA = pa.schema(
    [dataset.TAGS_SCHEMA.field(name) for name in ("index", "name", "category", "count", "count_train")]
)
# What may differ when an evaluation goes on: where things lie and when it began. What a finished one was computed with
# changes the scores by rounding at most, and is no reason to do it again.
MOVABLE = {"version", "model", "dataset", "date", "versions", "undecodable", "sha256"}
ROUNDING = {"device", "batch"}
WORDS = {"model_files": "model", "split_sha256": "dataset", "dtype": "precision"}
CHUNK = 4096  # rows that are read or written at once


class PredictionsError(ValueError):
    """A predictions directory that is missing, damaged or of something else: one line with the remedy."""


@dataclass(frozen=True)
class Predictions:
    """A predictions directory, opened and checked; row i is image i, column j is tag j.

    `scores` float16 [P, N] in [0, 1], memory-mapped and read-only; `ids` int64 [P]; `hashes` uint8 [P, 32];
    `sources` int64 [P], indexes of `source_names`; `labels` bool [P, N]. `provenance` holds what provenance.json does.
    """

    directory: Path
    scores: np.ndarray
    ids: np.ndarray
    hashes: np.ndarray
    sources: np.ndarray
    source_names: list[str]
    labels: csc_array
    tags: dataset.TagTable
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def open(cls, directory: Path) -> Predictions:
        """Open a directory. Raises PredictionsError when it is unfinished, damaged, or no such directory."""
        provenance = _read_provenance(directory)
        for name in FILES:
            path, expected = directory / name, provenance["sha256"].get(name)
            if not path.is_file():
                raise PredictionsError(f"{path}: missing; {_remedy(directory)}")
            if files.file_hash(path) != expected:
                raise PredictionsError(f"{path}: damaged, it is not as it was written; {_remedy(directory)}")
        try:
            arrays = {name: _load(directory / f"{name}.npy", *kind) for name, kind in ARRAYS.items()}
            labels = _read_labels(directory / "labels.npz")
            tags = dataset.TagTable.read(directory / "tags.parquet", TAGS_SCHEMA)
        except (PredictionsError, TableError) as error:
            raise PredictionsError(f"{error}; {_remedy(directory)}") from None
        found = cls(directory, **arrays, source_names=provenance["sources"], labels=labels, tags=tags,
                    provenance=provenance)  # fmt: skip
        problem = found._problem()
        if problem:
            raise PredictionsError(f"{directory}: {problem}; {_remedy(directory)}")
        return found

    def _problem(self) -> str:
        """What the files disagree about, or what is out of range; empty if all is well."""
        shape = len(self), len(self.tags)
        if 0 in shape or self.scores.shape != shape or self.labels.shape != shape:
            return f"scores.npy and labels.npz are not of {shape[0]} images and {shape[1]} tags"
        if self.hashes.shape != (len(self), 32) or self.sources.shape != (len(self),):
            return f"hashes.npy and sources.npy are not of {shape[0]} images"
        if not 0 <= self.sources.min() <= self.sources.max() < len(self.source_names):
            return f"sources.npy: numbers outside 0 to {len(self.source_names) - 1}"
        if not all(are_valid_scores(self.scores[i : i + CHUNK]) for i in range(0, len(self), CHUNK)):
            return "scores.npy: values that are not between 0 and 1"
        return ""


def are_valid_scores(values: np.ndarray) -> bool:
    """Whether float16 values are all in [0, 1], none of them NaN or -0; their bit patterns then count up from 0."""
    return bool((values.view(np.uint16) < LEVELS).all())


def label_matrix(posts: dataset.Posts, n_tags: int) -> csc_array:
    """Which tags the images carry, bool [P, N]."""
    rows = np.repeat(np.arange(len(posts)), np.diff(posts.offsets))
    tags = posts.tags[posts.offsets[0] : posts.offsets[-1]]
    labels = csc_array((np.ones(len(tags), dtype=bool), (rows, tags)), shape=(len(posts), n_tags))
    labels.sort_indices()
    return labels


def _read_provenance(directory: Path) -> dict[str, Any]:
    path = directory / PROVENANCE
    if not path.exists():
        if (directory / "work").is_dir():
            raise PredictionsError(f"{directory}: unfinished; call the evaluate.py --model that began it again")
        raise PredictionsError(f"{directory}: no predictions here ({PROVENANCE} is missing); see evaluate.py --model")
    provenance = _read_json(path)
    if provenance.get("version") != VERSION:
        raise PredictionsError(f"{path}: version: not {VERSION}, which this release reads; {_remedy(directory)}")
    names = provenance.get("sources")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PredictionsError(f"{path}: sources: not a list of names; {_remedy(directory)}")
    if not isinstance(provenance.get("sha256"), dict):
        raise PredictionsError(f"{path}: sha256: not there by file; {_remedy(directory)}")
    return provenance


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PredictionsError(f"{path}: cannot be read ({error}); remove it and evaluate again") from None
    if not isinstance(content, dict):
        raise PredictionsError(f"{path}: holds no facts by name; remove it and evaluate again")
    return content


def _load(path: Path, dtype: Any, dimensions: int) -> np.memmap:
    """A memory-mapped array. Raises PredictionsError, without a remedy."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise PredictionsError(f"{path}: damaged or cut short ({error})") from None
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise PredictionsError(f"{path}: holds {array.dtype} {array.shape}, not {np.dtype(dtype)} [{dimensions} axes]")
    return array


def _read_labels(path: Path) -> csc_array:
    """The labels. Raises PredictionsError, without a remedy."""
    try:
        labels = csc_array(scipy.sparse.load_npz(path))  # which refuses pickles
        labels.check_format(full_check=True)
    except Exception as error:  # a damaged archive makes its readers raise whatever they like
        raise PredictionsError(f"{path}: damaged ({error})") from None
    if labels.dtype != bool or not labels.data.all():
        raise PredictionsError(f"{path}: holds {labels.dtype} or zeros, not the labels that are there")
    return labels


def _remedy(directory: Path) -> str:
    return f"remove {directory} and evaluate again"

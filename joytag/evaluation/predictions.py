"""Predictions on disk: a model's scores and the labels for every image of a split; all reports start from them.

scores.npy       float16 [P, N], from 0 to 1
ids.npy          int64 [P]
hashes.npy       uint8 [P, 32], sha256 of the original files
sources.npy      int64 [P], indices into the sources of provenance.json
families.npy     int64 [P], the same for images that vary one another; older versions did not write it
labels.npz       bool [P, N], a sparse matrix for scipy.sparse.load_npz
tags.parquet     one row for each output of the model, in order
provenance.json  the model, the dataset, the settings, the images left out, the files' sha256; written last
work/            state of an unfinished evaluation; removed at its end
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csc_array

from joytag.core import files
from joytag.data import dataset
from joytag.data.tables import TableError
from joytag.evaluation.metrics import LEVELS

VERSION = 1
DIRECTORY = "predictions"  # beside a release, or in a directory of reports
PROVENANCE = "provenance.json"
WORK = "work"
ARRAYS = {
    "scores": (np.float16, 2),
    "ids": (np.int64, 1),
    "hashes": (np.uint8, 2),
    "sources": (np.int64, 1),
    "families": (np.int64, 1),
}
FILES = (*(f"{name}.npy" for name in ARRAYS), "labels.npz", "tags.parquet")
TAGS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),  # other taggers may have more tags than a dataset
        *(dataset.TAGS_SCHEMA.field(name) for name in ("name", "category", "count", "count_train")),
    ]
)
FAMILIES = "families.npy"  # which older versions did not write
CHUNK = 4096  # rows that are read, written or gathered together


class PredictionsError(ValueError):
    """A predictions directory that is missing, damaged or holds something else: one line with the remedy."""


@dataclass(frozen=True)
class Predictions:
    """A predictions directory, opened and checked; row i is image i, column j is tag j.

    `scores` float16 [P, N] from 0 to 1, memory-mapped and read-only; `ids` int64 [P]; `hashes` uint8 [P, 32];
    `sources` int64 [P], indices into `source_names`; `families` int64 [P], the same for images that vary one another;
    `labels` bool [P, N]; `provenance`: the content of provenance.json.
    """

    directory: Path
    scores: NDArray[np.float16]
    ids: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    sources: NDArray[np.int64]
    families: NDArray[np.int64]
    source_names: list[str]
    labels: csc_array
    tags: dataset.TagTable
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def open(cls, directory: Path) -> Predictions:
        """Open a directory. Raises PredictionsError when it is missing, unfinished or damaged."""
        provenance = read_provenance(directory)
        try:
            written = [name for name in FILES if name != FAMILIES or name in provenance["sha256"]]
            for name in written:
                _check_file(directory / name, provenance["sha256"].get(name))
            arrays: dict[str, Any] = {
                name: load_array(directory / f"{name}.npy", *kind)
                for name, kind in ARRAYS.items()
                if f"{name}.npy" in written
            }
            predictions = cls(
                directory,
                **{"families": np.arange(len(arrays["ids"]))} | arrays,
                source_names=provenance["sources"],
                labels=_read_labels(directory / "labels.npz"),
                tags=dataset.TagTable.read(directory / "tags.parquet", TAGS_SCHEMA),
                provenance=provenance,
            )
            predictions._check_consistency()
        except (PredictionsError, TableError) as error:
            raise PredictionsError(f"{error}; {remedy(directory)}") from None
        return predictions

    def _check_consistency(self) -> None:
        """Raise PredictionsError, without a remedy, when the files disagree or hold values out of range."""
        shape = len(self), len(self.tags)
        if 0 in shape or self.scores.shape != shape or self.labels.shape != shape:
            problem = f"scores.npy and labels.npz are not of {shape[0]} images and {shape[1]} tags"
        elif self.hashes.shape != (len(self), 32) or {self.sources.shape, self.families.shape} != {(len(self),)}:
            problem = f"hashes.npy, sources.npy and families.npy are not of {shape[0]} images"
        elif not 0 <= self.sources.min() <= self.sources.max() < len(self.source_names):
            problem = f"sources.npy: numbers outside 0 to {len(self.source_names) - 1}"
        elif not all(are_valid_scores(self.scores[i : i + CHUNK]) for i in range(0, len(self), CHUNK)):
            problem = "scores.npy: values that are not between 0 and 1"
        else:
            return
        raise PredictionsError(f"{self.directory}: {problem}")


def are_valid_scores(values: NDArray[np.float16]) -> bool:
    """Return whether float16 values are all from 0 to 1, none of them NaN or -0, so that their bits are levels."""
    return bool((values.view(np.uint16) < LEVELS).all())


def label_matrix(posts: dataset.Posts, n_tags: int) -> csc_array:
    """Return the labels of posts, bool [P, N]."""
    rows = np.repeat(np.arange(len(posts)), np.diff(posts.offsets))
    tags = posts.tags[posts.offsets[0] : posts.offsets[-1]]
    labels = csc_array((np.ones(len(tags), dtype=bool), (rows, tags)), shape=(len(posts), n_tags))
    labels.sort_indices()
    return labels


def remedy(directory: Path) -> str:
    """Return what to do about a damaged directory."""
    return f"remove {directory} and evaluate again"


def read_provenance(directory: Path) -> dict[str, Any]:
    """Read and check provenance.json. Raises PredictionsError when the evaluation is unfinished or it is damaged."""
    path = directory / PROVENANCE
    if not path.exists():
        if (directory / WORK).is_dir():
            raise PredictionsError(f"{directory}: unfinished; run the evaluation of this model again to finish it")
        raise PredictionsError(f"{directory}: no predictions here ({PROVENANCE} is missing); evaluate a model first")
    provenance = read_json(path)
    if provenance.get("version") != VERSION:
        raise PredictionsError(f"{path}: version: not {VERSION}, the one that this release reads; {remedy(directory)}")
    names = provenance.get("sources")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PredictionsError(f"{path}: sources: not a list of names; {remedy(directory)}")
    if not isinstance(provenance.get("sha256"), dict):
        raise PredictionsError(f"{path}: sha256: not a mapping from files to hashes; {remedy(directory)}")
    return provenance


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises PredictionsError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PredictionsError(f"{path}: cannot be read ({error}); remove it and evaluate again") from None
    if not isinstance(content, dict):
        raise PredictionsError(f"{path}: not a JSON object; remove it and evaluate again")
    return content


def load_array(path: Path, dtype: DTypeLike, dimensions: int) -> np.memmap:
    """Memory-map an array, read-only. Raises PredictionsError, without a remedy."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise PredictionsError(f"{path}: damaged or cut short ({error})") from None
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise PredictionsError(f"{path}: holds {array.dtype} {array.shape}, not {np.dtype(dtype)} [{dimensions} axes]")
    return array


def _check_file(path: Path, sha256: str | None) -> None:
    """Raise PredictionsError, without a remedy, when a file is missing or has another hash."""
    if not path.is_file():
        raise PredictionsError(f"{path}: missing")
    if files.file_hash(path) != sha256:
        raise PredictionsError(f"{path}: damaged, its content has changed since it was written")


def _read_labels(path: Path) -> csc_array:
    """Read the labels. Raises PredictionsError, without a remedy."""
    try:
        labels = csc_array(scipy.sparse.load_npz(path))  # refuses pickles
        labels.check_format(full_check=True)
    except Exception as error:  # readers of a damaged archive raise errors of any type
        raise PredictionsError(f"{path}: damaged ({error})") from None
    if labels.dtype != bool or not labels.data.all():
        raise PredictionsError(f"{path}: holds {labels.dtype} or explicit zeros, not only the labels that are set")
    return labels

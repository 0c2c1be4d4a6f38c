"""The taggers of a comparison: find them in directories, and predict with them on the validation images."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.core import devices, progress
from joytag.core.files import file_hash
from joytag.core.parallel import read_ahead
from joytag.core.signals import Interrupts
from joytag.data import decoders, images, loader, order
from joytag.data.dataset import Dataset, TagTable
from joytag.data.tag_names import DEFAULT_THRESHOLD, canonical
from joytag.evaluation import predictions, predictions_writer, runner
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.predictions_writer import PredictionsWriter
from joytag.evaluation.runner import BATCH
from joytag.models import checkpoint, release, wd_onnx
from joytag.models.wd_onnx import OnnxTagger

SPLIT = "validation"


class TaggerEntryError(ValueError):
    """A directory that holds no tagger, or one that cannot be used: one line with the remedy."""


class DatasetRequired(ValueError):
    """Raised when a comparison is possible only with a dataset."""


@dataclass(frozen=True)
class TaggerEntry:
    """A tagger to compare: `kind` is predictions, release or ONNX, `path` its directory, `letter` its short name.

    `predictions` are open if the directory holds predictions, and `onnx` is loaded if it holds an ONNX tagger.
    """

    letter: str
    name: str
    kind: str
    path: Path
    threshold: float
    predictions: Predictions | None = None
    onnx: OnnxTagger | None = None


def open_taggers(paths: Sequence[Path], thresholds: Sequence[float] = (), device: str = "auto") -> list[TaggerEntry]:
    """Identify the taggers in directories, and check all of them before any is used.

    A directory may hold predictions, a release, a checkpoint, a run (its release counts, or else its newest checkpoint)
    or an ONNX tagger in the WD layout. `thresholds`: one for all taggers, one for each, or none for the default of each
    kind. Raises ValueError naming the first directory that holds none of these or cannot be read.
    """
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise TaggerEntryError(f"{len(paths)} taggers: give 2 to {len(string.ascii_uppercase)} directories")
    if len(thresholds) not in (0, 1, len(paths)):
        raise TaggerEntryError(f"{len(thresholds)} thresholds: give one, or one for each of {len(paths)} taggers")
    torch_device, entries = devices.pick_device(device), []
    for number, (path, name) in enumerate(zip(paths, short_names(paths), strict=True)):
        kind, path = _find_tagger(path)
        opened = Predictions.open(path) if kind == "predictions" else None
        onnx = OnnxTagger.load(path, torch_device) if kind == "ONNX" else None
        if kind == "release":
            release.read_config(path), release.read_tags(path)
        default = onnx.threshold if onnx else DEFAULT_THRESHOLD
        threshold = thresholds[number % len(thresholds)] if thresholds else default
        entries.append(TaggerEntry(string.ascii_uppercase[number], name, kind, path, threshold, opened, onnx))
    return entries


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the distinguishing part of each path: `a` and `b` for `runs/a/release` and `runs/b/release`."""
    parts = [path.resolve().parts for path in paths]
    before = _common_length(parts)
    after = _common_length([part[:before:-1] for part in parts])
    return ["/".join(part[before : len(part) - after]) or part[-1] for part in parts]


def _common_length(sequences: Sequence[Sequence[str]]) -> int:
    """Return how many first elements are the same in all sequences."""
    return len(list(takewhile(lambda elements: len(set(elements)) == 1, zip(*sequences, strict=False))))


def _find_tagger(path: Path) -> tuple[str, Path]:
    """Return the kind of the tagger at a path, and its directory. Raises TaggerEntryError."""
    if not path.is_dir():
        raise TaggerEntryError(f"{path}: no such directory")
    if (path / wd_onnx.MODEL).exists():
        return "ONNX", path
    model = checkpoint.newest_model(path)
    if model is not None:
        return "release", model
    for directory in (path, path / predictions.DIRECTORY):
        if (directory / predictions.PROVENANCE).exists():
            return "predictions", directory
    raise TaggerEntryError(
        f"{path}: holds neither predictions ({predictions.PROVENANCE}) nor a release ({release.CONFIG}), a run "
        f"({release.DIRECTORY}/ or {checkpoint.DIRECTORY}/) or an ONNX tagger ({' and '.join(wd_onnx.FILES)})"
    )


def predict(
    tagger: TaggerEntry, dataset: Dataset | None, output: Path, device: str = "auto", precision: str = "auto"
) -> Predictions:
    """Return a tagger's predictions: its own if they are of this dataset, else those in `output`/predictions.

    Computes them if necessary, and resumes unfinished ones. Raises DatasetRequired when they must be computed without a
    dataset, ValueError for other problems of the tagger or the dataset, and Unfinished when a signal asks to stop.
    """
    if tagger.predictions is not None:
        return tagger.predictions
    if dataset is None:
        raise DatasetRequired(f"{tagger.path}: has no predictions yet; they need a dataset")
    size = tagger.onnx.size if tagger.onnx else release.read_config(tagger.path).image_size
    image_dataset = loader.ImageDataset(dataset, SPLIT, size)
    torch_device = devices.pick_device(device)
    dtype = devices.pick_dtype(precision, torch_device)
    provenance = runner.collect_provenance(tagger.path, image_dataset, SPLIT, BATCH, torch_device, dtype)
    if tagger.onnx:
        hashes = {name: file_hash(tagger.path / name) for name in wd_onnx.FILES}
        provenance |= {"model_files": hashes, "dtype": "float32", "batch": BATCH}
    own = checkpoint.results_directory(tagger.path) / predictions.DIRECTORY
    if _is_finished(own, provenance):
        return Predictions.open(own)
    directory = output / predictions.DIRECTORY / predictions_writer.fingerprint(provenance)
    if tagger.onnx is None and release.read_tags(tagger.path) == dataset.tags.names:
        runner.predict_release(directory, tagger.path, dataset, SPLIT, BATCH, None, device, precision)
    else:
        with ExitStack() as stack:
            if predictions_writer.lock_unless_finished(directory, provenance, stack):
                _predict_other_vocabulary(tagger, image_dataset, provenance, directory, torch_device, dtype)
    return Predictions.open(directory)


def _is_finished(directory: Path, provenance: Mapping[str, Any]) -> bool:
    try:
        return predictions_writer.is_finished(directory, provenance)
    except predictions.PredictionsError:  # of other weights, images or precision
        return False


def _predict_other_vocabulary(
    tagger: TaggerEntry,
    image_dataset: loader.ImageDataset,
    provenance: Mapping[str, Any],
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Predict with a tagger whose vocabulary is not the dataset's; tags that the dataset lacks have no labels."""
    known, posts = image_dataset.dataset.tags, image_dataset.posts
    if tagger.onnx:
        tags = tagger.onnx.tags
    else:
        network, names = release.load(tagger.path)
        tags = TagTable(names, *(_look_up(names, known, column) for column in ("categories", "counts", "totals")))
    writer = PredictionsWriter(directory, len(image_dataset), len(tags), BATCH)
    done = writer.begin(provenance)
    with decoders.worker_errors(), Interrupts() as interrupts:
        if tagger.onnx:
            _predict_onnx(writer, done, tagger.onnx, image_dataset, interrupts)
        else:
            workers = decoders.default_workers(device)
            runner.predict_blocks(writer, done, network.to(device), image_dataset, workers, device, dtype, interrupts)
    labels = predictions.label_matrix(posts, len(known))
    merged = merge_labels(labels, _columns_of(known.names, tags.names))
    writer.finish(posts, merged, tags, partial(image_dataset.dataset.originals, SPLIT))


def _look_up(names: Sequence[str], known: TagTable, column: str) -> np.ndarray:
    """Return a column of a tag table for other names, 0 for names that it lacks."""
    values = dict(zip(known.names, getattr(known, column), strict=True))
    return np.array([values.get(name, 0) for name in names], dtype=getattr(known, column).dtype)


def _predict_onnx(
    writer: PredictionsWriter,
    done: set[int],
    tagger: OnnxTagger,
    image_dataset: loader.ImageDataset,
    interrupts: Interrupts,
) -> None:
    """Predict and write the blocks that are not `done`. Raises OnnxError, and Unfinished when a signal asks to stop."""

    def read(row: int) -> NDArray[np.uint8] | str:
        try:
            return tagger.read(image_dataset.dataset.image_path(image_dataset.posts.hashes[row].tobytes()))
        except images.ImageError as error:
            return str(error)

    blocks = [[row for _, row in keys] for keys in order.evaluation_keys(writer.rows, writer.batch, done=done)]
    squares = read_ahead(read, (row for block in blocks for row in block), os.cpu_count() or 1, 2 * writer.batch)
    with progress.bar("Predict", writer.rows, "images", min(len(done) * writer.batch, writer.rows)) as advance:
        for block in blocks:
            by_row = {row: next(squares) for row in block}
            good = {row: square for row, square in by_row.items() if not isinstance(square, str)}
            bad = [(row, reason) for row, reason in by_row.items() if isinstance(reason, str)]
            empty = np.empty((0, tagger.size, tagger.size, 3), dtype=np.uint8)
            scores = tagger(np.stack(list(good.values())) if good else empty).astype(np.float16)
            writer.write(block[0] // writer.batch, np.array(list(good), dtype=np.int64), scores, bad, 0)
            runner.check_interrupts(interrupts.code, advance(len(block)), writer.rows)


def columns_by_name(names: Sequence[str], aliases: Mapping[str, str] | None = None) -> dict[str, list[int]]:
    """Return the columns of each name, after aliases, in the order of first occurrence."""
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(map(canonical, names)):
        columns.setdefault(canonical((aliases or {}).get(name, name)), []).append(column)
    return columns


def _columns_of(names: Sequence[str], wanted: Sequence[str]) -> list[list[int]]:
    """Return the columns of each wanted name, perhaps none."""
    columns = columns_by_name(names)
    return [columns.get(canonical(name), []) for name in wanted]


def merge_labels(labels: csc_array, columns: Sequence[Sequence[int]]) -> csc_array:
    """Merge columns of labels, bool [P, M]: column j of the result, bool [P, N], is set where any of columns[j] is."""
    target = np.repeat(np.arange(len(columns)), [len(group) for group in columns])
    source = np.array([column for group in columns for column in group], dtype=np.int64)
    choice = csc_array((np.ones(len(source), dtype=np.int8), (source, target)), (labels.shape[1], len(columns)))
    merged = csc_array((labels.astype(np.int8) @ choice).astype(bool))
    merged.sort_indices()
    return merged

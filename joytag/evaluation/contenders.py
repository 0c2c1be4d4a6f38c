"""Taggers of any kind, as directories, to their predictions on a dataset's validation images."""

from __future__ import annotations

import hashlib
import json
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array

from joytag.core import devices, progress
from joytag.core.errors import Exit
from joytag.core.files import file_hash
from joytag.core.parallel import read_ahead
from joytag.core.signals import Interrupts
from joytag.data import images, loader
from joytag.data.dataset import Dataset, TagTable
from joytag.data.tag_names import canonical
from joytag.evaluation import predictions, predictions_writer, runner
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.predictions_writer import PredictionsWriter
from joytag.models import checkpoint, release, wd_onnx
from joytag.models.wd_onnx import OnnxTagger

SPLIT = "validation"
BATCH = 64  # rows of a block of predictions
THRESHOLD = 0.4


class TaggerEntryError(ValueError):
    """A directory that holds no tagger, or one that cannot be used: one line with the remedy."""


@dataclass(frozen=True)
class TaggerEntry:
    """A tagger that was given: `kind` is predictions, release or ONNX, `path` its directory, `letter` short for it.

    Predictions are opened, and an ONNX tagger is loaded.
    """

    letter: str
    name: str
    kind: str
    path: Path
    threshold: float
    predictions: Predictions | None = None
    onnx: OnnxTagger | None = None


def open_taggers(paths: Sequence[Path], thresholds: Sequence[float] = (), device: str = "auto") -> list[TaggerEntry]:
    """Find out what directories hold, before any of it is used.

    That is predictions, a release, a checkpoint, a run (of which its release counts, or else its newest checkpoint) or
    an ONNX tagger in the WD layout. `thresholds` are one for all, one for each, or what taggers of that kind are used
    at. Raises ValueError naming the first directory that holds none of it, or is not readable.
    """
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise TaggerEntryError(f"{len(paths)} taggers: give from 2 to {len(string.ascii_uppercase)} directories")
    if len(thresholds) not in (0, 1, len(paths)):
        raise TaggerEntryError(
            f"--threshold: {len(thresholds)} of them; give one, or one for each of {len(paths)} taggers"
        )
    where, entrants = devices.pick_device(device), []
    for number, (path, name) in enumerate(zip(paths, short_names(paths), strict=True)):
        kind, path = _find(path)
        made = Predictions.open(path) if kind == "predictions" else None
        onnx = OnnxTagger.load(path, where) if kind == "ONNX" else None
        if kind == "release":
            release.read_config(path), release.read_tags(path)
        usual = wd_onnx.THRESHOLD if onnx else THRESHOLD
        threshold = thresholds[number % len(thresholds)] if thresholds else usual
        entrants.append(TaggerEntry(string.ascii_uppercase[number], name, kind, path, threshold, made, onnx))
    return entrants


def short_names(paths: Sequence[Path]) -> list[str]:
    """What tells paths apart: `runs/a/release` and `runs/b/release` are `a` and `b`."""
    parts = [path.resolve().parts for path in paths]
    before = _common(parts)
    after = _common([part[:before:-1] for part in parts])
    return ["/".join(part[before : len(part) - after]) or part[-1] for part in parts]


def _common(sequences: Sequence[Sequence[str]]) -> int:
    """How many first elements are the same in all."""
    return len(list(takewhile(lambda elements: len(set(elements)) == 1, zip(*sequences, strict=False))))


def _find(path: Path) -> tuple[str, Path]:
    """The kind of a tagger, and its directory. Raises EntrantError."""
    if not path.is_dir():
        raise TaggerEntryError(f"{path}: no such directory")
    config, weights = release.FILES[:2]
    if (path / wd_onnx.FILES[0]).exists():
        return "ONNX", path
    if (path / config).exists():
        return "release", path
    if (path / "release" / weights).exists():  # which are written last
        return "release", path / "release"
    for directory in (path, path / "predictions"):
        if (directory / predictions.PROVENANCE).exists():
            return "predictions", directory
    newest = checkpoint.newest(path / "checkpoints")
    if newest is None:
        raise TaggerEntryError(
            f"{path}: holds neither predictions ({predictions.PROVENANCE}) nor a release ({config}), a run (release/ "
            f"or checkpoints/) or an ONNX tagger ({' and '.join(wd_onnx.FILES)})"
        )
    return "release", newest


def predict(
    entrant: TaggerEntry, dataset: Dataset | None, output: Path, device: str = "auto", precision: str = "auto"
) -> Predictions:
    """A tagger's predictions: its own, or else made in `output`/predictions, going on where it was stopped.

    Raises ValueError with what is wrong about the tagger or the dataset, and Exit when a signal asked to stop.
    """
    if entrant.predictions is not None:
        return entrant.predictions
    if dataset is None:
        raise TaggerEntryError(f"{entrant.path}: its predictions have to be made; give --data")
    size = entrant.onnx.size if entrant.onnx else release.read_config(entrant.path).image_size
    image_dataset = loader.ImageDataset(dataset, SPLIT, size)
    where = devices.pick_device(device)
    dtype = devices.pick_dtype(precision, where)
    facts = runner.provenance(entrant.path, image_dataset, SPLIT, BATCH, where, dtype)
    if entrant.onnx:
        hashes = {name: file_hash(entrant.path / name) for name in wd_onnx.FILES}
        facts |= {"model_files": hashes, "dtype": "float32", "batch": BATCH}
    own = entrant.path / "predictions"
    if _is_there(own, facts):
        return Predictions.open(own)
    lasting = {key: facts[key] for key in sorted(facts.keys() - predictions.MOVABLE - predictions.ROUNDING)}
    digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12]
    directory = output / "predictions" / digest
    if not predictions_writer.is_finished(directory, facts):
        if entrant.onnx is None and release.read_tags(entrant.path) == dataset.tags.names:
            runner.predict_release(directory, entrant.path, dataset, SPLIT, BATCH, None, device, precision)
        else:
            _predict_foreign(entrant, image_dataset, facts, directory, where, dtype)
    return Predictions.open(directory)


def _is_there(directory: Path, facts: Mapping[str, Any]) -> bool:
    try:
        return predictions_writer.is_finished(directory, facts)
    except predictions.PredictionsError:  # of other weights, images or precision
        return False


def _predict_foreign(
    entrant: TaggerEntry,
    image_dataset: loader.ImageDataset,
    facts: Mapping[str, Any],
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Predictions of a tagger whose vocabulary is not the dataset's; what the dataset lacks is labelled nowhere."""
    known, posts = image_dataset.dataset.tags, image_dataset.posts
    if entrant.onnx:
        tags = entrant.onnx.tags
    else:
        network, names = release.load(entrant.path)
        tags = TagTable(names, *(_look_up(names, known, column) for column in ("categories", "counts", "totals")))
    work = PredictionsWriter(directory, len(image_dataset), len(tags), BATCH)
    done = work.begin(facts)
    with loader.worker_errors(), Interrupts() as interrupts:
        if entrant.onnx:
            _predict_onnx(work, done, entrant.onnx, image_dataset, interrupts)
        else:
            workers = loader.default_workers(device)
            runner.predict_blocks(work, done, network.to(device), image_dataset, workers, device, dtype, interrupts)
    labels = merge_labels(predictions.label_matrix(posts, len(known)), _columns_of(known.names, tags.names))
    work.finish(posts, labels, tags)


def _look_up(names: Sequence[str], known: TagTable, column: str) -> np.ndarray:
    """A column of a tag table for other names, 0 for those that it lacks."""
    values = dict(zip(known.names, getattr(known, column), strict=True))
    return np.array([values.get(name, 0) for name in names], dtype=getattr(known, column).dtype)


def _predict_onnx(
    work: PredictionsWriter,
    done: set[int],
    tagger: OnnxTagger,
    image_dataset: loader.ImageDataset,
    interrupts: Interrupts,
) -> None:
    """Do the blocks that are not `done`. Raises OnnxError, and Exit when a signal asked to stop."""

    def read(row: int) -> np.ndarray | str:
        try:
            return tagger.read(image_dataset.dataset.image_path(image_dataset.posts.hashes[row].tobytes()))
        except images.ImageError as error:
            return str(error)

    blocks = [[row for _, row in keys] for keys in loader.evaluation_keys(work.rows, work.batch, done=done)]
    squares = read_ahead(read, (row for block in blocks for row in block), os.cpu_count() or 1, 2 * work.batch)
    with progress.bar("Predict", work.rows, "images", min(len(done) * work.batch, work.rows)) as advance:
        for block in blocks:
            read_here = {row: next(squares) for row in block}
            good = {row: square for row, square in read_here.items() if not isinstance(square, str)}
            bad = [(row, reason) for row, reason in read_here.items() if isinstance(reason, str)]
            empty = np.empty((0, tagger.size, tagger.size, 3), dtype=np.uint8)
            scores = tagger(np.stack(list(good.values())) if good else empty).astype(np.float16)
            work.write(block[0] // work.batch, np.array(list(good), dtype=np.int64), scores, bad, 0)
            seen = advance(len(block))
            if interrupts.code:
                message = f"stopped after {seen:,} of {work.rows:,} images, as asked; the same command goes on"
                raise Exit(message, interrupts.code)


def columns_by_name(names: Sequence[str], aliases: Mapping[str, str] | None = None) -> dict[str, list[int]]:
    """Where each name is, after aliases, in order of their first places."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(map(canonical, names)):
        found.setdefault(canonical((aliases or {}).get(name, name)), []).append(place)
    return found


def _columns_of(names: Sequence[str], wanted: Sequence[str]) -> list[list[int]]:
    """The columns of each wanted name, perhaps none."""
    found = columns_by_name(names)
    return [found.get(canonical(name), []) for name in wanted]


def merge_labels(labels: csc_array, columns: Sequence[Sequence[int]]) -> csc_array:
    """Labels bool [P, N] whose column j holds where any of the columns[j] of others, bool [P, M], is set."""
    target = np.repeat(np.arange(len(columns)), [len(places) for places in columns])
    source = np.array([place for places in columns for place in places], dtype=np.int64)
    choice = csc_array((np.ones(len(source), dtype=np.int8), (source, target)), (labels.shape[1], len(columns)))
    found = csc_array((labels.astype(np.int8) @ choice).astype(bool))
    found.sort_indices()
    return found

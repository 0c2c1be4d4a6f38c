"""Run a model over the images of a split: to predictions on disk or, during training, to a histogram of its scores."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from joytag.core import devices, distributed, progress
from joytag.core.errors import Exit, ExitCode, ProcessLost
from joytag.core.signals import Interrupts
from joytag.core.spinning import sleeping_when_busy
from joytag.data import decoders, loader, order
from joytag.data.dataset import Dataset, DatasetError
from joytag.evaluation import predictions, predictions_writer
from joytag.evaluation.metrics import Histogram
from joytag.models import inference, matmul, release

TIMEOUT = 600  # seconds that processes wait for each other
BATCH = 64  # rows of a block of predictions


class Interrupted(Exception):
    """Raised when a validation is asked to stop."""


class Unfinished(Exit):
    """Raised when an evaluation stops early. It keeps the blocks that it has written, and resumes when run again."""


class VocabularyError(ValueError):
    """Raised when a model's tags are not those of the dataset."""


def agreed_exit_code(code: int) -> int:
    """Agree on an exit code, given that of each process: the code of one that was asked to stop, else 0."""
    interrupted, requeued = distributed.sums([code == ExitCode.INTERRUPTED, code == ExitCode.REQUEUE])
    return ExitCode.INTERRUPTED if interrupted else ExitCode.REQUEUE if requeued else 0


def score_histogram(
    model: nn.Module,
    image_dataset: loader.ImageDataset,
    batch: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype,
    timeout: int = TIMEOUT,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
) -> Histogram:
    """Return the histogram of the scores of every image of a split, each counted once, over all processes.

    Images that cannot be decoded are left out with a warning. `on_batch` gets each batch's logits and labels, on the
    device. `should_stop` is called after each batch, equally often in all processes; raises Interrupted when it returns
    true.
    """
    histogram_device = device if device.type == "cuda" else torch.device("cpu")
    histogram, bad = Histogram.zeros(len(image_dataset.dataset.tags), histogram_device), []
    keys = order.evaluation_keys(len(image_dataset), batch, distributed.rank(), distributed.world_size())
    with inference.evaluating(model):
        for loaded in loader.batches(image_dataset, keys, workers, device.type == "cuda", timeout):
            bad += loaded.bad
            if len(loaded):
                logits = inference.predict(model, loaded.images, device, dtype)
                labels = loaded.labels.to(device, non_blocking=True)
                on_batch(logits, labels)
                histogram.add(logits.sigmoid().to(histogram_device), labels.to(histogram_device))
            if should_stop():
                raise Interrupted
    if bad:
        warnings.warn(f"{bad[0][1]}: left out, with {len(bad) - 1} other images of this process", stacklevel=2)
    return Histogram(distributed.all_sum(histogram.table))


def predict_release(
    directory: Path,
    model: Path,
    dataset: Dataset,
    split: str,
    batch: int = BATCH,
    workers: int | None = None,
    device_name: str = "auto",
    precision: str = "auto",
) -> bool:
    """Write a release's predictions for a split to a directory, unless they are there already; over all processes.

    Returns whether this is the first process, which alone may read them. Raises PredictionsError, ReleaseError and
    DatasetError, VocabularyError when the release has other tags than the dataset, and Unfinished when a signal asks
    to stop or a process is lost. Raises InUse when another process writes them.
    """
    device = devices.pick_device(device_name)
    dtype = devices.pick_dtype(precision, device)
    names, config = release.read_tags(model), release.read_config(model)
    if names != dataset.tags.names:
        raise VocabularyError(
            f"{model}: its {len(names)} tags are not those of {dataset.directory}; compare it with another tagger, on "
            "the tags that all have"
        )
    image_dataset = loader.ImageDataset(dataset, split, config.image_size)
    provenance = collect_provenance(model, image_dataset, split, batch, device, dtype)
    writer = predictions_writer.PredictionsWriter(directory, len(image_dataset), len(names), batch)
    if workers is None:
        workers = decoders.default_workers(device)
    held = min(workers * loader.HELD * distributed.local_size(), -(-len(image_dataset) // batch))
    decoders.check_shared_memory(held, batch, config.image_size, len(names))
    try:
        with decoders.worker_errors(), distributed.process_group(device, TIMEOUT), ExitStack() as stack:
            if distributed.run_on_rank_zero(lambda: provenance["model_files"]) != provenance["model_files"]:
                raise release.ReleaseError(f"{model}: other processes read another model; a run may have just saved it")
            lock = partial(predictions_writer.lock_unless_finished, directory, provenance, stack)
            if distributed.run_on_rank_zero(lock):
                network = release.load(model)[0].to(device)
                done = distributed.run_on_rank_zero(lambda: writer.begin(provenance))
                with Interrupts(distributed.failed) as interrupts, inference.evaluating(network):
                    predict_blocks(writer, done, network, image_dataset, workers, device, dtype, interrupts)
                if distributed.rank() == 0:
                    labels = predictions.label_matrix(image_dataset.posts, len(names))
                    writer.finish(image_dataset.posts, labels, dataset.tags, partial(dataset.originals, split))
            return distributed.rank() == 0
    except ProcessLost as error:
        raise Unfinished(str(error)) from None


def predict_blocks(
    writer: predictions_writer.PredictionsWriter,
    done: Collection[int],
    model: nn.Module,
    image_dataset: loader.ImageDataset,
    workers: int,
    device: torch.device,
    dtype: torch.dtype,
    interrupts: Interrupts,
) -> None:
    """Predict and write the blocks that are not `done`; returns when all processes have written theirs.

    Raises Unfinished when a signal asks to stop.
    """
    matmul.prepare(model, device, dtype)
    rank, world = distributed.rank(), distributed.world_size()
    keys = order.evaluation_keys(writer.rows, writer.batch, rank, world, done)
    loaded = loader.batches(image_dataset, keys, workers, device.type == "cuda")
    so_far = min(len(done) * writer.batch, writer.rows)
    with sleeping_when_busy(), progress.bar("Predict", writer.rows, "images", so_far) as advance:
        for block, batch in zip(keys, loaded, strict=True):
            if block:
                scores = torch.empty(0, writer.n_tags, dtype=torch.float16)
                if len(batch):
                    scores = inference.predict(model, batch.images, device, dtype).sigmoid().half().cpu()
                writer.write(block[0][1] // writer.batch, batch.rows.numpy(), scores.numpy(), batch.bad, rank)
            finished = advance(world * writer.batch)
            check_interrupts(agreed_exit_code(interrupts.code), finished, writer.rows)


def check_interrupts(code: int, finished: int, total: int) -> None:
    """Raise Unfinished when an exit code is due, after `finished` of `total` images."""
    if code:
        raise Unfinished(f"stopped after {finished:,} of {total:,} images, as requested", code)


def collect_provenance(
    model: Path, image_dataset: loader.ImageDataset, split: str, batch: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the provenance of predictions: paths and hashes of model and dataset, precision, device, versions."""
    dataset, posts = image_dataset.dataset, image_dataset.posts
    return {
        "model": str(model),
        "model_files": release.hashes(model),
        "dataset": str(dataset.directory),
        "split": split,
        "split_sha256": dataset.content_hash(posts),
        "extension": dataset.extension,
        **dataset.copies,
        "sources": dataset.sources,
        "image_size": image_dataset.size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "batch": batch,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def find_dataset(source: predictions.Predictions) -> Dataset | None:
    """Open the dataset of predictions, if its directory still exists."""
    try:
        return Dataset.open(Path(str(source.provenance.get("dataset"))))
    except DatasetError:
        return None

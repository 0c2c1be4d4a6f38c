"""A model and images to predictions on disk, or, during training, to a histogram of the scores."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from joytag.core import devices, distributed, progress
from joytag.core.errors import Exit, ExitCode
from joytag.core.files import file_hash
from joytag.core.signals import Interrupts
from joytag.data import loader
from joytag.data.dataset import Dataset, DatasetError
from joytag.evaluation import predictions, predictions_writer
from joytag.evaluation.metrics import Histogram
from joytag.models import inference, release

TIMEOUT = 600  # seconds that processes wait for each other

Value = TypeVar("Value")


class Interrupted(Exception):
    """An evaluation was asked to stop."""


def agreed_exit_code(code: int) -> int:
    """The exit code that is due when any process is asked to stop, 0 if none is."""
    interrupted, requeued = distributed.sums([code == ExitCode.INTERRUPTED, code == ExitCode.REQUEUE])
    return ExitCode.INTERRUPTED if interrupted else ExitCode.REQUEUE if requeued else 0


def score_histogram(
    model: nn.Module,
    image_dataset: loader.ImageDataset,
    batch: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype,
    timeout: int = 600,
    stopping: Callable[[], bool] = lambda: False,
    seen: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
) -> Histogram:
    """The histogram of the scores of every image of a split, each once, over all processes.

    Images that cannot be decoded are left out, with a warning. `stopping` is asked after each batch, in all processes
    as often; raises Interrupted when one says so. `seen` is called with each batch's logits and labels, on the device.
    """
    where = device if device.type == "cuda" else torch.device("cpu")
    counted, bad = Histogram.zeros(len(image_dataset.dataset.tags), where), []
    keys = loader.evaluation_keys(len(image_dataset), batch, distributed.rank(), distributed.world_size())
    with inference.evaluating(model):
        for loaded in loader.batches(image_dataset, keys, workers, device.type == "cuda", timeout):
            bad += loaded.bad
            if len(loaded):
                logits = inference.predict(model, loaded.images, device, dtype)
                labels = loaded.labels.to(device, non_blocking=True)
                seen(logits, labels)
                counted.add(logits.sigmoid().to(where), labels.to(where))
            if stopping():
                raise Interrupted
    if bad:
        warnings.warn(f"{bad[0][1]}: left out, with {len(bad) - 1} others of this process", stacklevel=2)
    return Histogram(distributed.all_sum(counted.table))


def predict_release(
    directory: Path,
    model: Path,
    dataset: Dataset,
    split: str,
    batch: int = 64,
    workers: int | None = None,
    device_name: str = "auto",
    precision: str = "auto",
) -> bool:
    """Have a release's predictions for a split in a directory, computing what is not there yet; over all processes.

    Returns whether this is the first process, which alone knows that they are whole. Raises PredictionsError,
    ReleaseError and DatasetError; and Exit when a signal asks to stop or a process is lost, after which the same call
    goes on.
    """
    device = devices.pick_device(device_name)
    dtype = devices.pick_dtype(precision, device)
    names, config = release.read_tags(model), release.read_config(model)
    if names != dataset.tags.names:
        raise ValueError(
            f"{model}: its {len(names)} tags are not those of {dataset.directory}; "
            "scripts/compare.py judges taggers by the tags that they share with a dataset"
        )
    image_dataset = loader.ImageDataset(dataset, split, config.image_size)
    facts = provenance(model, image_dataset, split, batch, device, dtype)
    work = predictions_writer.PredictionsWriter(directory, len(image_dataset), len(names), batch)
    try:
        with loader.worker_errors(), distributed.process_group(device, TIMEOUT):
            if not on_rank_zero(lambda: predictions_writer.is_finished(directory, facts)):
                network = release.load(model)[0].to(device)
                done = on_rank_zero(lambda: work.begin(facts))
                count = loader.default_workers(device) if workers is None else workers
                with Interrupts(distributed.failed) as interrupts, inference.evaluating(network):
                    predict_blocks(work, done, network, image_dataset, count, device, dtype, interrupts)
                if distributed.rank() == 0:
                    work.finish(
                        image_dataset.posts, predictions.label_matrix(image_dataset.posts, len(names)), dataset.tags
                    )
            return distributed.rank() == 0
    except distributed.ProcessLost as error:
        raise Exit(f"{error}; the same command goes on") from None


def predict_blocks(
    work: predictions_writer.PredictionsWriter,
    done: Collection[int],
    model: nn.Module,
    image_dataset: loader.ImageDataset,
    workers: int,
    device: torch.device,
    dtype: torch.dtype,
    interrupts: Interrupts,
) -> None:
    """Do the blocks that are not `done`, over all processes, which return when all are. Raises Exit when stopped."""
    rank, world = distributed.rank(), distributed.world_size()
    keys = loader.evaluation_keys(work.rows, work.batch, rank, world, done)
    loaded = loader.batches(image_dataset, keys, workers, device.type == "cuda")
    with progress.bar("Predict", work.rows, "images", min(len(done) * work.batch, work.rows)) as advance:
        for block, batch in zip(keys, loaded, strict=True):
            if block:
                scores = torch.empty(0, work.n_tags, dtype=torch.float16)
                if len(batch):
                    scores = inference.predict(model, batch.images, device, dtype).sigmoid().half().cpu()
                work.write(block[0][1] // work.batch, batch.rows.numpy(), scores.numpy(), batch.bad, rank)
            seen = advance(world * work.batch)
            code = agreed_exit_code(interrupts.code)
            if code:
                message = f"stopped after {seen:,} of {work.rows:,} images, as asked; the same command goes on"
                raise Exit(message, code)


def provenance(
    model: Path, image_dataset: loader.ImageDataset, split: str, batch: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What predictions are of, and by what: paths, hashes, and how they are computed."""
    dataset, posts = image_dataset.dataset, image_dataset.posts
    content = hashlib.sha256("\n".join(dataset.tags.names).encode())
    for column in (posts.ids, posts.offsets, posts.tags, posts.hashes, posts.sources):
        content.update(np.ascontiguousarray(column).data)
    files = [path for name in (*release.FILES, release.OLD_WEIGHTS) if (path := model / name).is_file()]
    return {
        "model": str(model),
        "model_files": {path.name: file_hash(path) for path in files},
        "dataset": str(dataset.directory),
        "split": split,
        "split_sha256": content.hexdigest(),
        "extension": dataset.extension,
        "sources": dataset.sources,
        "image_size": image_dataset.size,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "batch": batch,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def find_dataset(found: predictions.Predictions) -> Dataset | None:
    """The dataset that was predicted, if it is still where it was."""
    try:
        return Dataset.open(Path(str(found.provenance.get("dataset"))))
    except DatasetError:
        return None


def on_rank_zero(action: Callable[[], Value]) -> Value:
    """What an action gives on rank 0, where alone it is done; on all processes, which all end when it fails there."""
    found: Any = None
    failure: Exception | None = None
    if distributed.rank() == 0:
        try:
            found = action()
        except (ValueError, OSError) as error:
            failure = error
    found, failed = distributed.broadcast((found, failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise Exit("rank 0 says why", 2)
    return found

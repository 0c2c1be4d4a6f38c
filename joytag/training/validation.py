"""Validation during training, and sample images for the tracker."""

from __future__ import annotations

import math

from torch import Tensor

from joytag.core import distributed
from joytag.core.signals import Interrupts
from joytag.data import loader
from joytag.evaluation.metrics import validation_metrics
from joytag.evaluation.runner import Interrupted, agreed_exit_code, score_histogram
from joytag.models import inference
from joytag.training.run import Run
from joytag.training.state import TrainState
from joytag.training.tracker import Tracker

SAMPLE_IMAGES = 8  # validation images that the tracker shows with their predictions
SAMPLE_TAGS = 10  # tags in such an image's caption


def validate(state: TrainState, run: Run, interrupts: Interrupts) -> dict[str, float] | None:
    """Return the loss and metrics of the validation split at the stage's image size; None if interrupted.

    Metrics that are undefined, such as mAP without positives, are left out.
    """
    model, config = state.released, run.config
    distributed.broadcast_tensors(model.buffers())
    images = loader.ImageDataset(run.dataset, "validation", model.config.image_size)
    losses: list[Tensor] = []

    def add_loss(logits: Tensor, labels: Tensor) -> None:
        losses.append(run.criterion(logits, labels).double() * len(labels))

    loading = run.micro_batch, run.workers, run.device, run.dtype, config.data.timeout
    try:
        scores = score_histogram(
            model, images, *loading, should_stop=lambda: agreed_exit_code(interrupts.code) > 0, on_batch=add_loss
        )
    except Interrupted:
        return None
    (loss_sum,) = distributed.sums([float(sum(losses)) * config.loss.multiplier])
    n_images = int(scores.table[:, 0].sum())
    metrics = {"loss": loss_sum / n_images if n_images else math.nan} | validation_metrics(scores, config.threshold)
    return {f"val_{name}": value for name, value in metrics.items() if name == "loss" or not math.isnan(value)}


def show_samples(state: TrainState, run: Run, tracker: Tracker) -> None:
    """Send some validation images with their highest-scoring tags to the tracker, if it shows images."""
    if not tracker.shows_images:
        return
    model, tags = state.released, run.dataset.tags.names
    images = loader.ImageDataset(run.dataset, "validation", model.config.image_size)
    batch = images.__getitems__([(0, row) for row in range(min(SAMPLE_IMAGES, len(images)))])
    if isinstance(batch, loader.Batch) and len(batch):
        with inference.evaluating(model):
            scores = inference.predict(model, batch.images, run.device, run.dtype).sigmoid().cpu()
        captions = []
        for row, labels in zip(scores, batch.labels, strict=True):
            best = row.topk(min(SAMPLE_TAGS, len(tags))).indices.tolist()
            captions.append(", ".join(f"{tags[i]} {row[i]:.2f}{' (right)' if labels[i] else ''}" for i in best))
        tracker.images(state.samples, batch.images.permute(0, 2, 3, 1).numpy(), captions)

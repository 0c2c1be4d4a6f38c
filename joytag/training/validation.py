"""Validation during training, and sample images for the tracker."""

from __future__ import annotations

import math

from joytag.core import distributed
from joytag.core.signals import Interrupts
from joytag.data import loader
from joytag.evaluation.metrics import validation_metrics
from joytag.evaluation.runner import Interrupted, agreed_exit_code, score_histogram
from joytag.models import inference
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
)
from joytag.training.tracker import Tracker

SHOWN = 8  # validation images that go to wandb with their predictions


def validate(state: TrainState, run: Run, interrupts: Interrupts) -> dict[str, float] | None:
    """Loss, averages and mAP on the validation split at the stage's image size, where defined; None if interrupted."""
    model, config = state.released, run.config
    distributed.broadcast_tensors(model.buffers())
    image_dataset = loader.ImageDataset(run.dataset, "validation", model.config.image_size)
    where, losses = (run.device, run.dtype), []
    try:
        scores = score_histogram(
            model, image_dataset, run.micro_batch, run.workers, *where, config.data.timeout,
            stopping=lambda: agreed_exit_code(interrupts.code) > 0,
            seen=lambda logits, labels: losses.append(run.criterion(logits, labels).double() * len(labels)),
        )  # fmt: skip
    except Interrupted:
        return None
    (loss_sum,) = distributed.sums([float(sum(losses)) * config.loss.multiplier])
    seen = int(scores.table[:, 0].sum())
    figures = {"loss": loss_sum / seen if seen else math.nan} | validation_metrics(scores, config.threshold)
    return {f"val_{name}": value for name, value in figures.items() if name == "loss" or not math.isnan(value)}


def show_samples(state: TrainState, run: Run, tracker: Tracker) -> None:
    """Send some validation images to the tracker, if it shows them, with the tags that the model sees in them."""
    if not tracker.shows:
        return
    model, tags = state.released, run.dataset.tags.names
    image_dataset = loader.ImageDataset(run.dataset, "validation", model.config.image_size)
    batch = image_dataset.__getitems__([(0, row) for row in range(min(SHOWN, len(image_dataset)))])
    if isinstance(batch, loader.Batch) and len(batch):
        was_training = model.training
        scores = inference.predict(model.eval(), batch.images, run.device, run.dtype).sigmoid().cpu()
        model.train(was_training)
        captions = []
        for row, labels in zip(scores, batch.labels, strict=True):
            best = row.topk(min(10, len(tags))).indices.tolist()
            captions.append(", ".join(f"{tags[i]} {row[i]:.2f}{' (right)' if labels[i] else ''}" for i in best))
        tracker.images(state.samples, batch.images.permute(0, 2, 3, 1).numpy(), captions)

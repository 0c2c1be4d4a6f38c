"""What is measured on a trial to test a claim: a metric with its resamples of the images, or a number without any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.data.preprocessing import normalize
from joytag.evaluation import bootstrap, contenders, curves, runner
from joytag.evaluation.contenders import TaggerEntry
from joytag.evaluation.predictions import DIRECTORY, Predictions
from joytag.evaluation.resampled import Resampled
from joytag.models import release
from joytag.models.inference import autocast
from joytag.sweeps.config import Trial
from joytag.sweeps.results import RESAMPLES, measure_rows
from joytag.training import losses, tracker

SCALER_START = 2.0**16  # the first scale of torch's gradient scaler
PUBLISHED_TAGS = 5813  # over which the published run averages its loss
BATCH = 64  # images whose gradients are computed


def constant(value: float) -> Resampled:
    """Return a number that other images would not change."""
    return Resampled(value, np.full(RESAMPLES, value))


def final(trial: Trial) -> Resampled:
    """Measure the mAP of a trial on its validation images; 0 if it diverged, and so has no predictions."""
    directory = trial.results / DIRECTORY
    return _mean_precision(directory) if directory.is_dir() else constant(0.0)


def on_training_images(trial: Trial, data: Path) -> Resampled:
    """Measure the mAP of a trial on the images of a dataset that it was trained on."""
    directory = trial.directory / "training_predictions"
    runner.predict_release(directory, trial.results, Dataset.open(data), "train")
    return _mean_precision(directory)


def on_source(trial: Trial, data: Path, source: str) -> Resampled:
    """Measure the mAP of a trial on the validation images of a dataset that come from one of its sources."""
    tagger = TaggerEntry("", trial.name, "release", trial.results, trial.threshold)
    predicted = contenders.predict(tagger, Dataset.open(data), trial.directory)
    return _mean_precision(predicted.directory, source)


@cache
def _mean_precision(directory: Path, source: str | None = None) -> Resampled:
    opened = Predictions.open(directory)
    return measure_rows(opened, slice(None) if source is None else opened.sources == opened.source_names.index(source))


def lowest_loss(trials: Sequence[Trial]) -> int:
    """Return the samples after which the mean validation loss of trials, validated equally often, was lowest."""
    losses: dict[int, list[float]] = {}
    for trial in trials:
        for samples, loss in tracker.curve(trial.directory / tracker.LOG, "val_loss"):
            losses.setdefault(samples, []).append(loss)
    return min(losses, key=lambda samples: np.mean(losses[samples]))


def logged(trial: Trial, name: str, samples: int | None = None) -> Resampled:
    """Return a metric that a trial has logged after a number of samples, by default at its end."""
    curve = dict(tracker.curve(trial.directory / tracker.LOG, name))
    return constant(curve[max(curve) if samples is None else samples])


def break_even(trial: Trial) -> Resampled:
    """Return the threshold at which a trial's macro precision and recall are equal, as `curves.choose_thresholds`."""
    opened = Predictions.open(trial.results / DIRECTORY)
    labels, images = opened.labels.tocsc(), np.arange(len(opened))

    def of_images(rows: NDArray[np.int64]) -> float:
        return curves.choose_thresholds(curves.compute_curves(opened.scores, labels, rows))["macro_break_even"]

    weights = bootstrap.resample_weights(len(images), resamples=RESAMPLES, families=opened.families)
    resamples = [np.repeat(images, weight.astype(int)) for block in weights for weight in block.T]
    return Resampled(of_images(images), np.array([of_images(rows) for rows in resamples]))


def lost_gradients(model: Path, data: Path, multiplier: float, scale: float) -> dict[str, float]:
    """Return the share of the gradients of each part of a model that are not 0 in float32, but 0 or infinite in fp16.

    The loss is the focal loss of BATCH training images, averaged as if over PUBLISHED_TAGS, times `multiplier`; its
    gradients are scaled by `scale`, as a gradient scaler does. Parts: the stem, each block, the head; `all` of them.
    """
    exact, rounded = (_gradients(model, data, multiplier * scale, dtype) for dtype in (torch.float32, torch.float16))
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"all": []}
    for name, gradient in exact.items():
        first, number, *_ = name.split(".")
        part = f"block {int(number) + 1}" if first == "blocks" else "head" if first in ("norm", "head") else "stem"
        for key in (part, "all"):
            parts.setdefault(key, []).append((gradient, rounded[name]))
    return {
        part: float(
            sum(((a != 0) & ((b == 0) | ~b.isfinite())).sum() for a, b in pairs) / sum((a != 0).sum() for a, _ in pairs)
        )
        for part, pairs in parts.items()
    }


@cache
def _gradients(directory: Path, data: Path, factor: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the gradients of a release's parameters by name, of its loss times `factor`, computed in a format."""
    model, _ = release.load(directory)
    images = loader.ImageDataset(Dataset.open(data), "train", model.config.image_size)
    batch = images.__getitems__([(0, row) for row in range(min(BATCH, len(images)))])
    assert isinstance(batch, loader.Batch)
    model.eval()
    with autocast(torch.device("cpu"), dtype):
        logits = model(normalize(batch.images))
    share = batch.labels.shape[1] / PUBLISHED_TAGS
    (losses.focal(logits.float(), batch.labels.float()) * share * factor).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

"""Intervals over images: how much metrics would vary on other images of the same kind.

The bootstrap (Efron 1979) draws resamples of as many images, with replacement, and takes the 2.5th and 97.5th
percentile of a metric over them. Images that vary one another are drawn together: what is drawn are families. A
resample is a weight per image, so the counts in all resamples are one sparse product. The model and its thresholds are
taken as fixed: intervals do not include their variation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation.metrics import Counts, averages, histograms

RESAMPLES = 1000
BLOCK = 25  # resamples that are processed together, so that they fit the processor's cache
MetricFunction = Callable[[Counts], Mapping[str, Any]]
Resample = Callable[..., dict[str, dict[str, NDArray[np.float64]]]]  # `replicates` with its options


@dataclass(frozen=True)
class Interval:
    """A metric and the bounds of its 95 % percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than noise: all of its interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(value: float, replicates: NDArray[np.float64]) -> Interval:
    """Return a metric with the centred 2.5th and 97.5th percentile of its defined replicates [R].

    Centred: shifted so that the mean of the replicates is the metric. A resample lacks a third of the images and holds
    others twice, which lowers macro averages of rare tags, so that the metric may be outside the plain percentiles.
    The bounds are clipped to the range of a share, or of a difference of shares.
    """
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or not len(defined):
        return Interval(float(value), np.nan, np.nan)
    bounds = np.percentile(defined, (2.5, 97.5)) + (value - defined.mean())
    low, high = bounds.clip(0 if min(value, defined.min()) >= 0 else -1, 1)
    return Interval(float(value), float(low), float(high))


def number_families(images: int, families: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], int]:
    """Return each image's family as a number from 0, int64 [P], and the number of families; None: an image each."""
    number = np.arange(images) if families is None else np.unique(families, return_inverse=True)[1]
    return number, int(number.max(initial=-1)) + 1


def resample_weights(
    images: int, seed: int = 0, resamples: int = RESAMPLES, families: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield how often each resample holds each image: float32 [P, up to BLOCK resamples], block by block.

    `families`, int64 [P], are the same for images that are drawn together; None: each image is drawn alone.
    """
    rng = np.random.default_rng(seed)
    number, count = number_families(images, families)
    for start in range(0, resamples, BLOCK):
        block = np.empty((min(BLOCK, resamples - start), images), dtype=np.float32)
        for row in block:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)[number]
        yield np.ascontiguousarray(block.T)


def replicates(
    labels: csc_array,
    decisions: Mapping[str, csc_array],
    measure: MetricFunction = averages,
    seed: int = 0,
    resamples: int = RESAMPLES,
    families: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the metrics of several sets of decisions in every resample: name -> metric -> float64 [R].

    Takes labels, bool [P, N], decisions, bool [P, N], by name, and `families` as `resample_weights`. All are counted in
    the same resamples, so that differences are paired: pass `a["macro_f1"] - b["macro_f1"]` to `interval`. `measure`
    computes metrics from Counts [N, R], whole numbers in float32; it is `metrics.averages` or a similar function.
    """
    by_image = labels.tocsr()  # rows are images, which makes products twice as fast
    decisions_by_image = {name: predicted.tocsr() for name, predicted in decisions.items()}
    hits = {name: predicted.multiply(by_image) for name, predicted in decisions_by_image.items()}
    blocks: dict[str, list[Mapping[str, Any]]] = {name: [] for name in decisions}
    for weight in resample_weights(labels.shape[0], seed, resamples, families):
        positives = by_image.T @ weight
        for name, measured in blocks.items():
            tp, predicted = hits[name].T @ weight, decisions_by_image[name].T @ weight
            tn = weight.sum(axis=0) - predicted - positives + tp
            measured.append(measure(Counts(tp, predicted - tp, positives - tp, tn)))
    return {
        name: {metric: np.concatenate([block[metric] for block in measured]) for metric in measured[0]}
        for name, measured in blocks.items()
    }


def ap_influence(scores: NDArray[np.float16], labels: csc_array, tags: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the derivative of mean average precision with respect to each image's weight: float64 [P], summing to 0.

    Takes scores float16 [P, N], labels bool [P, N] and the tags of the mean, int64, each with a positive. AP is the
    mean over positives p of TP(p) / (TP(p) + FP(p)), which count the images that score at least as high as p. So the
    derivative for an image with the tag is the difference of its own precision from AP, plus
    FP(p) / (TP(p) + FP(p))^2 for each p that scores at most as high; for an image without the tag it is
    -TP(p) / (TP(p) + FP(p))^2 for these p; all divided by the number of positives.
    """
    influence, share = np.zeros(scores.shape[0]), np.zeros(scores.shape[1])
    share[tags] = 1 / (np.diff(labels.indptr)[tags] * len(tags))
    first = 0
    for levels, table in histograms(scores, labels):
        for i in np.flatnonzero(share[first : first + len(levels)]):
            carriers = labels.indices[labels.indptr[first + i] : labels.indptr[first + i + 1]]
            with_tag, without = _ap_slopes(*table[:, i])
            without *= share[first + i]
            influence -= without.take(levels[i])
            influence[carriers] += share[first + i] * with_tag.take(levels[i, carriers])
        first += len(levels)
    return influence


def _ap_slopes(
    negative: NDArray[np.int32], positive: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what an image's weight adds to a tag's AP if it has the tag, and what it subtracts in any case.

    Both by the image's level, float64 [LEVELS], times the number of positives. Takes the numbers of images without and
    with the tag at each level.
    """
    positive = positive.astype(np.float64)
    tp, predicted = (count[::-1].cumsum()[::-1] for count in (positive, positive + negative))
    precision = tp / np.maximum(predicted, 1)
    without = positive / np.maximum(predicted, 1)
    with_tag = without.cumsum() + precision - (positive * precision).sum() / tp[0]
    return with_tag, (without * precision).cumsum()


def ap_replicates(
    value: float,
    influence: NDArray[np.float64],
    seed: int = 0,
    resamples: int = RESAMPLES,
    families: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return mean average precision in every resample, float64 [R], linearized with the result of `ap_influence`.

    The resamples are those of `replicates`. The error is of second order: smaller, the more positives the tags have. A
    tag without a positive in a resample stays in the mean.
    """
    parts = [weight.T @ influence for weight in resample_weights(len(influence), seed, resamples, families)]
    return value + np.concatenate(parts) - influence.sum()

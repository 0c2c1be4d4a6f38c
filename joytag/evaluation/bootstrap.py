"""Intervals over images: how far figures would scatter, had other images of the same kind been drawn.

The bootstrap (Efron 1979): resamples of as many images, drawn with replacement, and the 2.5th and 97.5th percentile
of a figure over them. A resample is a weight per image, and counts in all resamples are one sparse product. The model
and its thresholds are taken as given, so intervals do not tell how these would scatter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from joytag.evaluation.metrics import Counts, averages, histograms

RESAMPLES = 1000
BLOCK = 25  # resamples at a time, so that what is worked on stays in the cache
MetricFunction = Callable[[Counts], Mapping[str, Any]]


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95 % percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than noise: its whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(value: float, replicates: np.ndarray) -> Interval:
    """A figure with the 2.5th and 97.5th percentile of its replicates [R], of those that are defined; centred.

    Centred: moved so that the mean of the replicates is the figure. In a resample a third of the images is missing
    and others are there twice, which lowers the macro figures of rare tags; percentiles as they are may then lie
    beside the figure. So the interval is of what samples of this size give. It stays within what a share can be,
    or a difference of shares.
    """
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or not len(defined):
        return Interval(float(value), np.nan, np.nan)
    bounds = np.percentile(defined, (2.5, 97.5)) + (value - defined.mean())
    low, high = bounds.clip(0 if min(value, defined.min()) >= 0 else -1, 1)
    return Interval(float(value), float(low), float(high))


def resample_weights(images: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each resample holds each image, float32 [P, at most BLOCK resamples], block by block."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        block = np.empty((min(BLOCK, resamples - start), images), dtype=np.float32)
        for row in block:
            row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
        yield np.ascontiguousarray(block.T)


def replicates(
    labels: csc_array,
    decisions: Mapping[str, csc_array],
    measure: MetricFunction = averages,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, np.ndarray]]:
    """Figures of each of several sets of decisions in every resample: name -> figure -> float64 [R].

    Takes bool [P, N] labels and, by name (thresholds of a model, or models), what was predicted. All are counted in
    the same resamples, so differences between them are paired: `a["macro_f1"] - b["macro_f1"]`, into `interval`.
    `measure` makes the figures of Counts [N, R], float32 but whole; it is `metrics.averages` or a function of its kind.
    """
    rows = {name: made.tocsr() for name, made in decisions.items()}  # by image: twice as fast to multiply
    hits = {name: made.multiply(labels.tocsr()) for name, made in rows.items()}
    carried = labels.tocsr()
    blocks: dict[str, list[Mapping[str, Any]]] = {name: [] for name in decisions}
    for weight in resample_weights(labels.shape[0], seed, resamples):
        positives = carried.T @ weight
        for name, found in blocks.items():
            tp, predicted = hits[name].T @ weight, rows[name].T @ weight
            tn = np.float32(len(weight)) - predicted - positives + tp
            found.append(measure(Counts(tp, predicted - tp, positives - tp, tn)))
    return {
        name: {figure: np.concatenate([block[figure] for block in found]) for figure in found[0]}
        for name, found in blocks.items()
    }


def ap_influence(scores: np.ndarray, labels: csc_array, tags: np.ndarray) -> np.ndarray:
    """The derivative of mean average precision by each image's weight: float64 [P], which add up to 0.

    Takes scores float16 [P, N], labels bool [P, N] and which tags the mean is over, int64, each with a positive. AP is
    the mean, over positives p, of TP(p) / (TP(p) + FP(p)), counting what scores no less than p. So an image with
    the tag has its own precision's difference from AP, plus FP(p) / (TP(p) + FP(p))^2 for each p that scores no more;
    one without has -TP(p) / (TP(p) + FP(p))^2 for these p; all of it divided by the positives.
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


def _ap_slopes(negative: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an image's weight adds to a tag's AP, if it has the tag, and what it takes away in any case, both times the
    positives: float64 [LEVELS]. Takes how many images without and with the tag have each level.
    """
    positive = positive.astype(np.float64)
    tp, predicted = (count[::-1].cumsum()[::-1] for count in (positive, positive + negative))
    precision = tp / np.maximum(predicted, 1)
    without = positive / np.maximum(predicted, 1)
    with_tag = without.cumsum() + precision - (positive * precision).sum() / tp[0]
    return with_tag, (without * precision).cumsum()


def ap_replicates(value: float, influence: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Mean average precision in every resample, float64 [R]: linearised, by `ap_influence`.

    The resamples are those of `replicates`. What is left out is of second order: the more positives tags have, the
    smaller; a tag that a resample has no positive of stays in the mean.
    """
    parts = [weight.T @ influence for weight in resample_weights(len(influence), seed, resamples)]
    return value + np.concatenate(parts) - influence.sum()

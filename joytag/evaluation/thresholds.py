"""Thresholds chosen on one half of the images and tried on the other, never on the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.metrics import LEVELS, VALUES, Curves

PRIOR = 3  # positives that all tags together count as beside a tag's own; of models tried, 1 to 10 suited most


@dataclass(frozen=True)
class CrossFit:
    """What is predicted, bool [P, N], at thresholds that were chosen on the other half of the images.

    `first` are the images of one half, bool [P]. `shared`: at the threshold with the best macro F1; `own`: at each
    tag's `shrunk_thresholds`.
    """

    first: np.ndarray
    shared: csc_array
    own: csc_array


def random_half(images: int, seed: int = 0) -> np.ndarray:
    """Which images are in the first of two random halves, bool [P]."""
    return np.random.default_rng(seed).permutation(images) < images // 2


def cross_fit(scores: np.ndarray, labels: csc_array, seed: int = 0) -> CrossFit:
    """Choose thresholds on each of two random halves and decide with them on the other.

    Takes scores float16 [P, N] and labels bool [P, N].
    """
    first = random_half(len(scores), seed)
    shared, own = [], []
    for half in (~first, first):
        rows = np.flatnonzero(half)
        found = metrics.curves(table for _, table in metrics.histograms(scores, labels, rows))
        shared.append(metrics.thresholds(found)["best_macro_f1"])
        own.append(shrunk_thresholds(scores, labels, found, rows))
    return CrossFit(first, *(_decide(scores, of, first) for of in (shared, own)))


def _decide(scores: np.ndarray, of: list, first: np.ndarray) -> csc_array:
    """What is predicted at one choice of thresholds in the first half and at another in the second."""
    here, there = (metrics.predicted(scores, threshold) for threshold in of)
    where = first[:, None]
    return csc_array(here.multiply(where) + there.multiply(~where))


def shrunk_thresholds(
    scores: np.ndarray, labels: csc_array, curves: Curves, rows: np.ndarray | None = None, prior: float = PRIOR
) -> np.ndarray:
    """A threshold a tag, float64 [N], that lean on the one that all tags share the more, the fewer positives there are.

    The threshold that is best for a handful of positives fits their accidents: on other images it does worse than one
    that all tags share. So what is maximized is (n F1 + prior M) / (n + prior), of the tag's F1, its n positives and
    the macro F1 of all tags, M, at the same threshold. Tags without positives get the threshold of the best macro F1.
    `curves` are those of the same `rows`.
    """
    macro = prior * np.nan_to_num(curves.macro_f1)[::-1]
    levels = []
    for _, (predicted, tp, scratch) in metrics.cumulative_tables(
        t for _, t in metrics.histograms(scores, labels, rows)
    ):
        n = tp[:, -1:].copy()
        np.divide(tp, np.maximum(np.add(predicted, n, out=predicted), 1, out=predicted), out=scratch)
        scratch *= 2 * n
        scratch += macro
        levels.append(LEVELS - 1 - scratch.argmax(axis=1))
    level = np.concatenate(levels)
    return (VALUES[level] + np.append(VALUES, metrics.BELOW)[level - 1]) / 2

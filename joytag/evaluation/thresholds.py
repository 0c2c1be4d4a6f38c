"""Thresholds chosen on one half of the images and evaluated on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.bootstrap import number_families
from joytag.evaluation.curves import BELOW, Curves, choose_thresholds, compute_curves
from joytag.evaluation.metrics import LEVELS, VALUES

PRIOR = 3  # positives that the average over all tags counts as; of the values tried, 1 to 10 suited most models


@dataclass(frozen=True)
class CrossFit:
    """Decisions, bool [P, N], at thresholds chosen on the other half of the images.

    `first_half`: the images of one half, bool [P]. `shared`: at the threshold with the best macro F1. `per_tag`: at
    each tag's `shrunk_thresholds`.
    """

    first_half: NDArray[np.bool_]
    shared: csc_array
    per_tag: csc_array


def random_half(images: int, seed: int = 0, families: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Return which images are in the first of two random halves, bool [P].

    It is half of the `families`, int64 [P], which are the same for images that vary one another; None: of the images.
    """
    number, count = number_families(images, families)
    return (np.random.default_rng(seed).permutation(count) < count // 2)[number]


def cross_fit(
    scores: NDArray[np.float16], labels: csc_array, seed: int = 0, families: NDArray[np.int64] | None = None
) -> CrossFit:
    """Choose thresholds on each of two random halves and decide with them on the other.

    Takes scores float16 [P, N], labels bool [P, N] and `families` as `random_half`.
    """
    first_half = random_half(len(scores), seed, families)
    shared, per_tag = [], []
    for half in (~first_half, first_half):
        rows = np.flatnonzero(half)
        curves = compute_curves(scores, labels, rows)
        shared.append(choose_thresholds(curves)["best_macro_f1"])
        per_tag.append(shrunk_thresholds(scores, labels, curves, rows))
    return CrossFit(
        first_half,
        shared=predicted_by_half(scores, first_half, *shared),
        per_tag=predicted_by_half(scores, first_half, *per_tag),
    )


def predicted_by_half(
    scores: NDArray[np.float16],
    first_half: NDArray[np.bool_],
    first: float | NDArray[np.float64],
    second: float | NDArray[np.float64],
) -> csc_array:
    """Return the decisions, bool [P, N], at `first` in the first half, bool [P], and at `second` in the other half.

    Each is one threshold or one per tag [N]; nothing is predicted at NaN.
    """
    in_first = first_half[:, None]
    at_first, at_second = metrics.predicted(scores, first), metrics.predicted(scores, second)
    return csc_array(at_first.multiply(in_first) + at_second.multiply(~in_first), dtype=bool)


def shrunk_thresholds(
    scores: NDArray[np.float16],
    labels: csc_array,
    curves: Curves,
    rows: NDArray[np.int64] | None = None,
    prior: float = PRIOR,
) -> NDArray[np.float64]:
    """Return a threshold per tag, float64 [N]; the fewer positives a tag has, the closer to the one all tags share.

    The best threshold for a handful of positives overfits: on other images it does worse than a threshold that all tags
    share. So the threshold maximizes (n F1 + prior M) / (n + prior), with the tag's F1, its n positives,
    and M, the macro F1 of all tags at the same threshold. Tags without positives get the threshold of the best macro
    F1. `curves` are those of the same `rows`.
    """
    macro = prior * np.nan_to_num(curves.macro.f1)[::-1]
    tables = (table for _, table in metrics.histograms(scores, labels, rows))
    levels = []
    for _, predicted, tp, scratch in metrics.cumulative_counts(tables):
        n = tp[:, -1:].copy()
        np.divide(tp, np.maximum(np.add(predicted, n, out=predicted), 1, out=predicted), out=scratch)
        scratch *= 2 * n
        scratch += macro
        levels.append(LEVELS - 1 - scratch.argmax(axis=1))
    level = np.concatenate(levels)
    return (VALUES[level] + np.append(VALUES, BELOW)[level - 1]) / 2

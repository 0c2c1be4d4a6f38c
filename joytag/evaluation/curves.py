"""Metrics at every threshold, the thresholds where they are best, and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation.metrics import (
    LEVELS,
    VALUES,
    Counts,
    average_precision_at,
    cumulative_counts,
    from_counts,
    histograms,
)

BELOW = -(2.0**-24)  # stands for the level below 0, where everything is predicted
BINS = 15  # of a reliability curve


class PrecisionRecallF1(NamedTuple):
    """Precision, recall and F1 at several thresholds: float64 arrays of one length."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Metrics at every threshold; index l means "predicted when the level is at least l".

    Per tag, [N]: `positives` int64; `ap`, `best_f1`, `best_threshold`, `ece` float64, all but `ece` NaN for tags
    without positives. Over all tags, [LEVELS]: `micro_tp`, `micro_fp`, `tags_predicted` int64, and `macro` as in
    `averages`.
    """

    positives: NDArray[np.int64]
    ap: NDArray[np.float64]
    best_f1: NDArray[np.float64]
    best_threshold: NDArray[np.float64]
    ece: NDArray[np.float64]
    micro_tp: NDArray[np.int64]
    micro_fp: NDArray[np.int64]
    macro: PrecisionRecallF1
    tags_predicted: NDArray[np.int64]

    @property
    def micro(self) -> PrecisionRecallF1:
        """Micro averages, [LEVELS]."""
        counts = Counts(self.micro_tp, self.micro_fp, self.positives.sum() - self.micro_tp, np.zeros(LEVELS))
        values = from_counts(counts)
        return PrecisionRecallF1(values["precision"], values["recall"], values["f1"])

    def at(self, levels: NDArray[np.int64], thresholds: NDArray[np.float64]) -> SampledCurves:
        """Return the averages at some levels, int64, which `thresholds` of the same length name."""
        macro, micro = (PrecisionRecallF1(*(values[levels] for values in kind)) for kind in (self.macro, self.micro))
        return SampledCurves(thresholds, macro, micro)


@dataclass(frozen=True)
class SampledCurves:
    """Macro and micro averages at some thresholds: float64 arrays of one length."""

    threshold: NDArray[np.float64]
    macro: PrecisionRecallF1
    micro: PrecisionRecallF1


def compute_curves(scores: NDArray[np.float16], labels: csc_array, rows: NDArray[np.int64] | None = None) -> Curves:
    """Return the curves of stored scores, float16 [P, N], and labels, bool [P, N]; of some rows if given."""
    tables = (table for _, table in histograms(scores, labels, rows))
    of_tags, sums = [], np.zeros((6, LEVELS))
    for table, predicted, tp, scratch in cumulative_counts(tables):
        n = tp[:, -1].copy()
        # The order matters: the first two overwrite `scratch`, and the precision overwrites `predicted`.
        ece = _calibration_error(table, tp, scratch)
        best_f1, best_threshold, f1_sum = _best_f1(predicted, tp, scratch)
        tags_predicted = _tags_predicted(predicted[n > 0])
        tp_sum, predicted_sum = tp.sum(0), predicted.sum(0)
        precision = np.divide(tp, np.maximum(predicted, 1, out=predicted), out=predicted)
        # Not by BLAS: its threads would wait for each other at every table, which is slow where cores are shared.
        recall_sum = np.einsum("n,nl->l", np.divide(1, n, out=np.zeros_like(n), where=n > 0), tp)
        of_tags.append(np.stack([n, average_precision_at(table, precision), best_f1, best_threshold, ece]))
        sums += np.stack([tp_sum, predicted_sum - tp_sum, precision.sum(0), recall_sum, f1_sum, tags_predicted])
    positives, ap, best_f1, best_threshold, ece = np.concatenate(of_tags, axis=1)
    micro_tp, micro_fp, precision, recall, f1, tags_predicted = sums[:, ::-1]
    n_tags = np.float64(np.count_nonzero(positives))
    with np.errstate(invalid="ignore"):
        macro = PrecisionRecallF1(precision / tags_predicted, recall / n_tags, f1 / n_tags)
    return Curves(
        positives=positives.astype(np.int64),
        ap=ap,
        best_f1=best_f1,
        best_threshold=best_threshold,
        ece=ece,
        micro_tp=micro_tp.astype(np.int64),
        micro_fp=micro_fp.astype(np.int64),
        macro=macro,
        tags_predicted=tags_predicted.astype(np.int64),
    )


def _best_f1(
    predicted: NDArray[np.float64], tp: NDArray[np.float64], scratch: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return each tag's best F1 and the highest threshold that reaches it, [few], and the summed F1, [LEVELS].

    Overwrites `scratch`. The first two are NaN for tags without positives.
    """
    n, tags = tp[:, -1], np.arange(len(tp))
    half_f1 = np.divide(tp, np.maximum(np.add(predicted, n[:, None], out=scratch), 1, out=scratch), out=scratch)
    best = half_f1.argmax(1)  # the first, and levels descend
    at_best = predicted[tags, best]
    # The threshold is halfway to the next score that occurs, at which more images are predicted.
    following = [np.searchsorted(row, count, side="right") for row, count in zip(predicted, at_best, strict=True)]
    values = np.append(VALUES[::-1], BELOW)
    best_of_tags = np.stack([2 * half_f1[tags, best], (values[best] + values[following]) / 2])
    best_of_tags[:, n == 0] = np.nan
    return *best_of_tags, 2 * half_f1.sum(0)


def _tags_predicted(predicted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for how many tags something is predicted, [LEVELS]."""
    highest = [np.searchsorted(row, 0, side="right") for row in predicted]
    return np.cumsum(np.bincount(highest, minlength=LEVELS))


def _bins() -> NDArray[np.int64]:
    """Return the bin of each level, int64 [LEVELS]: equal widths, closed above, as scikit-learn's calibration_curve."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], VALUES)


def _calibration_error(
    table: NDArray[np.int32], tp: NDArray[np.float64], scratch: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each tag's expected calibration error, float64 [few], of CumulativeCounts; overwrites `scratch`."""
    starts = np.flatnonzero(np.diff(_bins(), prepend=-1))
    positive = -np.diff(tp[:, LEVELS - 1 - starts], append=0)
    np.add(table[0], table[1], out=scratch)
    images = scratch.sum(1)
    scratch *= VALUES
    with np.errstate(invalid="ignore"):
        return np.abs(positive - np.add.reduceat(scratch, starts, axis=1)).sum(1) / images


@dataclass(frozen=True)
class Calibration:
    """The reliability curve over all decisions, and its expected calibration error.

    `edges` [BINS + 1] of equal-width bins. Of the bins that are not empty: `mean_score`, `frequency` of the label and
    `count` of decisions, as in scikit-learn's calibration_curve. `ece` is the mean over all decisions of
    |frequency - mean score| of their bin (Guo et al. 2017, equation 3). Most decisions are easy negatives, so look at
    the bins, not at the error alone.
    """

    edges: NDArray[np.float64]
    mean_score: NDArray[np.float64]
    frequency: NDArray[np.float64]
    count: NDArray[np.int64]
    ece: float


def calibration(curves: Curves) -> Calibration:
    """Return the calibration of all decisions."""
    tp, fp = (-np.diff(count, append=0) for count in (curves.micro_tp, curves.micro_fp))
    count, positive, score = (np.bincount(_bins(), part, BINS) for part in (tp + fp, tp, (tp + fp) * VALUES))
    full = count > 0
    return Calibration(
        edges=np.linspace(0, 1, BINS + 1),
        mean_score=score[full] / count[full],
        frequency=positive[full] / count[full],
        count=count[full].astype(np.int64),
        ece=float(np.abs(positive - score).sum() / count.sum()),
    )


def choose_thresholds(curves: Curves) -> dict[str, float]:
    """Return the threshold where each average is best, and where its precision and recall are equal.

    `best_micro_f1`, `best_macro_f1`: the highest of the best thresholds. `micro_break_even`, `macro_break_even`: from
    below, the first threshold at which precision is not under recall, or the one before it if that is nearer. (From
    above, the two are also equal where the highest score of all is a false positive.) All lie halfway between two
    scores that occur; NaN without positives.
    """
    occurring = np.diff(curves.micro_tp + curves.micro_fp, append=0) != 0
    micro = curves.micro
    levels = {
        "macro_break_even": _break_even_level(curves.macro),
        "micro_break_even": _break_even_level(micro),
        "best_micro_f1": best_level(micro.f1),
        "best_macro_f1": best_level(curves.macro.f1),
    }
    return {name: threshold_at(level, occurring) for name, level in levels.items()}


def best_level(f1: NDArray[np.float64]) -> int | None:
    """Return the highest level at which F1, [LEVELS], is best; None if it is nowhere above 0."""
    return None if not (f1 > 0).any() else LEVELS - 1 - int(np.nanargmax(f1[::-1].round(12)))


def _break_even_level(average: PrecisionRecallF1) -> int | None:
    gap = (average.precision - average.recall).round(12)  # so that the order of summation does not decide
    if not (gap >= 0).any():
        return None
    first = int(np.argmax(gap >= 0))
    return first - 1 if first and -gap[first - 1] < gap[first] else first


def threshold_at(level: int | None, occurring: NDArray[np.bool_]) -> float:
    """Return the threshold that predicts this level and higher, halfway between scores that occur (bool [LEVELS]).

    NaN for None.
    """
    if level is None:
        return float("nan")
    above, below = np.flatnonzero(occurring[level:]), np.flatnonzero(occurring[:level])
    high = VALUES[level + above[0]] if len(above) else 1.0
    return float((high + (VALUES[below[-1]] if len(below) else BELOW)) / 2)

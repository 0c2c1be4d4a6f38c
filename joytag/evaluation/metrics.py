"""Figures from scores and labels, exact at every threshold: counts, averages, average precision, calibration.

A tag is predicted when its score is above the threshold. Scores are float16, so there are 15,361 possible ones between
0 and 1, and a histogram over them (a few million numbers, additive over batches and processes) holds all there is to
know about any number of images. What is undefined (0/0) is NaN, never silently 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array
from torch import Tensor

LEVELS = 15_361  # float16 numbers from 0 to 1; a score's level is its bit pattern, which preserves their order
VALUES = np.arange(LEVELS, dtype=np.uint16).view(np.float16).astype(np.float64)  # what the levels stand for
BELOW = -(2.0**-24)  # stands for the level below 0, where everything is predicted
BINS = 15  # of a reliability curve
TAGS = 16  # whose histograms are worked on at a time, so that what is worked on stays in the cache
EPSILON = 1e-8  # of the original's definition, which makes 0/0 count as 0


@dataclass(frozen=True)
class Counts:
    """True and false positives and negatives: arrays of any one shape, tags first; int64, or floats of a resample."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """How many images carry the tag."""
        return self.tp + self.fn

    @property
    def predicted(self) -> np.ndarray:
        """For how many images the tag is predicted."""
        return self.tp + self.fp

    def __getitem__(self, tags: Any) -> Counts:
        """The counts of some tags."""
        return Counts(*(getattr(self, f.name)[tags] for f in fields(self)))

    def sum(self) -> Counts:
        """The counts of all decisions: added up over the tags."""
        return Counts(*(getattr(self, f.name).sum(0) for f in fields(self)))


def precision_recall_f1(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 as the original's full-metrics.txt has them; 0 where there is nothing to divide by.

    In float32, with 1e-8 added to each denominator, since near-ties are ordered by just that. Everything else is
    from `figures`.
    """
    tp, fp, fn = (np.asarray(count, dtype=np.float32) for count in (counts.tp, counts.fp, counts.fn))
    epsilon = np.float32(EPSILON)
    precision = tp / (tp + fp + epsilon)
    recall = tp / (tp + fn + epsilon)
    return precision, recall, 2 * precision * recall / (precision + recall + epsilon)


def from_counts(counts: Counts) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1` and `mcc` of counts, float64 of their shape, NaN where undefined.

    Precision TP/(TP+FP), where something is predicted; recall TP/(TP+FN), where something is labelled; F1
    2TP/(2TP+FP+FN), where either; all as scikit-learn's precision_recall_fscore_support with zero_division=nan.
    Matthews correlation coefficient (Matthews 1975; scikit-learn's matthews_corrcoef) where labels and predictions
    both have both values.
    """
    tp, fp, fn, tn = (np.asarray(getattr(counts, f.name), dtype=np.float64) for f in fields(counts))
    with np.errstate(invalid="ignore"):
        margins = np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
        return {
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "mcc": (tp * tn - fp * fn) / np.where(margins == 0, np.nan, margins),
        }


def averages(counts: Counts) -> dict[str, Any]:
    """Macro and micro averages of `figures` of [N, ...] counts, over the tags; floats, or arrays of shape [...].

    Micro: of all decisions together. Macro: the mean over `tags_with_positives`; of precision, over those of them for
    which something is predicted (`tags_predicted`), and of MCC over those for which it is defined, since for others
    they do not exist: compare macro precisions only where that number is similar. Of [N] counts also `tags`.
    """
    positive = counts.positives > 0
    result = {f"macro_{name}": _mean(value, positive) for name, value in from_counts(counts).items()}
    result |= {f"micro_{name}": value for name, value in from_counts(counts.sum()).items()}
    result["tags_with_positives"] = positive.sum(0)
    result["tags_predicted"] = (positive & (counts.predicted > 0)).sum(0)
    if counts.tp.ndim > 1:
        return result
    return {name: value.item() for name, value in result.items()} | {"tags": len(counts.tp)}


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean over the first dimension of what is not NaN, among `where`; NaN if there is none."""
    where = where & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sum(values, axis=0, where=where) / where.sum(0))


@dataclass(frozen=True)
class Histogram:
    """How many images have which score, for each tag: int32 [2, N, LEVELS], without and with the label; additive.

    `table` may be on any device and may be summed over processes as it is. For 5,813 tags it takes 714 MB.
    """

    table: Tensor

    @classmethod
    def zeros(cls, n_tags: int, device: torch.device | str = "cpu") -> Histogram:
        """The histogram of no images."""
        return cls(torch.zeros(2, n_tags, LEVELS, dtype=torch.int32, device=device))

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch in place, without waiting for the device.

        Takes scores [B, N] in [0, 1] of any float type, which are rounded to float16, and bool labels [B, N], both on
        the histogram's device. A score that is NaN counts as 0: no threshold predicts it.
        """
        levels = scores.detach().nan_to_num(0).half().view(torch.int16).clamp(0, LEVELS - 1)
        n_tags = self.table.shape[1]
        rows = torch.arange(n_tags, device=scores.device) + n_tags * labels
        places = (rows * LEVELS + levels).flatten()
        ones = torch.ones((), dtype=torch.int32, device=scores.device)
        self.table.view(-1).scatter_add_(0, places, ones.expand(len(places)))

    def tables(self) -> Iterator[np.ndarray]:
        """The table of a few tags after the other."""
        return (part.cpu().numpy() for part in self.table.split(TAGS, dim=1))

    def counts(self, threshold: float | np.ndarray) -> Counts:
        """Counts [N], int64, at one threshold or at one a tag [N]."""
        cuts, found = np.broadcast_to(first_level_above(threshold), self.table.shape[1]), []
        for start, table in zip(range(0, len(cuts), TAGS), self.tables(), strict=True):
            hit = np.where(np.arange(LEVELS) >= cuts[start : start + TAGS, None], table, 0).sum(-1)
            found.append(np.stack([*hit, *(table.sum(-1) - hit)]))
        fp, tp, tn, fn = np.concatenate(found, axis=1)
        return Counts(tp, fp, fn, tn)


def first_level_above(threshold: float | np.ndarray) -> np.ndarray:
    """The first level above a threshold, int64 of its shape: a tag is predicted when its level is at least that."""
    return np.searchsorted(VALUES, threshold, side="right")


def copy_by_tag(scores: np.ndarray) -> np.ndarray:
    """A copy of scores, float16 [P, N], in which those of a tag lie together (Fortran order): for going over often."""
    copy = np.empty(scores.shape, dtype=np.float16, order="F")
    for start in range(0, len(scores), 64):  # a square of the cache's size
        copy[start : start + 64] = scores[start : start + 64]
    return copy


def _levels(scores: np.ndarray, tags: slice, rows: np.ndarray | None = None) -> np.ndarray:
    """The levels of some tags of stored scores, float16 [P, N]: uint16 [tags, P or rows], C-contiguous."""
    columns = scores[:, tags]
    if not columns.flags.f_contiguous:
        columns = np.ascontiguousarray(columns)  # two copies: faster than one across the rows
    levels = np.ascontiguousarray(columns.T).view(np.uint16)
    if levels.size and levels.max() >= LEVELS:
        raise ValueError("scores: hold numbers outside 0 to 1; predict again")
    return levels if rows is None else levels.take(rows, axis=1)


def histograms(
    scores: np.ndarray, labels: csc_array, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Levels, uint16 [few, P], and `Histogram.table`s, int32 [2, few, LEVELS], of stored scores, tag after tag.

    Takes scores float16 [P, N] (a memory map will do; `by_tag`'s copy is faster), labels bool [P, N] and which rows to
    count, all if None. Raises ValueError for a score that is not a number from 0 to 1.
    """
    labels = labels if rows is None else labels[rows].tocsc()
    for start in range(0, scores.shape[1], TAGS):
        levels = _levels(scores, slice(start, start + TAGS), rows)
        table = np.empty((2, len(levels), LEVELS), dtype=np.int32)
        for i, row in enumerate(levels):
            carriers = labels.indices[labels.indptr[start + i] : labels.indptr[start + i + 1]]
            table[1, i] = np.bincount(row[carriers], minlength=LEVELS)
            table[0, i] = np.bincount(row, minlength=LEVELS) - table[1, i]
        yield levels, table


def predicted(scores: np.ndarray, threshold: float | np.ndarray) -> csc_array:
    """Which scores, float16 [P, N], are above one threshold, or above one a tag [N]: bool [P, N]."""
    cuts = np.broadcast_to(first_level_above(threshold), scores.shape[1]).astype(np.uint16)
    rows = []
    for start in range(0, len(cuts), TAGS):
        levels = _levels(scores, slice(start, start + TAGS))
        rows += [np.flatnonzero(own >= cuts[start + i]).astype(np.int32) for i, own in enumerate(levels)]
    found, ends = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    return csc_array((np.ones(len(found), dtype=bool), found, ends), scores.shape)


def count(labels: csc_array, decisions: csc_array) -> Counts:
    """Counts [N], int64, of labels and what is predicted, bool [P, N]."""
    hits = labels.multiply(decisions).tocsc()
    tp, positives, predictions = (np.diff(made.indptr).astype(np.int64) for made in (hits, labels, decisions))
    return Counts(tp, predictions - tp, positives - tp, labels.shape[0] - predictions - positives + tp)


@dataclass(frozen=True)
class Curves:
    """Figures at every threshold there is; index l stands for "predicted when the level is at least l".

    Per tag, [N]: `positives` int64; `ap`, `best_f1`, `best_threshold`, `ece` float64, all but the last NaN for tags
    without positives. Over all tags, [LEVELS]: `micro_tp`, `micro_fp` int64; `macro_precision`, `macro_recall`,
    `macro_f1` float64 and `tags_predicted` int64, as in `averages`.
    """

    positives: np.ndarray
    ap: np.ndarray
    best_f1: np.ndarray
    best_threshold: np.ndarray
    ece: np.ndarray
    micro_tp: np.ndarray
    micro_fp: np.ndarray
    macro_precision: np.ndarray
    macro_recall: np.ndarray
    macro_f1: np.ndarray
    tags_predicted: np.ndarray

    @property
    def micro(self) -> dict[str, np.ndarray]:
        """Micro `precision`, `recall` and `f1`, float64 [LEVELS]."""
        zeros = np.zeros(LEVELS)
        found = from_counts(Counts(self.micro_tp, self.micro_fp, self.positives.sum() - self.micro_tp, zeros))
        return {name: found[name] for name in ("precision", "recall", "f1")}


def curves(tables: Iterable[np.ndarray]) -> Curves:
    """The curves of the tables of a few tags after the other, from `Histogram.tables` or `histograms`."""
    of_tags, at_levels = [], np.zeros((6, LEVELS))
    for table, work in cumulative_tables(tables):
        tags, levels = _curves(table, *work)
        of_tags.append(tags)
        at_levels += levels
    positives, ap, best_f1, best_threshold, ece = np.concatenate(of_tags, axis=1)
    tp, fp, precision, recall, f1, over = at_levels[:, ::-1]
    n = np.float64(np.count_nonzero(positives))
    with np.errstate(invalid="ignore"):
        macro = precision / over, recall / n, f1 / n
    positives, tp, fp, over = (count.astype(np.int64) for count in (positives, tp, fp, over))
    return Curves(positives, ap, best_f1, best_threshold, ece, tp, fp, *macro, over)


def cumulative_tables(tables: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tables, each with float64 [3, N, LEVELS], the highest level first: predictions, true positives, and scratch.

    In the same memory each time: asking the system for it anew would take as long as the arithmetic.
    """
    memory = np.empty((3, TAGS, LEVELS))
    for table in tables:
        work = memory[:, : table.shape[1]]
        np.copyto(work[:2], table[:, :, ::-1])
        np.cumsum(work[:2], axis=2, out=work[:2])
        work[0] += work[1]
        yield table, work


def _curves(
    table: np.ndarray, predicted: np.ndarray, tp: np.ndarray, scratch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `curves` puts together; overwrites `predicted` and `scratch`, and has the highest level first.

    Of each tag, float64 [5, N]: positives, AP, best F1, its threshold, ECE. Summed over the tags with positives,
    float64 [6, LEVELS]: TP, FP (of all tags), precision, recall, F1, whether something is predicted.
    """
    n, rows = tp[:, -1].copy(), np.arange(len(tp))
    ece = _calibration_error(table, tp, scratch)
    f1 = np.divide(tp, np.maximum(np.add(predicted, n[:, None], out=scratch), 1, out=scratch), out=scratch)
    best = f1.argmax(1)  # the first, so the highest of the best thresholds
    best_f1, mean_f1, at = 2 * f1[rows, best], 2 * f1.sum(0), predicted[rows, best]
    following = [np.searchsorted(row, count, side="right") for row, count in zip(predicted, at, strict=True)]
    values = np.append(VALUES[::-1], BELOW)
    highest = [np.searchsorted(row, 0, side="right") for row in predicted[n > 0]]
    over = np.cumsum(np.bincount(highest, minlength=LEVELS))
    sum_tp, sum_predicted = tp.sum(0), predicted.sum(0)
    precision = np.divide(tp, np.maximum(predicted, 1, out=predicted), out=predicted)
    of_tags = np.stack([n, _average_precision(table, precision), best_f1, (values[best] + values[following]) / 2, ece])
    of_tags[2:4, n == 0] = np.nan
    # Not by BLAS: its threads would wait for each other at every table, which takes long where the cores are shared.
    recall = np.einsum("n,nl->l", np.divide(1, n, out=np.zeros_like(n), where=n > 0), tp)
    return of_tags, np.stack([sum_tp, sum_predicted - sum_tp, precision.sum(0), recall, mean_f1, over])


def _average_precision(table: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The mean, float64 [N], of the precision at each positive; NaN without one."""
    with np.errstate(invalid="ignore"):
        return np.einsum("nl,nl->n", precision, table[1, :, ::-1]) / table[1].sum(1)


def average_precision(tables: Iterable[np.ndarray]) -> np.ndarray:
    """Average precision, float64 [N], NaN without positives: the mean over a tag's positives of the precision there.

    At each one's own score, ties together (scikit-learn's average_precision_score: no interpolation).
    """
    return np.concatenate(
        [_average_precision(t, tp / np.maximum(made, 1)) for t, (made, tp, _) in cumulative_tables(tables)]
    )


def _bins() -> np.ndarray:
    """Which bin each level is in, int64 [LEVELS]; equal widths, closed above, as scikit-learn's calibration_curve."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], VALUES)


def _calibration_error(table: np.ndarray, tp: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Each tag's expected calibration error, float64 [N]; takes `tp` as `cumulated` has it, overwrites `scratch`."""
    starts = np.flatnonzero(np.diff(_bins(), prepend=-1))
    positive = -np.diff(tp[:, LEVELS - 1 - starts], append=0)
    np.add(table[0], table[1], out=scratch)
    images = scratch.sum(1)
    scratch *= VALUES
    with np.errstate(invalid="ignore"):
        return np.abs(positive - np.add.reduceat(scratch, starts, axis=1)).sum(1) / images


def calibration(curves: Curves) -> dict[str, Any]:
    """The reliability curve over all decisions, and its expected calibration error.

    `edges` of equal-width bins; of those that are not empty `mean_score`, `frequency` (of the label) and `count`, as
    scikit-learn's calibration_curve; `ece`, the mean over all decisions of |frequency - mean score| of their bin
    (Guo et al. 2017, equation 3). Most decisions are easy negatives, so look at the bins, not at the error alone.
    """
    tp, fp = (-np.diff(count, append=0) for count in (curves.micro_tp, curves.micro_fp))
    count, positive, score = (np.bincount(_bins(), part, BINS) for part in (tp + fp, tp, (tp + fp) * VALUES))
    full = count > 0
    return {
        "edges": np.linspace(0, 1, BINS + 1),
        "mean_score": score[full] / count[full],
        "frequency": positive[full] / count[full],
        "count": count[full].astype(np.int64),
        "ece": float(np.abs(positive - score).sum() / count.sum()),
    }


def mean_average_precision(ap: np.ndarray, positives: np.ndarray, minimum: int = 1) -> tuple[float, int]:
    """The mean average precision over the tags with at least so many positives, and how many these are."""
    enough = ap[positives >= max(minimum, 1)]
    return (float(enough.mean()) if len(enough) else float("nan")), len(enough)


def thresholds(curves: Curves) -> dict[str, float]:
    """Where each average is best, and where its precision and recall are equal; NaN without positives.

    `best_micro_f1`, `best_macro_f1`: the highest of the best. `micro_break_even`, `macro_break_even`: coming from
    below, the first threshold at which precision is not under recall, or the one before it if nearer. (From above,
    the two are also equal where the highest score of all is a false positive.) All lie halfway between two scores.
    """
    occurring = np.diff(curves.micro_tp + curves.micro_fp, append=0) != 0
    micro = curves.micro
    levels = {
        "macro_break_even": _break_even(curves.macro_precision, curves.macro_recall),
        "micro_break_even": _break_even(micro["precision"], micro["recall"]),
        "best_micro_f1": best_level(micro["f1"]),
        "best_macro_f1": best_level(curves.macro_f1),
    }
    return {name: threshold_at(level, occurring) for name, level in levels.items()}


def best_level(f1: np.ndarray) -> int | None:
    """The highest level at which F1, [LEVELS], is best; None if it is nowhere above 0."""
    return None if not (f1 > 0).any() else LEVELS - 1 - int(np.nanargmax(f1[::-1].round(12)))


def _break_even(precision: np.ndarray, recall: np.ndarray) -> int | None:
    gap = (precision - recall).round(12)  # since the order of adding up should not decide
    if not (gap >= 0).any():
        return None
    first = int(np.argmax(gap >= 0))
    return first - 1 if first and -gap[first - 1] < gap[first] else first


def threshold_at(level: int | None, occurring: np.ndarray) -> float:
    """The threshold that predicts from this level on, halfway between scores that occur (bool [LEVELS]); or NaN."""
    if level is None:
        return float("nan")
    above, below = np.flatnonzero(occurring[level:]), np.flatnonzero(occurring[:level])
    high = VALUES[level + above[0]] if len(above) else 1.0
    return float((high + (VALUES[below[-1]] if len(below) else BELOW)) / 2)


def validation_metrics(histogram: Histogram, threshold: float) -> dict[str, float]:
    """What training logs: micro_f1, macro_f1, macro_precision, macro_recall and, over all tags with positives, map."""
    counts = histogram.counts(threshold)
    found = averages(counts)
    mean, _ = mean_average_precision(average_precision(histogram.tables()), counts.positives)
    names = ("micro_f1", "macro_f1", "macro_precision", "macro_recall")
    return {name: found[name] for name in names} | {"map": mean}

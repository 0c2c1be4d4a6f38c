"""Metrics from scores and labels, exact at every threshold: counts, averages, average precision.

A tag is predicted when its score is above the threshold. Scores are float16, so only 15,361 values from 0 to 1 are
possible. A histogram over them (a few million numbers, additive over batches and processes) determines every metric of
any number of images. An undefined metric (0/0) is NaN, never 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

LEVELS = 15_361  # float16 numbers from 0 to 1; a score's level is its bit pattern, which preserves their order
VALUES = np.arange(LEVELS, dtype=np.uint16).view(np.float16).astype(np.float64)  # the score of each level
TAG_BLOCK = 16  # tags whose histograms are processed together, so that they fit the processor's cache
EPSILON = 1e-8  # of the original's definition, where 0/0 counts as 0


@dataclass(frozen=True)
class Counts:
    """True and false positives and negatives: four arrays of one shape, tags first; int64, or floats of a resample."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def positives(self) -> np.ndarray:
        """Number of images with the tag."""
        return self.tp + self.fn

    @property
    def predicted(self) -> np.ndarray:
        """Number of images for which the tag is predicted."""
        return self.tp + self.fp

    def __getitem__(self, tags: Any) -> Counts:
        """Counts of some tags."""
        return Counts(*(getattr(self, f.name)[tags] for f in fields(self)))

    def sum(self) -> Counts:
        """Counts of all decisions: summed over the tags."""
        return Counts(*(getattr(self, f.name).sum(0) for f in fields(self)))


def precision_recall_f1(counts: Counts) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Precision, recall and F1 by the original's convention, for full-metrics.txt alone; 0 where undefined.

    Computed in float32 with 1e-8 added to each denominator, because that decides the order of near-ties in the file.
    Everything else uses `from_counts`.
    """
    tp, fp, fn = (np.asarray(count, dtype=np.float32) for count in (counts.tp, counts.fp, counts.fn))
    epsilon = np.float32(EPSILON)
    precision = tp / (tp + fp + epsilon)
    recall = tp / (tp + fn + epsilon)
    return precision, recall, 2 * precision * recall / (precision + recall + epsilon)


def from_counts(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Return `precision`, `recall`, `f1` and `mcc` of counts: float64 of their shape, NaN where undefined.

    Precision TP/(TP+FP) is defined where something is predicted, recall TP/(TP+FN) where something is labelled, F1
    2TP/(2TP+FP+FN) where either is: as in scikit-learn's precision_recall_fscore_support with zero_division=nan.
    The Matthews correlation coefficient (Matthews 1975; scikit-learn's matthews_corrcoef) is defined where labels and
    predictions both take both values.
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
    """Return macro and micro averages over the tags of [N, ...] counts: floats, or arrays of shape [...].

    Micro: the metric of all decisions together. Macro: the mean over the `tags_with_positives`. Macro precision is the
    mean over those of them that are predicted for some image (`tags_predicted`), and macro MCC over those where MCC is
    defined; so compare macro precisions only where `tags_predicted` is similar. For [N] counts, `tags` is N.
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
    """Mean over the first dimension of the values in `where` that are not NaN; NaN if there are none."""
    where = where & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sum(values, axis=0, where=where) / where.sum(0))


@dataclass(frozen=True)
class Histogram:
    """Number of images by score for each tag: int32 [2, N, LEVELS], without and with the label.

    Histograms of different images add up: `table` may be on any device and may be summed over processes. For 5,813
    tags it takes 714 MB.
    """

    table: Tensor

    @classmethod
    def zeros(cls, n_tags: int, device: torch.device | str = "cpu") -> Histogram:
        """Return the histogram of no images."""
        return cls(torch.zeros(2, n_tags, LEVELS, dtype=torch.int32, device=device))

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch in place, without waiting for the device.

        Takes scores [B, N] in [0, 1] of any float type, which are rounded to float16, and bool labels [B, N], both on
        the histogram's device. A NaN score counts as 0, which no threshold predicts.
        """
        levels = scores.detach().nan_to_num(0).half().view(torch.int16).clamp(0, LEVELS - 1)
        n_tags = self.table.shape[1]
        rows = torch.arange(n_tags, device=scores.device) + n_tags * labels
        positions = (rows * LEVELS + levels).flatten()
        ones = torch.ones((), dtype=torch.int32, device=scores.device)
        self.table.view(-1).scatter_add_(0, positions, ones.expand(len(positions)))

    def tables(self) -> Iterator[NDArray[np.int32]]:
        """Yield the table of TAG_BLOCK tags at a time: int32 [2, few, LEVELS]."""
        return (part.cpu().numpy() for part in self.table.split(TAG_BLOCK, dim=1))

    def counts(self, threshold: float | NDArray[np.float64]) -> Counts:
        """Return counts [N], int64, at one threshold or at one threshold per tag [N]."""
        first, parts = np.broadcast_to(first_level_above(threshold), self.table.shape[1]), []
        for start, table in zip(range(0, len(first), TAG_BLOCK), self.tables(), strict=True):
            above = np.arange(LEVELS) >= first[start : start + TAG_BLOCK, None]
            predicted = np.where(above, table, 0).sum(-1)
            parts.append(np.stack([*predicted, *(table.sum(-1) - predicted)]))
        fp, tp, tn, fn = np.concatenate(parts, axis=1)
        return Counts(tp, fp, fn, tn)


def first_level_above(threshold: float | NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the lowest level that is predicted at a threshold, int64 of its shape; LEVELS (none) for NaN."""
    return np.searchsorted(VALUES, threshold, side="right")


def copy_by_tag(scores: NDArray[np.float16]) -> NDArray[np.float16]:
    """Copy scores, float16 [P, N], into Fortran order, where each tag's scores are contiguous and repeat reads fast."""
    copy = np.empty(scores.shape, dtype=np.float16, order="F")
    for start in range(0, len(scores), 64):  # rows that fit the processor's cache
        copy[start : start + 64] = scores[start : start + 64]
    return copy


def _levels(scores: NDArray[np.float16], tags: slice, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint16]:
    """Return the levels of some tags of stored scores, float16 [P, N]: uint16 [tags, P or rows], C-contiguous."""
    columns = scores[:, tags]
    if not columns.flags.f_contiguous:
        columns = np.ascontiguousarray(columns)  # two copies are faster than one with strided reads
    levels = np.ascontiguousarray(columns.T).view(np.uint16)
    if levels.size and levels.max() >= LEVELS:
        raise ValueError("scores: some are not between 0 and 1; predict again")
    return levels if rows is None else levels.take(rows, axis=1)


def histograms(
    scores: NDArray[np.float16], labels: csc_array, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.int32]]]:
    """Yield levels, uint16 [few, P], and histogram tables, int32 [2, few, LEVELS], of TAG_BLOCK tags at a time.

    Takes scores float16 [P, N] (a memory map works; the result of `copy_by_tag` is faster), labels bool [P, N] and the
    rows to count, all if None. Raises ValueError for a score that is not between 0 and 1.
    """
    labels = labels if rows is None else labels[rows].tocsc()
    for start in range(0, scores.shape[1], TAG_BLOCK):
        levels = _levels(scores, slice(start, start + TAG_BLOCK), rows)
        table = np.empty((2, len(levels), LEVELS), dtype=np.int32)
        for i, row in enumerate(levels):
            carriers = labels.indices[labels.indptr[start + i] : labels.indptr[start + i + 1]]
            table[1, i] = np.bincount(row[carriers], minlength=LEVELS)
            table[0, i] = np.bincount(row, minlength=LEVELS) - table[1, i]
        yield levels, table


def predicted(scores: NDArray[np.float16], threshold: float | NDArray[np.float64]) -> csc_array:
    """Return which scores, float16 [P, N], are above one threshold or one per tag [N]: bool [P, N]; none for NaN."""
    first = np.broadcast_to(first_level_above(threshold), scores.shape[1]).astype(np.uint16)
    rows = []
    for start in range(0, len(first), TAG_BLOCK):
        levels = _levels(scores, slice(start, start + TAG_BLOCK))
        rows += [np.flatnonzero(of_tag >= first[start + i]).astype(np.int32) for i, of_tag in enumerate(levels)]
    indices, ends = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    return csc_array((np.ones(len(indices), dtype=bool), indices, ends), scores.shape)


def count(labels: csc_array, decisions: csc_array) -> Counts:
    """Return counts [N], int64, of labels and decisions, both bool [P, N]."""
    hits = labels.multiply(decisions).tocsc()
    tp, positives, predictions = (np.diff(matrix.indptr).astype(np.int64) for matrix in (hits, labels, decisions))
    return Counts(tp, predictions - tp, positives - tp, labels.shape[0] - predictions - positives + tp)


class CumulativeCounts(NamedTuple):
    """Counts of a few tags at every threshold; float64 [few, LEVELS], the highest level first, but for `table`.

    `table` is the tags' histogram, int32 [2, few, LEVELS], the lowest level first; `predicted` the images that score at
    least the level, `tp` those of them with the tag, `scratch` memory for results. The next counts reuse the memory.
    """

    table: NDArray[np.int32]
    predicted: NDArray[np.float64]
    tp: NDArray[np.float64]
    scratch: NDArray[np.float64]


def cumulative_counts(tables: Iterable[NDArray[np.int32]]) -> Iterator[CumulativeCounts]:
    """Yield the cumulative counts of each table, all in the same memory: allocating it costs as much as the sums."""
    memory = np.empty((3, TAG_BLOCK, LEVELS))
    for table in tables:
        predicted, tp, scratch = work = memory[:, : table.shape[1]]
        np.copyto(work[:2], table[:, :, ::-1])
        np.cumsum(work[:2], axis=2, out=work[:2])
        predicted += tp
        yield CumulativeCounts(table, predicted, tp, scratch)


def average_precision_at(table: NDArray[np.int32], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean precision at each tag's positives, float64 [few]; NaN without positives."""
    with np.errstate(invalid="ignore"):
        return np.einsum("nl,nl->n", precision, table[1, :, ::-1]) / table[1].sum(1)


def average_precision(tables: Iterable[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Return average precision, float64 [N]: the mean over a tag's positives of the precision at their scores.

    Tied scores count together, as in scikit-learn's average_precision_score (no interpolation). NaN without positives.
    """
    parts = [
        average_precision_at(table, tp / np.maximum(predicted, 1))
        for table, predicted, tp, _ in cumulative_counts(tables)
    ]
    return np.concatenate(parts)


def mean_average_precision(
    ap: NDArray[np.float64], positives: NDArray[np.int64], minimum: int = 1
) -> tuple[float, int]:
    """Return mean average precision over the tags with at least `minimum` positives, and the number of these tags."""
    enough = ap[positives >= max(minimum, 1)]
    return (float(enough.mean()) if len(enough) else float("nan")), len(enough)


def validation_metrics(histogram: Histogram, threshold: float) -> dict[str, float]:
    """Return the metrics that training logs; `map` is over all tags with positives."""
    counts = histogram.counts(threshold)
    means = averages(counts)
    mean, _ = mean_average_precision(average_precision(histogram.tables()), counts.positives)
    names = ("micro_f1", "macro_f1", "macro_precision", "macro_recall")
    return {name: means[name] for name in names} | {"map": mean}

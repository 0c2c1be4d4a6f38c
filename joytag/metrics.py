"""Figures from scores and labels: exact, in one pass, per tag and averaged.

SKELETON: what is here now goes on working until evaluate.py and report.py have moved to what is below;
then Counts holds numpy int64 arrays, and precision_recall_f1 takes and returns numpy (float32).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csc_array
from torch import Tensor

EPSILON = 1e-8  # of the original's definition, which makes 0/0 count as 0


@dataclass(frozen=True)
class Counts:
    """True and false positives and negatives, int64 of any one shape, such as [sources, tags]."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    @classmethod
    def zeros(cls, *shape: int, device: torch.device | str = "cpu") -> Counts:
        """Counts of no pictures."""
        return cls(*(torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(4)))

    def add(self, scores: Tensor, labels: Tensor, sources: Tensor, threshold: float) -> None:
        """Count a batch into [sources, tags] counts, in place.

        Takes scores [B, N] in [0, 1], bool labels [B, N] and int64 source numbers [B]; a tag is
        predicted when its score is above the threshold.
        """
        predicted = scores > threshold
        hits = (predicted & labels, predicted & ~labels, ~predicted & labels, ~predicted & ~labels)
        for count, hit in zip(self, hits, strict=True):
            count.index_add_(0, sources, hit.long())

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.tp, self.fp, self.fn, self.tn))

    def __getitem__(self, index: int) -> Counts:
        """The counts of one source."""
        return Counts(*(count[index] for count in self))

    def sum(self, dim: int) -> Counts:
        """The counts added up over a dimension."""
        return Counts(*(count.sum(dim) for count in self))


def precision_recall_f1(counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1, float32 like the counts; 0 where there is nothing to divide by.

    The original's definition, in its float32, with 1e-8 added to each denominator.
    """
    tp, fp, fn, _ = (count.float() for count in counts)
    precision = tp / (tp + fp + EPSILON)
    recall = tp / (tp + fn + EPSILON)
    return precision, recall, 2 * precision * recall / (precision + recall + EPSILON)


def averages(counts: Counts) -> dict[str, float]:
    """Macro (mean over tags) and micro (over all decisions) precision, recall and F1 of [tags] counts.

    Tags without a positive label count with 0 into the macro average; `tags_with_positives` says how
    many there are with one.
    """
    macro = [float(value.double().mean()) for value in precision_recall_f1(counts)]
    micro = [float(value) for value in precision_recall_f1(counts.sum(0))]
    names = ("precision", "recall", "f1")
    return {
        **{f"macro_{name}": value for name, value in zip(names, macro, strict=True)},
        **{f"micro_{name}": value for name, value in zip(names, micro, strict=True)},
        "tags": counts.tp.numel(),
        "tags_with_positives": int(((counts.tp + counts.fn) > 0).sum()),
    }


def summarize(counts: Counts, sources: list[str]) -> dict[str, dict[str, float]]:
    """Averages over all pictures, under `all`, and over each source's, of [sources, tags] counts."""
    return {"all": averages(counts.sum(0))} | {name: averages(counts[i]) for i, name in enumerate(sources)}


# ---------------------------------------------------------------------------------------------------------------------
# From here on: the skeleton of what will be.

LEVELS = 15_361  # float16 numbers from 0 to 1; a score's level is its bit pattern, which preserves order
VALUES = np.arange(LEVELS, dtype=np.uint16).view(np.float16).astype(np.float64)  # what the levels stand for


@dataclass(frozen=True)
class Histogram:
    """How many pictures have which score, for each tag: int32 [2, N, LEVELS], without and with the label; additive.

    `table` may be on any device and may be summed over processes as it is.
    """

    table: Tensor

    @classmethod
    def zeros(cls, n_tags: int, device: torch.device | str = "cpu") -> Histogram:
        """The histogram of no pictures."""
        return cls(torch.zeros(2, n_tags, LEVELS, dtype=torch.int32, device=device))

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch in place, without waiting for the device.

        Takes scores [B, N] in [0, 1] of any float type, which are rounded to float16, and bool labels [B, N], both on
        the histogram's device. A score that is NaN counts as 0, which no threshold predicts.
        """
        raise NotImplementedError

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.table + other.table)

    def __getitem__(self, tags: slice) -> Histogram:
        """The histogram of some tags; shares memory."""
        return Histogram(self.table[:, tags])

    def counts(self, threshold: float | np.ndarray) -> Counts:
        """Counts [N], numpy int64, at one threshold or at one a tag [N]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Curves:
    """Figures at every possible threshold; index l stands for "predicted when the level is at least l".

    Per tag, [N]: positives int64; ap, best_f1, best_threshold, ece float64. Over all tags, [LEVELS]: micro_tp, micro_fp
    int64; macro_precision, macro_recall, macro_f1 float64, over the tags with positives.
    """

    pictures: int
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


def curves(histogram: Histogram | Iterable[Histogram]) -> Curves:
    """The curves of one histogram, or of parts of it, one group of tags after another (which saves memory)."""
    raise NotImplementedError


def histograms(scores: np.ndarray, labels: csc_array, rows: np.ndarray | None = None) -> Iterable[Histogram]:
    """Histograms of stored scores, float16 [P, N], with labels bool [P, N], a few tags after the other."""
    raise NotImplementedError


def predicted(scores: np.ndarray, threshold: float | np.ndarray) -> csc_array:
    """Which scores, float16 [P, N], are above one threshold, or above one a tag [N]: bool [P, N]."""
    raise NotImplementedError


def validation_figures(histogram: Histogram, threshold: float) -> dict[str, float]:
    """What training logs: micro_f1, macro_f1, macro_precision, macro_recall, map."""
    raise NotImplementedError

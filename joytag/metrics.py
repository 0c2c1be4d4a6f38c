"""Additive counts to precision, recall and F1, per tag and averaged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

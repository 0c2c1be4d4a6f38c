"""Predictions to everything that reports tell: figures, intervals, groups, confusions, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from joytag.bootstrap import Interval

if TYPE_CHECKING:
    from joytag.predictions import Predictions


class Confusion(NamedTuple):
    """A tag that was labelled and missed, and one that was predicted there instead."""

    labelled: str
    predicted: str
    pictures: int  # where that happened
    share: float  # of the pictures in which `labelled` was missed


class Mistake(NamedTuple):
    """A decision that is not the label's: where (a row of Predictions, an output), and how sure it was."""

    row: int
    tag: int
    score: float
    labelled: bool  # a miss if True, a false positive if not
    confidence: float  # that the label is wrong and not the decision, 0 to 1; see `mistakes`


@dataclass(frozen=True)
class Analysis:
    """Everything that reports tell. NaN is undefined, everywhere.

    `facts`: threshold, pictures, tags, tags_with_positives, labels_per_picture, minimum_positives (of `map`),
    resamples, seed, and predictions' provenance. `thresholds`: fixed, macro_break_even, micro_break_even,
    best_micro_f1, best_macro_f1; chosen on all pictures, so the figures at all but `fixed` flatter.
    `headline`: threshold name -> figure name -> Interval, with macro_ and micro_ precision, recall, f1, mcc, and
    under `ranking` `map`. `macro_over`: threshold name -> over how many tags macro_precision is the mean (the other
    macro figures are over `tags_with_positives`).
    `split_half`: `fixed`, `global` and `per_tag`, each with macro_f1 and micro_f1 Intervals, the last two also with
    `difference` (Interval of macro F1 minus that of `fixed`), `directions` (that difference for either half) and
    `verdict` (a sentence).
    `per_tag`: a row a tag: index, name, category (word), band, train_count, positives, predicted, tp, fp, fn, tn,
    precision, recall, f1, mcc, ap, best_threshold, best_f1, threshold (for use: shrunk, see `shrunk_thresholds`),
    ece, undefined (words, or ""). Figures that are undefined are null.
    `sources`, `categories`, `bands`, `groups`: name -> macro_ and micro_ precision, recall, f1, `macro_f1_low`,
    `macro_f1_high`, map, tags, tags_with_positives, pictures (with a label of it). `gaps`: the same four names ->
    best, worst (names), gap (Interval of the difference of their macro F1).
    `curves`: float64 arrays [about 200] over `threshold`: macro_ and micro_ precision, recall, f1; `tags`: tag name
    -> (recall, precision), arrays [up to about 200] of some common, middling and rare tags.
    `calibration`: `mean_score`, `frequency`, `count` arrays of the bins that are not empty, `edges` [bins + 1], `ece`.
    `confusions` are by pictures, `confusions_by_share` by share among those that happened a few times.
    `false_positives`: the highest-scored; `misses`: the lowest-scored labels; `label_errors`: both kinds, by
    confidence.
    """

    facts: dict[str, Any]
    thresholds: dict[str, float]
    headline: dict[str, dict[str, Interval]]
    macro_over: dict[str, int]
    split_half: dict[str, Any]
    per_tag: pa.Table
    sources: dict[str, dict[str, float]]
    categories: dict[str, dict[str, float]]
    bands: dict[str, dict[str, float]]
    groups: dict[str, dict[str, float]]
    gaps: dict[str, dict[str, Any]]
    curves: dict[str, Any]
    calibration: dict[str, Any]
    confusions: list[Confusion]
    confusions_by_share: list[Confusion]
    false_positives: list[Mistake]
    misses: list[Mistake]
    label_errors: list[Mistake]


def analyse(
    predictions: Predictions,
    threshold: float = 0.4,
    groups: Mapping[str, Sequence[str]] | None = None,
    minimum_positives: int = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Everything that reports tell about predictions. Raises ValueError for a group with a tag that is unknown."""
    raise NotImplementedError

"""Metrics by group of tags, and by source of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.bootstrap import Interval, Resample, interval
from joytag.evaluation.curves import Curves
from joytag.evaluation.metrics import Counts
from joytag.evaluation.predictions import Predictions

AVERAGES = tuple(f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1"))


@dataclass(frozen=True)
class GroupMetrics:
    """Averages over some tags or some images at the fixed threshold; `macro_f1_low` and `_high` bound its interval.

    `images`: the images of a source, or those with a label of the group.
    """

    macro_precision: float
    macro_recall: float
    macro_f1: float
    micro_precision: float
    micro_recall: float
    micro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    map: float
    tags: int
    tags_with_positives: int
    images: int


@dataclass(frozen=True)
class Gap:
    """The groups with the best and the worst macro F1, and the difference.

    The two are picked as the extremes, which makes the gap a little larger than it will be on other images.
    """

    best: str
    worst: str
    gap: Interval


@dataclass(frozen=True)
class Grouping:
    """Metrics by group, and the gap between groups; None if fewer than two have a macro F1."""

    rows: dict[str, GroupMetrics]
    gap: Gap | None


def tag_groupings(
    kinds: Mapping[str, Mapping[str, NDArray[np.int64]]],
    counts: Counts,
    ap: NDArray[np.float64],
    labels: csc_array,
    decisions: csc_array,
    minimum: int,
    resample: Resample,
) -> dict[str, Grouping]:
    """Return a Grouping for each kind of groups of tags, all from the same resamples; `kinds`: kind -> name -> tags."""
    every = {f"{kind}: {name}": tags for kind, groups in kinds.items() for name, tags in groups.items()}

    def macro_f1(counts: Counts) -> dict[str, NDArray[np.float64]]:
        return {key: metrics.averages(counts[tags])["macro_f1"] for key, tags in every.items()}

    sampled = resample(labels, {"": decisions}, macro_f1)[""]
    groupings = {}
    for kind, groups in kinds.items():
        replicates = {name: sampled[f"{kind}: {name}"] for name in groups}
        rows = {}
        for name, tags in groups.items():
            images = len(np.unique(labels[:, tags].indices))
            rows[name] = _group_metrics(counts[tags], ap[tags], minimum, replicates[name], images)
        groupings[kind] = Grouping(rows, _gap(rows, replicates))
    return groupings


def source_grouping(
    predictions: Predictions,
    scores: NDArray[np.float16],
    decisions: csc_array,
    curves: Curves,
    minimum: int,
    resample: Resample,
) -> Grouping:
    """Return a Grouping by source. Each source is resampled by itself, since they share no image."""
    labels = predictions.labels
    rows, replicates = {}, {}
    for number, name in enumerate(predictions.source_names):
        images = np.flatnonzero(predictions.sources == number)
        if not len(images):
            continue
        own_labels, own_decisions, ap = labels[images].tocsc(), decisions[images].tocsc(), curves.ap
        if len(images) < len(scores):
            ap = metrics.average_precision(table for _, table in metrics.histograms(scores, labels, images))
        own_families = predictions.families[images]
        replicates[name] = resample(own_labels, {"": own_decisions}, families=own_families)[""]["macro_f1"]
        counts = metrics.count(own_labels, own_decisions)
        rows[name] = _group_metrics(counts, ap, minimum, replicates[name], len(images))
    return Grouping(rows, _gap(rows, replicates))


def _group_metrics(
    counts: Counts, ap: NDArray[np.float64], minimum: int, macro_f1: NDArray[np.float64], images: int
) -> GroupMetrics:
    """Return a group's metrics from its counts and AP, [tags], and its macro F1 in every resample."""
    averages = metrics.averages(counts)
    bounds = interval(averages["macro_f1"], macro_f1)
    return GroupMetrics(
        **{name: averages[name] for name in AVERAGES},
        macro_f1_low=bounds.low,
        macro_f1_high=bounds.high,
        map=metrics.mean_average_precision(ap, counts.positives, minimum)[0],
        tags=averages["tags"],
        tags_with_positives=averages["tags_with_positives"],
        images=images,
    )


def _gap(rows: Mapping[str, GroupMetrics], replicates: Mapping[str, NDArray[np.float64]]) -> Gap | None:
    defined = sorted((row.macro_f1, name) for name, row in rows.items() if not np.isnan(row.macro_f1))
    if len(defined) < 2:
        return None
    (low, worst), (high, best) = defined[0], defined[-1]
    return Gap(best, worst, interval(high - low, replicates[best] - replicates[worst]))

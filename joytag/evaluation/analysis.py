"""Analysis of predictions: averages, intervals, groups, confusions, disagreements with the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import bootstrap, error_analysis, metrics
from joytag.evaluation.bootstrap import Interval, Resample, interval
from joytag.evaluation.curves import Calibration, Curves, SampledCurves, calibration, choose_thresholds, compute_curves
from joytag.evaluation.error_analysis import Confusion, Disagreement
from joytag.evaluation.groupings import Grouping, source_grouping, tag_groupings
from joytag.evaluation.metrics import LEVELS, VALUES
from joytag.evaluation.per_tag import per_tag_table
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.split_half import SplitHalf, split_half
from joytag.evaluation.tag_groups import by_category, by_count, by_name
from joytag.evaluation.thresholds import shrunk_thresholds

POINTS = 101  # of a curve along thresholds, and as many along recall
TAG_CURVES = 9  # tags with a curve of their own
HEADLINE = tuple(f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1", "mcc"))


@dataclass(frozen=True)
class Facts:
    """Size, settings and provenance. `map` is over the `tags_ranked` tags with at least `minimum_positives`."""

    provenance: Mapping[str, Any]
    images: int
    families: int
    tags: int
    tags_with_positives: int
    labels_per_image: float
    threshold: float
    minimum_positives: int
    tags_ranked: int
    resamples: int
    seed: int

    def flat(self) -> dict[str, Any]:
        """Return the provenance and the other facts by name."""
        return {**self.provenance, **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "provenance"}}


class TagCurve(NamedTuple):
    """Recall and precision of one tag at the scores of its positives: float64 [up to 2 * POINTS]."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


@dataclass(frozen=True)
class Analysis:
    """All results of an evaluation. NaN means undefined.

    `thresholds`: `fixed` and those of `choose_thresholds`, which are chosen on all images, so that metrics at them are
    optimistic. `headline`: threshold name -> metric name -> interval; under `ranking`, `map`. `macro_over`: threshold
    name -> number of tags over which macro precision is the mean. `per_tag`: a row for each tag, with the columns of
    `per_tag.COLUMNS`; null is undefined. `curves` at about 200 thresholds; `tag_curves` of some common, middling and
    rare tags. `confusions`: by images; `confusions_by_share`: by share among those on several images.
    `false_positives`: those with the highest scores; `misses`: those with the highest confidence; each list is of
    different images. `label_errors`: both kinds, by confidence.
    """

    facts: Facts
    thresholds: dict[str, float]
    headline: dict[str, dict[str, Interval]]
    macro_over: dict[str, int]
    split_half: SplitHalf
    per_tag: pa.Table
    sources: Grouping
    categories: Grouping
    bands: Grouping
    groups: Grouping
    curves: SampledCurves
    tag_curves: dict[str, TagCurve]
    calibration: Calibration
    confusions: list[Confusion]
    confusions_by_share: list[Confusion]
    false_positives: list[Disagreement]
    misses: list[Disagreement]
    label_errors: list[Disagreement]


def analyse(
    predictions: Predictions,
    threshold: float = DEFAULT_THRESHOLD,
    groups: Mapping[str, Sequence[str]] | None = None,
    minimum_positives: int = 5,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Analyse predictions at a threshold; `groups` are names of tags, `map` is over tags with `minimum_positives`.

    Raises ValueError when the groups share no tag with the vocabulary.
    """
    scores, labels, tags = metrics.copy_by_tag(predictions.scores), predictions.labels, predictions.tags
    bands, named = by_count(tags.counts), by_name(groups or {}, tags.names)
    options: dict[str, Any] = {"seed": seed, "resamples": resamples, "families": predictions.families}
    resample = partial(bootstrap.replicates, **options)
    curves = compute_curves(scores, labels)
    thresholds = {"fixed": float(threshold)} | choose_thresholds(curves)
    decisions = {name: metrics.predicted(scores, value) for name, value in thresholds.items()}
    fixed = decisions["fixed"]
    counts = metrics.count(labels, fixed)
    headline, macro_over = _headline(labels, decisions, resample)
    ranked = np.flatnonzero(curves.positives >= max(1, minimum_positives))
    headline["ranking"] = {"map": _map_interval(scores, labels, curves, ranked, options)}
    kinds = {"categories": by_category(tags.categories), "bands": bands, "groups": named}
    groupings = tag_groupings(kinds, counts, curves.ap, labels, fixed, minimum_positives, resample)
    disagreements = error_analysis.disagreements(scores, labels, fixed)
    confusions, confusions_by_share = error_analysis.confusions(labels, fixed, tags.names)
    false_positives, misses = error_analysis.worst_disagreements(disagreements)
    return Analysis(
        facts=_facts(predictions, curves, float(threshold), minimum_positives, len(ranked), resamples, seed),
        thresholds=thresholds,
        headline=headline,
        macro_over=macro_over,
        split_half=split_half(predictions, scores, fixed, threshold, seed, resample),
        per_tag=per_tag_table(tags, bands, counts, curves, shrunk_thresholds(scores, labels, curves)),
        sources=source_grouping(predictions, scores, fixed, curves, minimum_positives, resample),
        **groupings,
        curves=_sample_curves(curves),
        tag_curves=_tag_curves(predictions, curves, ranked),
        calibration=calibration(curves),
        confusions=confusions,
        confusions_by_share=confusions_by_share,
        false_positives=false_positives,
        misses=misses,
        label_errors=error_analysis.label_errors(disagreements),
    )


def _facts(
    predictions: Predictions,
    curves: Curves,
    threshold: float,
    minimum_positives: int,
    tags_ranked: int,
    resamples: int,
    seed: int,
) -> Facts:
    images, tags = predictions.scores.shape
    return Facts(
        provenance=predictions.provenance,
        images=images,
        families=len(np.unique(predictions.families)),
        tags=tags,
        tags_with_positives=int(np.count_nonzero(curves.positives)),
        labels_per_image=float(curves.positives.sum() / images),
        threshold=threshold,
        minimum_positives=minimum_positives,
        tags_ranked=tags_ranked,
        resamples=resamples,
        seed=seed,
    )


def _headline(
    labels: csc_array, decisions: Mapping[str, csc_array], resample: Resample
) -> tuple[dict[str, dict[str, Interval]], dict[str, int]]:
    """Return the averages at each threshold with intervals, and the number of tags in each macro precision."""
    sampled = resample(labels, decisions)
    averages = {name: metrics.averages(metrics.count(labels, predicted)) for name, predicted in decisions.items()}
    headline = {
        name: {metric: interval(values[metric], sampled[name][metric]) for metric in HEADLINE}
        for name, values in averages.items()
    }
    return headline, {name: values["tags_predicted"] for name, values in averages.items()}


def _map_interval(
    scores: NDArray[np.float16],
    labels: csc_array,
    curves: Curves,
    ranked: NDArray[np.int64],
    options: Mapping[str, Any],
) -> Interval:
    """Return mean average precision over the `ranked` tags, int64; `options` are those of `bootstrap.ap_replicates`."""
    mean = float(curves.ap[ranked].mean()) if len(ranked) else np.nan
    influence = bootstrap.ap_influence(scores, labels, ranked)
    return interval(mean, bootstrap.ap_replicates(mean, influence, **options))


def _sample_curves(curves: Curves) -> SampledCurves:
    """Sample the curves at evenly spaced thresholds, and at thresholds where macro recall is evenly spaced."""
    recall = np.nan_to_num(curves.macro.recall)[::-1]
    by_recall = LEVELS - 1 - np.searchsorted(recall, np.linspace(0, 1, POINTS)[1:-1])
    by_threshold = metrics.first_level_above(np.linspace(0, 1, POINTS))
    levels = np.unique(np.clip(np.concatenate([by_threshold, by_recall]), 1, LEVELS - 1))
    return curves.at(levels, VALUES[levels - 1])


def _tag_curves(predictions: Predictions, curves: Curves, ranked: NDArray[np.int64]) -> dict[str, TagCurve]:
    """Return curves of TAG_CURVES of the `ranked` tags, from the commonest to the rarest in training."""
    if not len(ranked):
        return {}
    tags = predictions.tags
    by_count = ranked[np.argsort(-tags.counts[ranked], kind="stable")]
    result = {}
    for tag in by_count[np.unique(np.linspace(0, len(by_count) - 1, TAG_CURVES).round().astype(int))]:
        ((_, table),) = metrics.histograms(predictions.scores[:, [tag]], predictions.labels[:, [tag]])
        fp, tp = np.cumsum(table[:, 0, ::-1], axis=1)
        at = np.flatnonzero(table[1, 0, ::-1])
        at = at[np.unique(np.linspace(0, len(at) - 1, 2 * POINTS).astype(int))]
        result[tags.names[tag]] = TagCurve(recall=tp[at] / tp[-1], precision=tp[at] / (tp + fp)[at])
    return result

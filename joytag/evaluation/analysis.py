"""Analysis of predictions: averages, intervals, groups, confusions, disagreements with the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import bootstrap, error_analysis, metrics
from joytag.evaluation.bootstrap import Interval, interval
from joytag.evaluation.curves import Calibration, Curves, SampledCurves, calibration, choose_thresholds, compute_curves
from joytag.evaluation.error_analysis import Confusion, Disagreement
from joytag.evaluation.metrics import LEVELS, VALUES, Counts
from joytag.evaluation.per_tag import per_tag_table
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.tag_groups import by_category, by_count, by_name
from joytag.evaluation.thresholds import cross_fit, shrunk_thresholds

POINTS = 101  # of a curve along thresholds, and as many along recall
TAG_CURVES = 9  # tags with a curve of their own
AVERAGES = tuple(f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1"))
HEADLINE = tuple(f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1", "mcc"))
Resample = Callable[..., dict[str, dict[str, NDArray[np.float64]]]]  # bootstrap.replicates with its options


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


@dataclass(frozen=True)
class F1Averages:
    """Macro and micro F1 at one choice of thresholds."""

    macro_f1: Interval
    micro_f1: Interval


@dataclass(frozen=True)
class ChosenThresholds(F1Averages):
    """F1 at thresholds chosen on the other half of the images.

    `difference`: macro F1 minus that at the fixed threshold. `directions`: the same difference on each half alone.
    `verdict`: the difference in a sentence.
    """

    difference: Interval
    directions: list[float]
    verdict: str


@dataclass(frozen=True)
class SplitHalf:
    """The fixed threshold against thresholds chosen on the other half: one for all tags, and one per tag."""

    fixed: F1Averages
    shared: ChosenThresholds
    per_tag: ChosenThresholds


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
    groupings = _tag_groupings(kinds, counts, curves.ap, labels, fixed, minimum_positives, resample)
    disagreements = error_analysis.disagreements(scores, labels, fixed)
    confusions, confusions_by_share = error_analysis.confusions(labels, fixed, tags.names)
    false_positives, misses = error_analysis.worst_disagreements(disagreements)
    return Analysis(
        facts=_facts(predictions, curves, float(threshold), minimum_positives, len(ranked), resamples, seed),
        thresholds=thresholds,
        headline=headline,
        macro_over=macro_over,
        split_half=_split_half(predictions, scores, fixed, threshold, seed, resample),
        per_tag=per_tag_table(tags, bands, counts, curves, shrunk_thresholds(scores, labels, curves)),
        sources=_source_grouping(predictions, scores, fixed, curves, minimum_positives, resample),
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


def _tag_groupings(
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


def _source_grouping(
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


def _split_half(
    predictions: Predictions,
    scores: NDArray[np.float16],
    fixed: csc_array,
    threshold: float,
    seed: int,
    resample: Resample,
) -> SplitHalf:
    """Compare the `fixed` decisions, those at `threshold`, with decisions at thresholds from the other half."""
    labels = predictions.labels
    fit = cross_fit(scores, labels, seed, predictions.families)
    decisions = {"fixed": fixed, "shared": fit.shared, "per_tag": fit.per_tag}
    averages = {name: metrics.averages(metrics.count(labels, predicted)) for name, predicted in decisions.items()}
    sampled = resample(labels, decisions)
    halves = [np.flatnonzero(half) for half in (fit.first_half, ~fit.first_half)]

    def f1(name: str) -> dict[str, Interval]:
        return {metric: interval(averages[name][metric], sampled[name][metric]) for metric in ("macro_f1", "micro_f1")}

    def macro_f1_by_half(name: str) -> list[float]:
        parts = [(labels[rows].tocsc(), decisions[name][rows].tocsc()) for rows in halves]
        return [metrics.averages(metrics.count(*part))["macro_f1"] for part in parts]

    def chosen(name: str, subject: str) -> ChosenThresholds:
        difference = interval(
            averages[name]["macro_f1"] - averages["fixed"]["macro_f1"],
            sampled[name]["macro_f1"] - sampled["fixed"]["macro_f1"],
        )
        directions = np.subtract(macro_f1_by_half(name), macro_f1_by_half("fixed")).tolist()
        verdict = _verdict(f"{subject}, chosen on the other half,", threshold, difference)
        return ChosenThresholds(**f1(name), difference=difference, directions=directions, verdict=verdict)

    return SplitHalf(
        fixed=F1Averages(**f1("fixed")),
        shared=chosen("shared", "One threshold for all tags"),
        per_tag=chosen("per_tag", "A threshold for each tag"),
    )


def _verdict(subject: str, threshold: float, difference: Interval) -> str:
    if np.isnan(difference.low):
        return f"{subject} cannot be judged: no metric is defined."
    verb = "beats" if difference.low > 0 else "does worse than" if difference.high < 0 else "does not beat"
    return (
        f"{subject} {verb} {threshold:g} in macro F1: {difference.value:+.4f}, "
        f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}."
    )


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

"""Predictions to everything that reports tell: figures, intervals, groups, confusions, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csc_array

from joytag.evaluation import bootstrap, error_analysis, metrics
from joytag.evaluation.bootstrap import Interval, interval
from joytag.evaluation.error_analysis import Confusion, Disagreement
from joytag.evaluation.metrics import LEVELS, VALUES, Counts, Curves
from joytag.evaluation.per_tag import per_tag_table
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.tag_groups import by_category, by_count, by_name
from joytag.evaluation.thresholds import cross_fit, shrunk_thresholds

POINTS = 101  # of a curve along thresholds, and as many along recall
CURVES = 9  # tags whose own curves are drawn
HEADLINE = tuple(f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1", "mcc"))
Replicates = dict[str, np.ndarray]  # figure -> float64 [R]
Resample = Callable[..., dict[str, Replicates]]  # bootstrap.replicates with a seed


@dataclass(frozen=True)
class Analysis:
    """Everything that reports tell. NaN is undefined, everywhere.

    `facts`: threshold, images, tags, tags_with_positives, labels_per_image, minimum_positives (of `map`),
    resamples, seed, and predictions' provenance. `thresholds`: fixed, macro_break_even, micro_break_even,
    best_micro_f1, best_macro_f1; chosen on all images, so the figures at all but `fixed` flatter.
    `headline`: threshold name -> figure name -> Interval, with macro_ and micro_ precision, recall, f1, mcc, and
    under `ranking` `map`. `macro_over`: threshold name -> over how many tags macro_precision is the mean (the other
    macro figures are over `tags_with_positives`).
    `split_half`: `fixed`, `global` and `per_tag`, each with macro_f1 and micro_f1 Intervals, the last two also with
    `difference` (Interval of macro F1 minus that of `fixed`), `directions` (that difference on either half alone) and
    `verdict` (a sentence). Each image is decided once, at thresholds chosen on the other half.
    `per_tag`: a row for each tag, with the columns of `per_tag.COLUMNS`; null is undefined.
    `sources`, `categories`, `bands`, `groups`: name -> macro_ and micro_ precision, recall, f1, `macro_f1_low`,
    `macro_f1_high`, map, tags, tags_with_positives, images (with a label of it). `gaps`: the same four names ->
    best, worst (names), gap (Interval of the difference of their macro F1); empty where there are not two.
    `curves`: float64 arrays [about 200] over `threshold`: macro_ and micro_ precision, recall, f1; `tags`: tag name
    -> (recall, precision), arrays [up to about 200] of some common, middling and rare tags.
    `calibration`: `mean_score`, `frequency`, `count` arrays of the bins that are not empty, `edges` [bins + 1], `ece`.
    `confusions` are by images, `confusions_by_share` by share among those that happened a few times.
    `false_positives`: the highest-scored, and `misses`: those that look least like an image with the tag (by
    confidence), each of another image; `label_errors`: both kinds, by confidence.
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
    false_positives: list[Disagreement]
    misses: list[Disagreement]
    label_errors: list[Disagreement]


def analyse(
    predictions: Predictions,
    threshold: float = 0.4,
    groups: Mapping[str, Sequence[str]] | None = None,
    minimum_positives: int = 5,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Everything that reports tell about predictions at a threshold; `groups` are names of tags.

    `map` is over tags with at least `minimum_positives`. Raises ValueError when groups share no tag with the
    vocabulary.
    """
    scores, labels, tags = metrics.copy_by_tag(predictions.scores), predictions.labels, predictions.tags
    resample = partial(bootstrap.replicates, seed=seed, resamples=resamples)
    members = {
        "categories": by_category(tags.categories),
        "bands": by_count(tags.counts),
        "groups": by_name(groups or {}, tags.names),
    }
    curves = metrics.curves(table for _, table in metrics.histograms(scores, labels))
    thresholds = {"fixed": float(threshold)} | metrics.thresholds(curves)
    decisions = {name: metrics.predicted(scores, value) for name, value in thresholds.items()}
    fixed = decisions["fixed"]
    counts = metrics.count(labels, fixed)
    headline, macro_over = _headline(labels, decisions, resample)
    influence = bootstrap.ap_influence(scores, labels, np.flatnonzero(curves.positives >= max(1, minimum_positives)))
    mean, ranked = metrics.mean_average_precision(curves.ap, curves.positives, minimum_positives)
    headline["ranking"] = {"map": interval(mean, bootstrap.ap_replicates(mean, influence, seed, resamples))}
    rows, gaps = _groups(members, counts, curves.ap, labels, fixed, minimum_positives, resample)
    rows["sources"], gaps["sources"] = _sources(predictions, scores, fixed, curves, minimum_positives, resample)
    disagreements = error_analysis.disagreements(scores, labels, fixed)
    common, by_share = error_analysis.confusions(labels, fixed, tags.names)
    false_positives, misses = error_analysis.worst_disagreements(disagreements)
    of_tags = shrunk_thresholds(scores, labels, curves)
    facts = dict(minimum_positives=minimum_positives, tags_ranked=ranked, resamples=resamples, seed=seed)
    return Analysis(
        facts=_facts(predictions, curves) | {"threshold": float(threshold)} | facts,
        thresholds=thresholds,
        headline=headline,
        macro_over=macro_over,
        split_half=_split_half(scores, labels, fixed, threshold, seed, resample),
        per_tag=per_tag_table(tags, members["bands"], counts, curves, of_tags),
        **rows,
        gaps=gaps,
        curves=_along_thresholds(curves) | {"tags": _curves_of_tags(predictions, curves, minimum_positives)},
        calibration=metrics.calibration(curves),
        confusions=common,
        confusions_by_share=by_share,
        false_positives=false_positives,
        misses=misses,
        label_errors=error_analysis.label_errors(disagreements),
    )


def _facts(predictions: Predictions, curves: Curves) -> dict[str, Any]:
    """Provenance and sizes."""
    images, tags = predictions.scores.shape
    return {
        **predictions.provenance,
        "images": images,
        "tags": tags,
        "tags_with_positives": int(np.count_nonzero(curves.positives)),
        "labels_per_image": float(curves.positives.sum() / images),
    }


def _headline(
    labels: csc_array, decisions: Mapping[str, csc_array], resample: Resample
) -> tuple[dict[str, dict[str, Interval]], dict[str, int]]:
    """Averages at each threshold, with intervals; and over how many tags macro precision is the mean."""
    sampled = resample(labels, decisions)
    averages = {name: metrics.averages(metrics.count(labels, made)) for name, made in decisions.items()}
    headline = {
        name: {figure: interval(found[figure], sampled[name][figure]) for figure in HEADLINE}
        for name, found in averages.items()
    }
    return headline, {name: found["tags_predicted"] for name, found in averages.items()}


def _groups(
    members: Mapping[str, Mapping[str, np.ndarray]],
    counts: Counts,
    ap: np.ndarray,
    labels: csc_array,
    decisions: csc_array,
    minimum: int,
    resample: Resample,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of each kind of groups of tags, and the gaps; all from the same resamples."""
    every = {f"{kind}: {name}": tags for kind, named in members.items() for name, tags in named.items()}

    def measure(counts: Counts) -> dict[str, np.ndarray]:
        return {key: metrics.averages(counts[tags])["macro_f1"] for key, tags in every.items()}

    sampled = resample(labels, {"": decisions}, measure)[""]
    rows: dict[str, Any] = {}
    gaps = {}
    for kind, named in members.items():
        rows[kind] = {}
        for name, tags in named.items():
            row = _row(counts[tags], ap[tags], minimum, sampled[f"{kind}: {name}"])
            rows[kind][name] = row | {"images": len(np.unique(labels[:, tags].indices))}
        gaps[kind] = _gap(rows[kind], {name: sampled[f"{kind}: {name}"] for name in named})
    return rows, gaps


def _row(counts: Counts, ap: np.ndarray, minimum: int, macro_f1: np.ndarray) -> dict[str, Any]:
    """What Analysis says of some of the tags or images; takes macro F1 in every resample."""
    averages = metrics.averages(counts)
    found = interval(averages["macro_f1"], macro_f1)
    names = [name for name in HEADLINE if not name.endswith("mcc")]
    return {
        **{name: averages[name] for name in names},
        "macro_f1_low": found.low,
        "macro_f1_high": found.high,
        "map": metrics.mean_average_precision(ap, counts.positives, minimum)[0],
        "tags": averages["tags"],
        "tags_with_positives": averages["tags_with_positives"],
    }


def _gap(rows: Mapping[str, Mapping[str, Any]], sampled: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The best and the worst by macro F1, and the difference; empty for fewer than two. That they were picked as the
    extremes makes it a little larger than it will be on other images.
    """
    defined = sorted((row["macro_f1"], name) for name, row in rows.items() if not np.isnan(row["macro_f1"]))
    if len(defined) < 2:
        return {}
    (low, worst), (high, best) = defined[0], defined[-1]
    return {"best": best, "worst": worst, "gap": interval(high - low, sampled[best] - sampled[worst])}


def _sources(
    predictions: Predictions,
    scores: np.ndarray,
    decisions: csc_array,
    curves: Curves,
    minimum: int,
    resample: Resample,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the sources, and the gap; each is resampled by itself, since they share no image."""
    labels = predictions.labels
    rows, sampled = {}, {}
    for number, name in enumerate(predictions.source_names):
        where = np.flatnonzero(predictions.sources == number)
        if not len(where):
            continue
        own, made, ap = labels[where].tocsc(), decisions[where].tocsc(), curves.ap
        if len(where) < len(scores):
            ap = metrics.average_precision(table for _, table in metrics.histograms(scores, labels, where))
        sampled[name] = resample(own, {"": made})[""]["macro_f1"]
        rows[name] = _row(metrics.count(own, made), ap, minimum, sampled[name]) | {"images": len(where)}
    return rows, _gap(rows, sampled)


def _split_half(
    scores: np.ndarray, labels: csc_array, fixed: csc_array, threshold: float, seed: int, resample: Resample
) -> dict[str, Any]:
    """What Analysis says of thresholds that were chosen on the other half of the images."""
    fit = cross_fit(scores, labels, seed)
    decisions = {"fixed": fixed, "global": fit.shared, "per_tag": fit.own}
    averages = {name: metrics.averages(metrics.count(labels, made)) for name, made in decisions.items()}
    sampled = resample(labels, decisions)
    halves = [np.flatnonzero(half) for half in (fit.first, ~fit.first)]
    of_halves = {
        name: [metrics.averages(metrics.count(labels[rows].tocsc(), made[rows].tocsc()))["macro_f1"] for rows in halves]
        for name, made in decisions.items()
    }
    result: dict[str, Any] = {
        name: {figure: interval(found[figure], sampled[name][figure]) for figure in ("macro_f1", "micro_f1")}
        for name, found in averages.items()
    }
    for name, words in (("global", "One threshold for all tags"), ("per_tag", "A threshold for each tag")):
        gained = interval(
            averages[name]["macro_f1"] - averages["fixed"]["macro_f1"],
            sampled[name]["macro_f1"] - sampled["fixed"]["macro_f1"],
        )
        result[name]["difference"] = gained
        result[name]["directions"] = (np.subtract(of_halves[name], of_halves["fixed"])).tolist()
        result[name]["verdict"] = _verdict(f"{words}, chosen on the other half,", threshold, gained)
    return result


def _verdict(what: str, threshold: float, gained: Interval) -> str:
    if np.isnan(gained.low):
        return f"{what} cannot be judged: no figure is defined."
    verb = "beats" if gained.low > 0 else "does worse than" if gained.high < 0 else "does not beat"
    return (
        f"{what} {verb} {threshold:g} in macro F1: {gained.value:+.4f}, "
        f"95 % interval {gained.low:+.4f} to {gained.high:+.4f}."
    )


def _along_thresholds(curves: Curves) -> dict[str, np.ndarray]:
    """Macro and micro figures at thresholds that are evenly spread, and at such that macro recall is."""
    recall = np.nan_to_num(curves.macro_recall)[::-1]
    by_recall = LEVELS - 1 - np.searchsorted(recall, np.linspace(0, 1, POINTS)[1:-1])
    level = np.unique(
        np.clip(np.concatenate([metrics.first_level_above(np.linspace(0, 1, POINTS)), by_recall]), 1, LEVELS - 1)
    )
    micro = curves.micro
    return {
        "threshold": VALUES[level - 1],
        **{f"macro_{name}": getattr(curves, f"macro_{name}")[level] for name in micro},
        **{f"micro_{name}": micro[name][level] for name in micro},
    }


def _curves_of_tags(predictions: Predictions, curves: Curves, minimum: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Recall and precision of tags from the commonest to the rarest in training, at each score of a positive."""
    tags = predictions.tags
    enough = np.flatnonzero(curves.positives >= max(1, minimum))
    by_count = enough[np.argsort(-tags.counts[enough], kind="stable")]
    chosen = by_count[np.unique(np.linspace(0, len(by_count) - 1, CURVES).round().astype(int))] if len(enough) else []
    found = {}
    for tag in chosen:
        own = metrics.histograms(predictions.scores[:, [tag]], predictions.labels[:, [tag]])
        ((_, table),) = own
        fp, tp = np.cumsum(table[:, 0, ::-1], axis=1)
        at = np.flatnonzero(table[1, 0, ::-1])
        at = at[np.unique(np.linspace(0, len(at) - 1, 2 * POINTS).astype(int))]
        found[tags.names[tag]] = tp[at] / tp[-1], tp[at] / (tp + fp)[at]
    return found

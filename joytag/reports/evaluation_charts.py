"""The charts of report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from joytag.evaluation.analysis import Analysis, TagCurve
from joytag.evaluation.curves import Calibration, PrecisionRecallF1
from joytag.reports.charts import (
    Axis,
    Bars,
    Line,
    Mark,
    Points,
    VerticalLine,
    chart,
    format_tick,
    iso_f1_lines,
    running_median,
)
from joytag.reports.formats import format_number, format_threshold


def draw_charts(analysis: Analysis) -> dict[str, Markup]:
    """Return all charts of an analysis by name."""
    return {
        "f1_by_count": _f1_by_count(analysis.per_tag),
        "macro_sweep": _threshold_sweep(analysis, "macro"),
        "micro_sweep": _threshold_sweep(analysis, "micro"),
        "precision_recall": _precision_recall(analysis),
        "precision_recall_of_tags": _precision_recall_of_tags(analysis.tag_curves),
        "reliability": _reliability(analysis.calibration),
        "bins": _bins(analysis.calibration),
    }


def _f1_by_count(table: pa.Table) -> Markup:
    """F1 against training images: a dot for each tag, coloured by category, and the running median."""
    counts, f1 = table["train_count"].to_numpy(), table["f1"].to_numpy()
    names, categories = table["name"].to_pylist(), np.array(table["category"].to_pylist())
    titles = [
        f"{name}: F1 {value:.3f}, trained on {trained:,}, {here:,} images here"
        for name, value, trained, here in zip(names, f1, counts, table["positives"].to_pylist(), strict=True)
    ]
    kinds, sizes = np.unique(categories, return_counts=True)
    marks: list[Mark] = []
    for kind in kinds[np.argsort(-sizes, kind="stable")]:  # small categories on top
        of_kind = np.flatnonzero(categories == kind)
        marks.append(Points(counts[of_kind], f1[of_kind], [titles[i] for i in of_kind], name=str(kind)))
    median_counts, median_f1 = running_median(counts, f1)
    marks.append(Line(median_counts, median_f1, name="median of neighbouring tags", style="ink"))
    label = f"F1 of {int(np.isfinite(f1).sum()):,} tags against training images"
    if len(median_f1):
        label += f"; the running median goes from {median_f1[0]:.2f} to {median_f1[-1]:.2f}"
    low, high = math.log10(max(1, counts.min())), math.log10(max(10, counts.max()))
    return chart(label, Axis("training images", 10 ** (low - 0.05), 10 ** (high + 0.05), log=True), Axis("F1"), marks)


def _threshold_sweep(analysis: Analysis, kind: str) -> Markup:
    """Macro or micro precision, recall and F1 against the threshold, with the fixed, best and break-even thresholds."""
    thresholds = analysis.curves.threshold
    precision, recall, f1 = getattr(analysis.curves, kind)
    best, break_even = analysis.thresholds[f"best_{kind}_f1"], analysis.thresholds[f"{kind}_break_even"]
    best_f1, recall_there = np.interp(best, thresholds, f1), np.interp(break_even, thresholds, recall)
    highest = f"{kind} F1 is highest, {format_number(best_f1)}, at {format_threshold(best)}"
    marks: list[Mark] = [
        VerticalLine(analysis.facts.threshold, format_threshold(analysis.facts.threshold)),
        Line(thresholds, precision, name="precision"),
        Line(thresholds, recall, name="recall"),
        Line(thresholds, f1, name="F1"),
        Points([best], [best_f1], [highest], style="ink"),
        Points([break_even], [recall_there], [f"{kind} precision = recall at {break_even:.3f}"], style="ink"),
    ]
    label = f"Precision, recall and F1 against the threshold: {highest}"
    return chart(label, Axis("threshold"), Axis(""), marks)


def _precision_recall(analysis: Analysis) -> Markup:
    """Macro and micro precision-recall curves, with a dot at the fixed threshold."""
    curves, fixed = analysis.curves, analysis.headline["fixed"]
    marks: list[Mark] = [*iso_f1_lines()]
    for kind in ("macro", "micro"):
        average: PrecisionRecallF1 = getattr(curves, kind)
        marks.append(Line(average.recall, average.precision, name=kind))
    for kind in ("macro", "micro"):
        recall, precision = fixed[f"{kind}_recall"].value, fixed[f"{kind}_precision"].value
        title = f"{kind} at {analysis.facts.threshold:g}: precision {precision:.3f}, recall {recall:.3f}"
        marks.append(Points([recall], [precision], [title], style="ink"))
    return chart("Macro and micro precision against recall", Axis("recall"), Axis("precision"), marks)


def _precision_recall_of_tags(curves: Mapping[str, TagCurve]) -> Markup:
    """Precision-recall curves of some tags."""
    lines = [Line(recall, precision, name=name) for name, (recall, precision) in curves.items()]
    label = "Precision against recall of single tags: " + ", ".join(curves)
    return chart(label, Axis("recall"), Axis("precision"), [*iso_f1_lines(), *lines])


def _reliability(calibration: Calibration) -> Markup:
    """Frequency of the label against score; on the diagonal a model is calibrated."""
    scores, frequency = calibration.mean_score, calibration.frequency
    titles = [
        f"score {score:.3f}: labelled in {share:.1%} of {count:,} decisions"
        for score, share, count in zip(scores, frequency, calibration.count, strict=True)
    ]
    marks: list[Mark] = [
        Line([0, 1], [0, 1]),
        Line(scores, frequency, style="s1"),
        Points(scores, frequency, titles, style="s1"),
    ]
    label = f"Frequency of the label against the score; expected calibration error {calibration.ece:.4f}"
    return chart(label, Axis("mean score of the bin"), Axis("labelled"), marks)


def _bins(calibration: Calibration) -> Markup:
    """Number of decisions in each bin of scores."""
    edges = calibration.edges
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    bins = np.clip(np.searchsorted(edges, calibration.mean_score, side="right") - 1, 0, len(counts) - 1)
    counts[bins] = calibration.count
    titles = [
        f"{low:.2f} to {high:.2f}: {count:,} decisions"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    label = f"Number of decisions in each bin of scores, {format_tick(counts.sum())} in all"
    y = Axis("decisions", 0.7, max(10.0, 2.0 * counts.max()), log=True)
    return chart(label, Axis("score"), y, [Bars(edges, counts, titles)])

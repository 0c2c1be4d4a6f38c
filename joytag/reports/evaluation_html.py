"""report.html: an analysis as one page that loads nothing, for any screen and for paper."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from joytag.data import images
from joytag.data.dataset import Dataset, DatasetError
from joytag.evaluation.analysis import Analysis, Gap, Grouping, GroupMetrics
from joytag.evaluation.curves import Calibration, PrecisionRecallF1
from joytag.evaluation.error_analysis import Disagreement
from joytag.evaluation.per_tag import COLUMNS
from joytag.evaluation.predictions import Predictions
from joytag.reports.charts import Axis, Bars, Line, Mark, Points, Rule, chart, interval, iso_f1, running_median, short
from joytag.reports.formats import format_number, format_threshold
from joytag.reports.html import TableColumn, render, sortable_table

SIDE = 160  # pixels of an image's longest side


CARDS = 24  # images of a gallery


MOST = 20  # rows of a short table


ERRORS = 100  # likely label errors that are listed


ENOUGH = 5  # images that a tag must have to be among the best or the worst


SHOWN = 12  # names of a long list


THRESHOLDS = {
    "fixed": "fixed",
    "macro_break_even": "macro P = R",
    "micro_break_even": "micro P = R",
    "best_macro_f1": "best macro F1",
    "best_micro_f1": "best micro F1",
}


SECTIONS = {
    "headline": "Headline",
    "thresholds": "Thresholds",
    "counts": "Training images",
    "curves": "Precision and recall",
    "calibration": "Calibration",
    "groups": "Equal skill?",
    "tags": "Best and worst",
    "confusions": "Confusions",
    "mistakes": "Worst mistakes",
    "labels": "Label errors",
    "all": "All tags",
    "undefined": "Undefined",
    "facts": "What was measured",
}


UNIT = Axis("")


def report(analysis: Analysis, predictions: Predictions, dataset: Dataset | None = None) -> str:
    """Return report.html for an analysis of these predictions, with images if a dataset has them."""
    table, facts = analysis.per_tag, analysis.facts.flat()
    judged = table.filter(pc.greater_equal(table["positives"], ENOUGH))
    few = min(MOST, -(-len(judged) // 2))
    values = {
        "title": f"Evaluation of {facts['model']}" if "model" in facts else "Evaluation",
        "analysis": analysis,
        "charts": _charts(analysis),
        "sections": SECTIONS.items(),
        "threshold_names": THRESHOLDS,
        "metric_titles": _metric_titles(analysis),
        "interval": interval,
        "unit": UNIT,
        "groups": _groups(analysis),
        "judged": len(judged),
        "enough": ENOUGH,
        "most": MOST,
        "shown": SHOWN,
        "best": judged.sort_by([("f1", "descending"), ("positives", "descending")]).slice(0, few).to_pylist(),
        "worst": judged.sort_by([("f1", "ascending"), ("positives", "descending")]).slice(0, few).to_pylist(),
        "false_positives": gallery(analysis.false_positives[:CARDS], predictions, dataset),
        "misses": gallery(analysis.misses[:CARDS], predictions, dataset),
        "label_errors": [describe(mistake, predictions) for mistake in analysis.label_errors[:ERRORS]],
        "all_tags": _all_tags(table),
        "columns": COLUMNS,
        "undefined": _undefined(table),
        "undefined_f1": table["f1"].null_count,
        "provenance": list(_flat({name: value for name, value in facts.items() if name not in ("version", "sha256")})),
    }
    return render("report.html", values)


def _metric_titles(analysis: Analysis) -> dict[str, str]:
    """Name and title of each metric of which the headline has macro and micro averages."""
    return {column.name: column.title for column in COLUMNS if f"macro_{column.name}" in analysis.headline["fixed"]}


def _groups(analysis: Analysis) -> list[tuple[str, Gap | None, list[tuple[str, GroupMetrics]]]]:
    """Return title, gap and rows of each table, the best group first; bands stay in the order of their counts."""
    tables = []
    for title, kind in (("Categories", "categories"), ("By training images", "bands"), ("Sources", "sources"),
                        ("Groups", "groups")):  # fmt: skip
        grouping: Grouping = getattr(analysis, kind)
        rows = list(grouping.rows.items())
        if kind != "bands":
            rows.sort(key=lambda row: -1 if math.isnan(row[1].macro_f1) else row[1].macro_f1, reverse=True)
        if rows:
            tables.append((title, grouping.gap, rows))
    return tables


def _all_tags(table: pa.Table) -> Markup:
    """The per-tag table with the columns that have a title."""
    return sortable_table(TableColumn(column.title, table[column.name]) for column in COLUMNS if column.title)


def _undefined(table: pa.Table) -> list[tuple[str, list[str]]]:
    """What is undefined, in words, and the tags of which it is, most tags first."""
    tags: dict[str, list[str]] = {}
    for name, words in zip(table["name"].to_pylist(), table["undefined"].to_pylist(), strict=True):
        if words:
            tags.setdefault(words, []).append(name)
    return sorted(tags.items(), key=lambda item: -len(item[1]))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts and those within them, as names and words; of long lists the number."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list) and len(value) > SHOWN:
            yield name, f"{len(value):,}"
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def describe(mistake: Disagreement, predictions: Predictions) -> dict[str, Any]:
    """A mistake in words: image id, source and tag by name, beside its own fields."""
    return {
        **mistake._asdict(),
        "id": int(predictions.ids[mistake.row]),
        "source": predictions.source_names[predictions.sources[mistake.row]],
        "tag": predictions.tags.names[mistake.tag],
    }


def gallery(
    mistakes: Sequence[Disagreement], predictions: Predictions, dataset: Dataset | None
) -> list[dict[str, Any]]:
    """Mistakes in words with their images, "" where they are not at hand, and the labels of these."""
    labels = predictions.labels.tocsr()[[mistake.row for mistake in mistakes]]
    cards = []
    for place, mistake in enumerate(mistakes):
        tags = labels.indices[labels.indptr[place] : labels.indptr[place + 1]]
        cards.append({
            **describe(mistake, predictions),
            "image": thumbnail(dataset, predictions.hashes[mistake.row].tobytes()) if dataset else "",
            "labels": [predictions.tags.names[tag] for tag in sorted(tags)[:SHOWN]],
        })  # fmt: skip
    return cards


def thumbnail(dataset: Dataset, sha256: bytes) -> str:
    """An image as a small JPEG in a `data:` URI; "" if it is missing or damaged."""
    try:
        image = images.decode(dataset.image_path(sha256))
    except (images.ImageError, DatasetError):
        return ""
    buffer = io.BytesIO()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _charts(analysis: Analysis) -> dict[str, Markup]:
    curves = analysis.tag_curves
    return {
        "by_count": _by_count(analysis.per_tag),
        "macro_sweep": _sweep(analysis, "macro"),
        "micro_sweep": _sweep(analysis, "micro"),
        "precision_recall": _precision_recall(analysis),
        "chosen": chart(
            "Precision against recall of single tags: " + ", ".join(curves), Axis("recall"), Axis("precision"),
            [*iso_f1(), *(Line(recall, precision, name=name) for name, (recall, precision) in curves.items())],
        ),
        "reliability": _reliability(analysis.calibration),
        "bins": _bins(analysis.calibration),
    }  # fmt: skip


def _by_count(table: pa.Table) -> Markup:
    """F1 by training images, a dot a tag, coloured by category, with the median of neighbours."""
    counts, f1 = table["train_count"].to_numpy(), table["f1"].to_numpy()
    names, categories = table["name"].to_pylist(), np.array(table["category"].to_pylist())
    titles = [
        f"{name}: F1 {value:.3f}, trained on {trained:,}, {here:,} images here"
        for name, value, trained, here in zip(names, f1, counts, table["positives"].to_pylist(), strict=True)
    ]
    kinds, sizes = np.unique(categories, return_counts=True)
    dots: list[Mark] = []
    for kind in kinds[np.argsort(-sizes, kind="stable")]:  # small categories on top
        which = np.flatnonzero(categories == kind)
        dots.append(Points(counts[which], f1[which], [titles[i] for i in which], name=str(kind)))
    across, middle = running_median(counts, f1)
    low, high = max(1, counts.min()), max(10, counts.max())
    words = f", rising from {middle[0]:.2f} to {middle[-1]:.2f} with their number" if len(middle) else ""
    return chart(
        f"F1 of {int(np.isfinite(f1).sum()):,} tags against training images: the median goes{words}",
        Axis("training images", 10 ** (math.log10(low) - 0.05), 10 ** (math.log10(high) + 0.05), log=True),
        Axis("F1"),
        [*dots, Line(across, middle, name="median of neighbouring tags", style="ink")],
    )


def _sweep(analysis: Analysis, kind: str) -> Markup:
    """Precision, recall and F1 against the threshold, with the fixed one, the best, and where P = R."""
    across = analysis.curves.threshold
    precision, recall, f1 = getattr(analysis.curves, kind)
    best, even = analysis.thresholds[f"best_{kind}_f1"], analysis.thresholds[f"{kind}_break_even"]
    best_f1, both = np.interp(best, across, f1), np.interp(even, across, recall)
    highest = f"{kind} F1 is highest, {format_number(best_f1)}, at {format_threshold(best)}"
    marks: list[Mark] = [
        Rule(analysis.facts.threshold, format_threshold(analysis.facts.threshold)),
        Line(across, precision, name="precision"),
        Line(across, recall, name="recall"),
        Line(across, f1, name="F1"),
        Points([best], [best_f1], [highest], style="ink"),
        Points([even], [both], [f"{kind} precision = recall at {even:.3f}"], style="ink"),
    ]
    label = f"Precision, recall and F1 against the threshold: {highest}"
    return chart(label, Axis("threshold"), Axis(""), marks)


def _precision_recall(analysis: Analysis) -> Markup:
    """Micro and macro precision against recall, with the fixed threshold's points."""
    curves, fixed = analysis.curves, analysis.headline["fixed"]
    marks: list[Mark] = [*iso_f1()]
    for kind in ("macro", "micro"):
        average: PrecisionRecallF1 = getattr(curves, kind)
        marks.append(Line(average.recall, average.precision, name=kind))
    for kind in ("macro", "micro"):
        recall, precision = fixed[f"{kind}_recall"].value, fixed[f"{kind}_precision"].value
        words = f"{kind} at {analysis.facts.threshold:g}: precision {precision:.3f}, recall {recall:.3f}"
        marks.append(Points([recall], [precision], [words], style="ink"))
    return chart("Macro and micro precision against recall", Axis("recall"), Axis("precision"), marks)


def _reliability(calibration: Calibration) -> Markup:
    """How often the label agrees, by score."""
    scores, frequency = calibration.mean_score, calibration.frequency
    titles = [
        f"score {score:.3f}: labelled in {share:.1%} of {number:,} decisions"
        for score, share, number in zip(scores, frequency, calibration.count, strict=True)
    ]
    marks: list[Mark] = [
        Line([0, 1], [0, 1]),
        Line(scores, frequency, style="s1"),
        Points(scores, frequency, titles, style="s1"),
    ]
    label = f"How often a tag is labelled, by its score; expected calibration error {calibration.ece:.4f}"
    return chart(label, Axis("mean score of the bin"), Axis("labelled"), marks)


def _bins(calibration: Calibration) -> Markup:
    """How many decisions each bin of scores holds."""
    edges = calibration.edges
    numbers = np.zeros(len(edges) - 1, dtype=np.int64)
    place = np.clip(np.searchsorted(edges, calibration.mean_score, side="right") - 1, 0, len(numbers) - 1)
    numbers[place] = calibration.count
    titles = [f"{low:.2f} to {high:.2f}: {number:,} decisions"
              for low, high, number in zip(edges[:-1], edges[1:], numbers, strict=True)]  # fmt: skip
    top = Axis("decisions", 0.7, max(10.0, 2.0 * numbers.max()), log=True)
    return chart(f"Decisions in each bin of scores, {short(numbers.sum())} in all", Axis("score"), top,
                 [Bars(edges, numbers, titles)])  # fmt: skip

"""report.html: an analysis on one page that loads nothing, for any screen and for paper."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from joytag.data import images
from joytag.data.dataset import Dataset, DatasetError
from joytag.evaluation.analysis import Analysis
from joytag.evaluation.error_analysis import Disagreement
from joytag.evaluation.groupings import Gap, Grouping, GroupMetrics
from joytag.evaluation.per_tag import COLUMNS
from joytag.evaluation.predictions import Predictions
from joytag.reports.charts import Axis, interval_bar
from joytag.reports.evaluation_charts import draw_charts
from joytag.reports.formats import MOST_NAMES, format_facts
from joytag.reports.html import TableColumn, render, sortable_table

THUMBNAIL_SIDE = 160  # pixels of the longest side
MOST_CARDS = 24  # images in a gallery
MOST_ROWS = 20  # of a short table
MOST_ERRORS = 100  # likely label errors on the page
FEWEST_IMAGES = 5  # of a tag among the best or worst

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
    "groups": "Groups",
    "tags": "Best and worst",
    "confusions": "Confusions",
    "mistakes": "Worst mistakes",
    "labels": "Label errors",
    "all": "All tags",
    "undefined": "Undefined",
    "facts": "Provenance",
}
GROUPS = {
    "categories": "Categories",
    "bands": "Training images",
    "sources": "Sources",
    "groups": "Groups of tags",
}


def render_page(analysis: Analysis, predictions: Predictions, dataset: Dataset | None = None) -> str:
    """Return report.html for an analysis of these predictions, with images if a dataset has them."""
    table, facts = analysis.per_tag, analysis.facts.flat()
    ranked = table.filter(pc.greater_equal(table["positives"], FEWEST_IMAGES))
    ranked = ranked.sort_by([("f1", "descending"), ("positives", "descending")])
    best = ranked.filter(pc.greater(ranked["f1"], 0)).slice(0, min(MOST_ROWS, -(-len(ranked) // 2)))
    rest = ranked.slice(len(best)).sort_by([("f1", "ascending"), ("positives", "descending")])
    values = {
        "title": f"Evaluation of {facts['model']}" if "model" in facts else "Evaluation",
        "analysis": analysis,
        "charts": draw_charts(analysis),
        "sections": SECTIONS.items(),
        "threshold_names": THRESHOLDS,
        "metric_titles": _metric_titles(analysis),
        "interval_bar": interval_bar,
        "unit_axis": Axis(""),
        "groups": _groups(analysis),
        "tags_ranked": len(ranked),
        "fewest_images": FEWEST_IMAGES,
        "most_rows": MOST_ROWS,
        "most_names": MOST_NAMES,
        "best": best.to_pylist(),
        "worst": rest.filter(pc.less(rest["f1"], 1)).slice(0, MOST_ROWS).to_pylist(),
        "false_positives": gallery_cards(analysis.false_positives[:MOST_CARDS], predictions, dataset),
        "misses": gallery_cards(analysis.misses[:MOST_CARDS], predictions, dataset),
        "label_errors": name_disagreements(analysis.label_errors[:MOST_ERRORS], predictions, dataset),
        "all_tags": _all_tags(table),
        "columns": COLUMNS,
        "undefined": _undefined(table),
        "undefined_f1": table["f1"].null_count,
        "provenance": list(format_facts({name: facts[name] for name in facts if name not in ("version", "sha256")})),
    }
    return render("report.html", values)


def _metric_titles(analysis: Analysis) -> dict[str, str]:
    """Name and title of each metric of which the headline has macro and micro averages, F1 first."""
    columns = [column for column in COLUMNS if f"macro_{column.name}" in analysis.headline["fixed"]]
    return {column.name: column.title for column in sorted(columns, key=lambda column: column.name != "f1")}


def _groups(analysis: Analysis) -> list[tuple[str, Gap | None, list[tuple[str, GroupMetrics]]]]:
    """Title, gap and rows of each table of groups, the best group first; ranges of training images stay in order."""
    tables = []
    for kind, title in GROUPS.items():
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
    """Each reason for undefined metrics with its tags, the most frequent reason first."""
    tags: dict[str, list[str]] = {}
    for name, reason in zip(table["name"].to_pylist(), table["undefined"].to_pylist(), strict=True):
        if reason:
            tags.setdefault(reason, []).append(name)
    return sorted(tags.items(), key=lambda item: -len(item[1]))


def name_disagreements(
    disagreements: Sequence[Disagreement], predictions: Predictions, dataset: Dataset | None
) -> list[dict[str, Any]]:
    """Return the fields of disagreements, with image and tag named instead of numbered.

    `path` is that of the original file in the folder of its `source`; "" if no dataset has it.
    """
    rows, split = [disagreement.row for disagreement in disagreements], predictions.provenance.get("split")
    paths = dataset.original_paths(str(split), predictions.hashes[rows]) if dataset else [""] * len(rows)
    return [
        {
            **disagreement._asdict(),
            "path": path,
            "id": int(predictions.ids[disagreement.row]),
            "sha256": predictions.hashes[disagreement.row].tobytes().hex(),
            "source": predictions.source_names[predictions.sources[disagreement.row]],
            "tag": predictions.tags.names[disagreement.tag],
        }
        for disagreement, path in zip(disagreements, paths, strict=True)
    ]


def gallery_cards(
    disagreements: Sequence[Disagreement], predictions: Predictions, dataset: Dataset | None
) -> list[dict[str, Any]]:
    """Return named disagreements, each with the image's `labels` and its thumbnail, `image`; "" if unavailable."""
    cards = name_disagreements(disagreements, predictions, dataset)
    labels = predictions.labels.tocsr()[[card["row"] for card in cards]]
    for i, card in enumerate(cards):
        tags = labels.indices[labels.indptr[i] : labels.indptr[i + 1]]
        card["image"] = thumbnail(dataset, predictions.hashes[card["row"]].tobytes()) if dataset else ""
        card["labels"] = [predictions.tags.names[tag] for tag in sorted(tags)[:MOST_NAMES]]
    return cards


def thumbnail(dataset: Dataset, sha256: bytes) -> str:
    """Return an image as a small JPEG in a `data:` URI; "" if it is missing or damaged."""
    try:
        image = images.decode(dataset.image_path(sha256))
    except (images.ImageError, DatasetError):
        return ""
    buffer = io.BytesIO()
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

"""The reports of an evaluation: all its files, a summary and a terminal table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE
from rich.table import Table

from joytag.core.files import write_text
from joytag.core.lock import sole_writer
from joytag.data.dataset import Dataset
from joytag.data.tables import write_table
from joytag.evaluation.analysis import Analysis
from joytag.evaluation.metrics import VALUES, Counts
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation_html
from joytag.reports.formats import format_number
from joytag.reports.full_metrics import write_full_metrics
from joytag.reports.writers import write_csv, write_json


def write_reports(
    directory: Path, analysis: Analysis, predictions: Predictions, dataset: Dataset | None = None
) -> None:
    """Write all reports of an analysis of these predictions; report.html shows images if a dataset has them.

    full-metrics.txt (the original's format and conventions), metrics.json, per_tag.parquet and per_tag.csv,
    thresholds.csv (which `tagging.captions.read_thresholds` reads), label_errors.csv, and report.html. Undefined
    metrics are null in JSON and parquet, and empty in CSV.
    """
    with sole_writer(directory):
        table = analysis.per_tag
        counts = Counts(*(table[name].to_numpy() for name in ("tp", "fp", "fn", "tn")))
        train_counts = table["train_count"].to_pylist()
        write_full_metrics(directory / "full-metrics.txt", table["name"].to_pylist(), train_counts, counts)
        write_json(directory / "metrics.json", _metrics(analysis))
        write_table(table, table.schema, directory / "per_tag.parquet")
        write_csv(directory / "per_tag.csv", table)
        write_thresholds(directory / "thresholds.csv", table)
        errors = evaluation_html.name_disagreements(analysis.label_errors, predictions, dataset)
        columns = ("path", "source", "id", "sha256", "tag", "labelled", "score", "confidence")
        write_csv(directory / "label_errors.csv", pa.table({name: [row[name] for row in errors] for name in columns}))
        write_text(directory / "report.html", evaluation_html.render_page(analysis, predictions, dataset))


def _metrics(analysis: Analysis) -> dict[str, Any]:
    """The contents of metrics.json: all of an analysis but the curves and what concerns single tags or images."""
    split_half = analysis.split_half
    groupings = {name: getattr(analysis, name) for name in ("sources", "categories", "bands", "groups")}
    return {
        "facts": analysis.facts.flat(),
        "thresholds": analysis.thresholds,
        "headline": analysis.headline,
        "macro_over": analysis.macro_over,
        "split_half": {"fixed": split_half.fixed, "global": split_half.shared, "per_tag": split_half.per_tag},
        **{name: grouping.rows for name, grouping in groupings.items()},
        "gaps": {name: groupings[name].gap or {} for name in ("categories", "bands", "groups", "sources")},
        "calibration": analysis.calibration,
    }


def write_thresholds(path: Path, table: pa.Table) -> None:
    """Write thresholds.csv: tag, suggested threshold and positives of each tag that has a suggested threshold.

    Where F1 is best if every image gets the tag, the threshold is positive but below the smallest float16 score.
    """
    chosen = table.filter(table["threshold"].is_valid())
    threshold = np.maximum(chosen["threshold"].to_numpy(), VALUES[1] / 2)
    write_csv(path, pa.table({"tag": chosen["name"], "threshold": threshold, "positives": chosen["positives"]}))


def summarize(path: Path) -> str:
    """Summarize metrics.json in two sentences: macro and micro F1, and the weakest groups of tags.

    Raises ValueError if the file cannot be read.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        headline = metrics["headline"]["fixed"]
        micro, macro = (f"{headline[f'{kind}_f1']['value']:.3f}" for kind in ("micro", "macro"))
        macro_f1 = {name: row["macro_f1"] for name, row in metrics["groups"].items() if row["macro_f1"] is not None}
        tags = f"{metrics['facts']['tags']:,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the metrics of an evaluation ({error!r}); evaluate the model again") from None
    weakest = ", ".join(f"{name} ({macro_f1[name]:.3f})" for name in sorted(macro_f1, key=macro_f1.__getitem__)[:3])
    groups = f" Its weakest groups of tags, by macro F1: {weakest}." if weakest else ""
    return f"The model predicts {tags} tags with micro F1 {micro} and macro F1 {macro}.{groups}"


def metrics_table(analysis: Analysis) -> Table:
    """A terminal table of averages at the fixed threshold: all images with 95 % intervals, sources, categories.

    An undefined average is a dash, so that the table is at most 80 characters wide.
    """
    metrics = [f"{kind}_{name}" for kind in ("micro", "macro") for name in ("precision", "recall", "f1")] + ["map"]
    title = f"Threshold {analysis.facts.threshold:g}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("micro\nP", "micro\nR", "micro\nF1", "macro\nP", "macro\nR", "macro\nF1", "\nmAP", "\ntags"):
        table.add_column(name, justify="right")
    headline = {**analysis.headline["fixed"], **analysis.headline["ranking"]}
    intervals = [headline[name] for name in metrics]
    tags = f"{analysis.facts.tags_with_positives}/{analysis.facts.tags}"
    table.add_row("all", *(_short(interval.value) for interval in intervals), tags)
    half_widths = ("" if math.isnan(i.value) else f"±{(i.high - i.low) / 2:.3f}" for i in intervals)
    table.add_row("", *half_widths, style="dim")
    for grouping in (analysis.sources, analysis.categories):
        for name, row in grouping.rows.items():
            tags = f"{row.tags_with_positives}/{row.tags}"
            table.add_row(name, *(_short(getattr(row, metric)) for metric in metrics), tags)
    return table


def _short(value: float) -> str:
    return "–" if math.isnan(value) else format_number(value)

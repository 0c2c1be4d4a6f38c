"""What an evaluation leaves behind: full-metrics.txt, metrics.json, tables, report.html; curves and contact sheets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from joytag.core.files import write_text
from joytag.data.dataset import Dataset
from joytag.data.tables import write_table
from joytag.evaluation.analysis import Analysis
from joytag.evaluation.metrics import VALUES, Counts
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation_html
from joytag.reports.full_metrics import ReportError, write_full_metrics
from joytag.reports.tables import jsonable, write_csv


def write_reports(
    directory: Path, analysis: Analysis, predictions: Predictions, dataset: Dataset | None = None
) -> None:
    """Write all reports of an analysis of these predictions; with images if there is a dataset that has them.

    full-metrics.txt (the original's format and conventions), metrics.json, per_tag.parquet and .csv, thresholds.csv
    (for `predict.py --thresholds`), label_errors.csv, and report.html. Undefined figures are null in JSON and parquet,
    and empty in CSV.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table = analysis.per_tag
    counts = Counts(*(table[name].to_numpy() for name in ("tp", "fp", "fn", "tn")))
    train_counts = table["train_count"].to_pylist()
    write_full_metrics(directory / "full-metrics.txt", table["name"].to_pylist(), train_counts, counts)
    write_metrics(directory / "metrics.json", analysis)
    write_table(table, table.schema, directory / "per_tag.parquet")
    write_csv(directory / "per_tag.csv", table)
    write_thresholds(directory / "thresholds.csv", table)
    errors = [evaluation_html.describe(mistake, predictions) for mistake in analysis.label_errors]
    columns = ("id", "source", "tag", "labelled", "score", "confidence")
    write_csv(directory / "label_errors.csv", pa.table({name: [row[name] for row in errors] for name in columns}))
    write_text(directory / "report.html", evaluation_html.report(analysis, predictions, dataset))


def write_metrics(path: Path, analysis: Analysis) -> None:
    """Write metrics.json: all of the analysis but the curves and what is about single tags or images."""
    split_half = analysis.split_half
    groupings = {name: getattr(analysis, name) for name in ("sources", "categories", "bands", "groups")}
    values = {
        "facts": analysis.facts.flat(),
        "thresholds": analysis.thresholds,
        "headline": analysis.headline,
        "macro_over": analysis.macro_over,
        "split_half": {"fixed": split_half.fixed, "global": split_half.shared, "per_tag": split_half.per_tag},
        **{name: grouping.rows for name, grouping in groupings.items()},
        "gaps": {name: groupings[name].gap or {} for name in ("categories", "bands", "groups", "sources")},
        "calibration": analysis.calibration,
    }
    write_text(path, json.dumps(jsonable(values), indent=2, allow_nan=False) + "\n")


def summary(path: Path) -> str:
    """What metrics.json says in two sentences: the headline, and the weakest groups of tags. Raises ReportError."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        headline = metrics["headline"]["fixed"]
        micro, macro = (f"{headline[f'{kind}_f1']['value']:.3f}" for kind in ("micro", "macro"))
        skill = {name: row["macro_f1"] for name, row in metrics["groups"].items() if row["macro_f1"] is not None}
        tags = f"{metrics['facts']['tags']:,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: no metrics.json of evaluate.py ({error!r}); write it again with that") from None
    weakest = ", ".join(f"{name} ({skill[name]:.3f})" for name in sorted(skill, key=skill.__getitem__)[:3])
    groups = f" Its weakest groups of tags, by macro F1: {weakest}." if weakest else ""
    return f"The model names {tags} tags with micro F1 {micro} and macro F1 {macro}.{groups}"


def write_thresholds(path: Path, table: pa.Table) -> None:
    """Write thresholds.csv for `predict.py --thresholds`, from the rows of per_tag that have a threshold.

    Where it pays to predict a tag for every image, the threshold is the smallest that a float16 score can pass.
    """
    chosen = table.filter(table["threshold"].is_valid())
    threshold = np.maximum(chosen["threshold"].to_numpy(), VALUES[1] / 2)
    write_csv(path, pa.table({"tag": chosen["name"], "threshold": threshold, "positives": chosen["positives"]}))


def metrics_table(analysis: Analysis) -> Table:
    """A terminal table of averages at the fixed threshold: all images with 95 % intervals, sources, categories."""
    figures = [f"{kind}_{figure}" for kind in ("micro", "macro") for figure in ("precision", "recall", "f1")]
    table = Table(title=f"Threshold {analysis.facts.threshold:g}", title_justify="left", box=SIMPLE,
                  padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("")
    for name in ("micro\nP", "micro\nR", "micro\nF1", "macro\nP", "macro\nR", "macro\nF1", "\nmAP", "\ntags"):
        table.add_column(name, justify="right")
    headline = {**analysis.headline["fixed"], **analysis.headline["ranking"]}
    shown = [headline[name] for name in (*figures, "map")]
    tags = f"{analysis.facts.tags_with_positives}/{analysis.facts.tags}"
    table.add_row("all", *(_figure(interval.value) for interval in shown), tags)
    spreads = ("" if math.isnan(i.value) else f"±{(i.high - i.low) / 2:.3f}" for i in shown)
    table.add_row("", *spreads, style="dim")
    for grouping in (analysis.sources, analysis.categories):
        for name, row in grouping.rows.items():
            numbers = f"{row.tags_with_positives}/{row.tags}"
            table.add_row(escape(name), *(_figure(getattr(row, figure)) for figure in (*figures, "map")), numbers)
    return table


def _figure(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"

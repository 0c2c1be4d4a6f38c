"""The reports of a comparison: all its files and the terminal tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from joytag.core.files import write_text
from joytag.core.lock import sole_writer
from joytag.data.tables import write_table
from joytag.evaluation.comparison import F1_METRICS, METRICS, VIEWS, Comparison, Difference
from joytag.reports import comparison_html
from joytag.reports.formats import format_number
from joytag.reports.writers import write_csv, write_json

REPORT = "compare.json"


def write_reports(directory: Path, comparison: Comparison) -> None:
    """Write compare.html, compare.json, per_tag.parquet and per_tag.csv.

    Undefined metrics are null in JSON and parquet, and empty in CSV.
    """
    with sole_writer(directory):
        write_table(comparison.per_tag, comparison.per_tag.schema, directory / "per_tag.parquet")
        write_csv(directory / "per_tag.csv", comparison.per_tag)
        write_text(directory / "compare.html", comparison_html.render_page(comparison))
        write_json(directory / REPORT, _contents(comparison))


def _contents(comparison: Comparison) -> dict[str, Any]:
    """The contents of compare.json: all of a comparison but the curves and what concerns single tags."""
    contenders = comparison.contenders
    return {
        "facts": comparison.facts,
        "taggers": {c.letter: {"name": c.name, "threshold": c.threshold, **c.provenance} for c in contenders},
        "summary": [comparison.summary(*pair) for pair in comparison.pairs()],
        "views": {name: view.words for name, view in VIEWS.items()},
        "thresholds": comparison.thresholds,
        "figures": comparison.metrics,
        "differences": [_difference(difference) for difference in comparison.differences],
        "categories": {
            name: {
                "tags": row.tags,
                "tags_with_positives": row.tags_with_positives,
                "figures": row.macro_f1,
                "differences": [_difference(difference) for difference in row.differences],
            }
            for name, row in comparison.categories.items()
        },
        "tags": {"".join(pair): comparison_html.tags_won(comparison.per_tag, *pair) for pair in comparison.pairs()},
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "first": difference.first,
        "second": difference.second,
        "view": difference.view,
        "figure": difference.metric,
        "difference": difference.interval,
        "winner": difference.winner,
        "verdict": difference.verdict,
    }


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield terminal tables: all taggers' metrics, then for each pair the verdicts on its differences."""
    metrics = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "", *(c.letter for c in comparison.contenders)):
        metrics.add_column(name, justify="right" if name else "left")
    for name, view in VIEWS.items():
        for row, metric in enumerate(view.metrics):
            values = (format_number(intervals[metric].value, 4) for intervals in comparison.metrics[name].values())
            metrics.add_row("" if row else view.name, METRICS[metric], *values)
    yield metrics
    for first, second in comparison.pairs():
        title = comparison.summary(first, second)
        verdicts = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
        verdicts.show_header = False
        for name, view in VIEWS.items():
            for metric in view.metrics:
                if metric in (*F1_METRICS, "map"):
                    verdict = comparison.difference(first, second, name, metric).verdict
                    verdicts.add_row(view.name, METRICS[metric], verdict)
        yield verdicts

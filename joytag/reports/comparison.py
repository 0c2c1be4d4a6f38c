"""What a comparison leaves behind: compare.json, per_tag.parquet and .csv, compare.html, and a terminal table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from rich.box import SIMPLE
from rich.table import Table

from joytag.core import files
from joytag.data.tables import write_table
from joytag.evaluation.comparison import (
    DECISIONS,
    F1_METRICS,
    FAIR_VIEW,
    FALSE_DISCOVERIES,
    METRICS,
    VIEWS,
    Comparison,
    Difference,
)
from joytag.reports import html
from joytag.reports.charts import Axis, Line, Points, chart, interval, iso_f1
from joytag.reports.formats import format_difference, format_number, format_threshold
from joytag.reports.tables import jsonable, write_csv

MOST = 20  # tags that are listed as won or lost
REACH = 0.01  # of an axis of differences, at least
SECTIONS = {
    "taggers": "Taggers",
    "differences": "Who is better?",
    "curves": "Curves",
    "categories": "Categories",
    "tags": "Tags won and lost",
    "all": "All tags",
    "facts": "What was compared",
}


def write(directory: Path, comparison: Comparison) -> None:
    """Write all reports of a comparison. Undefined figures are null in JSON and parquet, and empty in CSV."""
    directory.mkdir(parents=True, exist_ok=True)
    write_table(comparison.per_tag, comparison.per_tag.schema, directory / "per_tag.parquet")
    write_csv(directory / "per_tag.csv", comparison.per_tag)
    files.write_text(directory / "compare.html", compare_page(comparison))
    files.write_text(directory / "compare.json", json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of a comparison but the curves and what is about single tags, as JSON can hold it."""
    return jsonable({
        "facts": comparison.facts,
        "taggers": {
            c.letter: {"name": c.name, "threshold": c.threshold, **c.facts} for c in comparison.contenders
        },
        "summary": [comparison.summary(*pair) for pair in comparison.pairs()],
        "views": {name: view.words for name, view in VIEWS.items()},
        "thresholds": comparison.thresholds,
        "figures": comparison.metrics,
        "differences": [_difference(d) for d in comparison.differences],
        "categories": {
            name: {
                "tags": row.tags,
                "tags_with_positives": row.tags_with_positives,
                "figures": row.macro_f1,
                "differences": [_difference(d) for d in row.differences],
            }
            for name, row in comparison.categories.items()
        },
        "tags": {f"{a}{b}": won(comparison.per_tag, a, b) for a, b in comparison.pairs()},
    })  # fmt: skip


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


def won(per_tag: pa.Table, first: str, second: str) -> dict[str, int]:
    """How many tags either of a pair wins, and how many neither."""
    winners = per_tag[f"winner_{first}{second}"].to_pylist()
    return {first: winners.count(first), second: winners.count(second), "neither": winners.count("")}


def tables(comparison: Comparison) -> Iterator[Table]:
    """Terminal tables: everyone's figures, then for each pair what to think of their differences."""
    figures = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "", *(c.letter for c in comparison.contenders)):
        figures.add_column(name, justify="right" if name else "left")
    for name, view in VIEWS.items():
        for number, metric in enumerate(view.metrics):
            values = (format_number(found[metric].value, 4) for found in comparison.metrics[name].values())
            figures.add_row("" if number else view.name, METRICS[metric], *values)
    yield figures
    for first, second in comparison.pairs():
        verdicts = Table(title=comparison.summary(first, second), title_justify="left", title_style="bold", box=SIMPLE,
                         padding=(0, 1, 0, 0), show_header=False)  # fmt: skip
        for _, rows in _rows(comparison, first, second):
            for d in rows:
                if d.metric in (*F1_METRICS, "map"):
                    verdicts.add_row(VIEWS[d.view].name, METRICS[d.metric], d.verdict)
        yield verdicts


def _rows(comparison: Comparison, first: str, second: str) -> list[tuple[str, list[Difference]]]:
    """The differences of a pair by view."""
    return [
        (view, [comparison.difference(first, second, view, metric) for metric in VIEWS[view].metrics])
        for view in VIEWS
    ]  # fmt: skip


def compare_page(comparison: Comparison) -> str:
    """The page about a comparison, HTML."""
    pairs = comparison.pairs()
    names = {c.letter: c.name for c in comparison.contenders}
    return html.render("compare.html", {
        "title": " against ".join(names.values()), "comparison": comparison, "pairs": pairs, "names": names,
        "rows": {pair: _rows(comparison, *pair) for pair in pairs}, "axes": {p: _axis(comparison, *p) for p in pairs},
        "interval": interval, "views": VIEWS, "decisions": DECISIONS, "metrics": METRICS,
        "fair": VIEWS[FAIR_VIEW].words,
        "won": {pair: won(comparison.per_tag, *pair) for pair in pairs},
        "tags": {pair: {letter: _tags(comparison.per_tag, pair, letter) for letter in pair} for pair in pairs},
        "charts": _charts(comparison), "all_tags": _all_tags(comparison), "false_discoveries": FALSE_DISCOVERIES,
        "thresholds": _thresholds(comparison), "sections": SECTIONS.items(),
        "provenance": list(_provenance(comparison)),
    })  # fmt: skip


def _axis(comparison: Comparison, first: str, second: str) -> Axis:
    """For all differences of a pair, with 0 in its middle."""
    bounds = [
        bound
        for d in comparison.differences
        for bound in (d.interval.value, d.interval.low, d.interval.high)
        if (d.first, d.second) == (first, second) and math.isfinite(bound)
    ]
    reach = max([REACH, *map(abs, bounds)])
    return Axis("", -reach, reach)


def _thresholds(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Thresholds in words, by view and letter; two where each half has its own."""
    return {
        view: {
            letter: " and ".join(format_threshold(one) for one in (value if isinstance(value, tuple) else (value,)))
            for letter, value in of_view.items()
        }
        for view, of_view in comparison.thresholds.items()
    }


def _provenance(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Facts of the comparison and of each tagger, as names and words."""
    for prefix, facts in (("", comparison.facts), *((f"{c.letter}: ", c.facts) for c in comparison.contenders)):
        for name, value in facts.items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{key} {item}" for key, item in value.items())
            yield f"{prefix}{name}".replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)


def _tags(table: pa.Table, pair: tuple[str, str], letter: str) -> list[dict[str, Any]]:
    """The tags that one of a pair wins, the widest differences first; then those that it would, were they decided."""
    key = "".join(pair)
    sign = 1 if letter == pair[0] else -1
    rows = [row for row in table.to_pylist() if sign * (row[f"difference_{key}"] or 0) > 0]
    rows.sort(key=lambda row: (row[f"winner_{key}"] != letter, -sign * row[f"difference_{key}"]))
    return [
        {
            **{name: row[name] for name in ("name", "positives", "train_count")},
            "figures": [row[f"f1_{of}"] for of in pair],
            "difference": row[f"difference_{key}"],
            "decided": row[f"winner_{key}"] == letter,
        }
        for row in rows[:MOST]
    ]


def _charts(comparison: Comparison) -> dict[str, Any]:
    curves, names = comparison.curves, {c.letter: f"{c.letter}: {c.name}" for c in comparison.contenders}
    drawn: dict[str, Any] = {}
    for kind in ("macro", "micro"):
        drawn[f"{kind}_pr"] = chart(
            f"{kind} precision against recall of {', '.join(names.values())}", Axis("recall"), Axis("precision"),
            [*iso_f1(), *(Line(getattr(c, kind).recall, getattr(c, kind).precision, name=names[letter])
                          for letter, c in curves.items())],
        )  # fmt: skip
        drawn[f"{kind}_sweep"] = chart(
            f"{kind} F1 against the threshold of {', '.join(names.values())}", Axis("threshold"), Axis(f"{kind} F1"),
            [Line(c.threshold, getattr(c, kind).f1, name=names[letter]) for letter, c in curves.items()],
        )  # fmt: skip
    drawn["clouds"] = {pair: _cloud(comparison, *pair) for pair in comparison.pairs()}
    return drawn


def _cloud(comparison: Comparison, first: str, second: str) -> Markup:
    """Average precision of one against that of another, a dot a tag, by who wins it."""
    table = comparison.per_tag
    x, y = (table[f"ap_{letter}"].to_numpy() for letter in (second, first))
    names, positives = table["name"].to_pylist(), table["positives"].to_pylist()
    winners = np.array(table[f"winner_{first}{second}"].to_pylist())
    titles = [
        f"{name}: average precision {first} {b:.3f}, {second} {a:.3f}, {n:,} images"
        for name, a, b, n in zip(names, x, y, positives, strict=True)
    ]
    groups = {"": ("undecided", "s8"), first: (f"{first} wins", "s1"), second: (f"{second} wins", "s2")}
    dots = [
        Points(x[which], y[which], [titles[i] for i in which], name=name, style=style)
        for winner, (name, style) in groups.items()
        if len(which := np.flatnonzero(winners == winner))
    ]
    label = f"Average precision of {len(names):,} tags by {first}, against that by {second}"
    across, up = (Axis(f"average precision of {letter}") for letter in (second, first))
    return chart(label, across, up, [Line([0, 1], [0, 1]), *dots])


def _all_tags(comparison: Comparison) -> Markup:
    """The per-tag table: average precision and F1 of every tagger, then the difference in F1 of every pair."""
    table = comparison.per_tag
    titles = {"name": "tag", "category": "category", "train_count": "trained on", "positives": "images"}
    columns = [html.TableColumn(title, table[name]) for name, title in titles.items()]
    for name, title in (("ap", "AP"), ("f1", "F1")):
        columns += [html.TableColumn(f"{title} {c.letter}", table[f"{name}_{c.letter}"]) for c in comparison.contenders]
    for first, second in comparison.pairs():
        pair = f"{first}{second}"
        columns += [
            html.TableColumn(f"{first} − {second}", table[f"difference_{pair}"], format_difference),
            html.TableColumn("q", table[f"q_{pair}"]),
            html.TableColumn("won by", table[f"winner_{pair}"]),
        ]
    return html.sortable_table(columns)

"""compare.html: a comparison on one page that loads nothing, for any screen and for paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from joytag.evaluation.comparison import FAIR_VIEW, FALSE_DISCOVERIES, METRICS, VIEWS, Comparison, Difference
from joytag.reports.charts import (
    UNDECIDED,
    Axis,
    Line,
    Points,
    chart,
    difference_axis,
    interval_bar,
    iso_f1_lines,
    series_style,
)
from joytag.reports.formats import format_difference, format_facts, format_threshold
from joytag.reports.html import TableColumn, render, sortable_table

MOST_TAGS = 20  # in a list of tags won

SECTIONS = {
    "taggers": "Taggers",
    "differences": "Differences",
    "curves": "Curves",
    "categories": "Categories",
    "tags": "Tags won and lost",
    "all": "All tags",
    "facts": "Provenance",
}


def render_page(comparison: Comparison) -> str:
    """Return compare.html for a comparison."""
    pairs, table = comparison.pairs(), comparison.per_tag
    names, styles = {c.letter: c.name for c in comparison.contenders}, _styles(comparison)
    values = {
        "title": " vs. ".join(names.values()),
        "comparison": comparison,
        "pairs": pairs,
        "names": names,
        "styles": styles,
        "sections": SECTIONS.items(),
        "differences": {pair: _differences(comparison, *pair) for pair in pairs},
        "axes": {pair: _difference_axis(comparison, *pair) for pair in pairs},
        "interval_bar": interval_bar,
        "views": VIEWS,
        "metrics": METRICS,
        "fair": VIEWS[FAIR_VIEW].words,
        "false_discoveries": FALSE_DISCOVERIES,
        "thresholds": _thresholds(comparison),
        "charts": _charts(comparison),
        "tags_won": {pair: tags_won(table, *pair) for pair in pairs},
        "best_tags": {pair: {letter: _best_tags(table, pair, letter) for letter in pair} for pair in pairs},
        "all_tags": _all_tags(comparison),
        "provenance": list(_provenance(comparison)),
    }
    return render("compare.html", values)


def _styles(comparison: Comparison) -> dict[str, str]:
    """The class with each tagger's colour by its letter, and under "" that of what none of them wins."""
    return {"": UNDECIDED} | {c.letter: series_style(number) for number, c in enumerate(comparison.contenders)}


def tags_won(per_tag: pa.Table, first: str, second: str) -> dict[str, int]:
    """Return how many tags each of a pair wins, and under "neither" how many are undecided."""
    winners = per_tag[f"winner_{first}{second}"].to_pylist()
    return {first: winners.count(first), second: winners.count(second), "neither": winners.count("")}


def _differences(comparison: Comparison, first: str, second: str) -> dict[str, list[Difference]]:
    """The differences of a pair by view."""
    return {
        name: [comparison.difference(first, second, name, metric) for metric in view.metrics]
        for name, view in VIEWS.items()
    }


def _difference_axis(comparison: Comparison, first: str, second: str) -> Axis:
    """An axis for all differences of a pair."""
    return difference_axis("", (d.interval for d in comparison.differences if (d.first, d.second) == (first, second)))


def _thresholds(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Thresholds as text, by view and letter; two where each half of the images has its own."""
    return {
        view: {
            letter: " and ".join(map(format_threshold, value if isinstance(value, tuple) else (value,)))
            for letter, value in thresholds.items()
        }
        for view, thresholds in comparison.thresholds.items()
    }


def _provenance(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield name and text of the facts about the comparison and about each tagger."""
    yield from format_facts(comparison.facts)
    for contender in comparison.contenders:
        yield from format_facts(contender.provenance, f"{contender.letter}: ")


def _best_tags(table: pa.Table, pair: tuple[str, str], letter: str) -> list[dict[str, Any]]:
    """The tags on which one of a pair has the higher F1: first those it wins, then undecided ones, by difference."""
    key = "".join(pair)
    sign = 1 if letter == pair[0] else -1
    rows = [row for row in table.to_pylist() if sign * (row[f"difference_{key}"] or 0) > 0]
    rows.sort(key=lambda row: (row[f"winner_{key}"] != letter, -sign * row[f"difference_{key}"]))
    return [
        {
            **{name: row[name] for name in ("name", "positives", "train_count")},
            "f1": [row[f"f1_{tagger}"] for tagger in pair],
            "difference": row[f"difference_{key}"],
            "decided": row[f"winner_{key}"] == letter,
        }
        for row in rows[:MOST_TAGS]
    ]


def _all_tags(comparison: Comparison) -> Markup:
    """The per-tag table: average precision and F1 of every tagger, then the difference in F1 of every pair."""
    table = comparison.per_tag
    titles = {"name": "tag", "category": "category", "train_count": "trained on", "positives": "images"}
    columns = [TableColumn(title, table[name]) for name, title in titles.items()]
    for name, title in (("ap", "AP"), ("f1", "F1")):
        columns += [TableColumn(f"{title} {c.letter}", table[f"{name}_{c.letter}"]) for c in comparison.contenders]
    for first, second in comparison.pairs():
        columns += [
            TableColumn(f"{first} − {second}", table[f"difference_{first}{second}"], format_difference),
            TableColumn("q", table[f"q_{first}{second}"]),
            TableColumn("won by", table[f"winner_{first}{second}"]),
        ]
    return sortable_table(columns)


def _charts(comparison: Comparison) -> dict[str, Any]:
    """Charts by name; under `ap_scatter` those of the pairs."""
    curves, names = comparison.curves, {c.letter: f"{c.letter}: {c.name}" for c in comparison.contenders}
    charts: dict[str, Any] = {}
    for kind in ("macro", "micro"):
        by_recall = [
            Line(getattr(curve, kind).recall, getattr(curve, kind).precision, name=names[letter])
            for letter, curve in curves.items()
        ]
        by_threshold = [
            Line(curve.threshold, getattr(curve, kind).f1, name=names[letter]) for letter, curve in curves.items()
        ]
        taggers = ", ".join(names.values())
        label = f"{kind} precision against recall of {taggers}"
        charts[f"{kind}_pr"] = chart(label, Axis("recall"), Axis("precision"), [*iso_f1_lines(), *by_recall])
        label = f"{kind} F1 against the threshold of {taggers}"
        charts[f"{kind}_sweep"] = chart(label, Axis("threshold"), Axis(f"{kind} F1"), by_threshold)
    charts["ap_scatter"] = {pair: _ap_scatter(comparison, *pair) for pair in comparison.pairs()}
    return charts


def _ap_scatter(comparison: Comparison, first: str, second: str) -> Markup:
    """Average precision of one tagger against another's: a dot for each tag, coloured by who wins it."""
    table = comparison.per_tag
    x, y = (table[f"ap_{letter}"].to_numpy() for letter in (second, first))
    names, positives = table["name"].to_pylist(), table["positives"].to_pylist()
    winners = np.array(table[f"winner_{first}{second}"].to_pylist())
    titles = [
        f"{name}: average precision {first} {b:.3f}, {second} {a:.3f}, {n:,} images"
        for name, a, b, n in zip(names, x, y, positives, strict=True)
    ]
    styles = _styles(comparison)
    dots = [
        Points(x[rows], y[rows], [titles[i] for i in rows], name=name, style=styles[winner])
        for winner, name in {"": "undecided", first: f"{first} wins", second: f"{second} wins"}.items()
        if len(rows := np.flatnonzero(winners == winner))
    ]
    label = f"Average precision of {len(names):,} tags by {first}, against that by {second}"
    across, up = (Axis(f"average precision of {letter}") for letter in (second, first))
    return chart(label, across, up, [Line([0, 1], [0, 1]), *dots])

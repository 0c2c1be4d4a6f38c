"""sweep.html: a sweep's results on one page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from joytag.core.settings import flatten
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.comparison import METRICS
from joytag.reports.charts import UNDECIDED, Axis, Line, Mark, Points, VerticalLine, chart, interval_bar
from joytag.reports.formats import format_difference, format_number
from joytag.reports.html import render
from joytag.sweeps import config
from joytag.sweeps.results import PointResult, Results

MOST_CURVES = 6  # with a name and a colour
SMALLEST_RANGE = 0.01  # of the axis of differences, to either side of 0


def render_page(found: Results, verdict: str, warnings: Sequence[str], shares: Mapping[str, Interval]) -> str:
    """Return sweep.html; `shares` are the axes' importance, perhaps none."""
    settings, points = found.sweep.settings, found.points
    differences = [point.finding.difference for point in points[1:]]
    largest = max([abs(d.value) for d in differences if np.isfinite(d.value)], default=0.0)
    bounds = [abs(bound) for d in differences for bound in (d.low, d.high) if np.isfinite(bound)]
    reach = max(SMALLEST_RANGE, min(max(bounds, default=0.0), 4 * largest))
    values = {
        "found": found,
        "verdict": verdict,
        "warnings": warnings,
        "metric": METRICS[settings.metric],
        "interval_bar": interval_bar,
        "axis": Axis("", -reach, reach),
        "shares": shares,
        "share_axis": Axis(""),
        "styles": {point.name: _style(point) for point in points},
        "slices": {axis.name: _slice(found, axis, reach) for axis in found.sweep.axes},
        "curves": _curves(found),
        "costs": _costs(found),
        "states": {point.name: _state(point) for point in points},
        "seeds": found.sweep.seeds("search"),
        "fresh": found.sweep.seeds("confirm"),
    }
    return render("sweep.html", values)


def _style(point: PointResult) -> str:
    difference = (point.confirmed or point.finding).difference
    return "good" if difference.low > 0 else "bad" if difference.high < 0 else UNDECIDED


def _state(point: PointResult) -> str:
    """How far a point is: "done", or how many of its trials are in which state."""
    counts = {state: point.states.count(state) for state in point.states}
    return ", ".join(f"{n} {state}" for state, n in counts.items()) if len(counts) > 1 else next(iter(counts))


def _slice(found: Results, axis: config.Axis, reach: float) -> Any:
    """The points of a grid that differ from the best in one axis alone, of another search all, by that axis.

    A chart of differences from the base; for an axis without a range label and point, the best one, of each row.
    """
    done = [point for point in found.points[1:] if point.complete]
    if not done:
        return None
    best, base, on = done[0].trials[0], flatten(found.sweep.base), done
    if found.sweep.settings.search == "grid":
        on = [point for point in done if {**point.trials[0].labels, axis.name: best.labels[axis.name]} == best.labels]
    if axis.range is None:
        by_label = {point.trials[0].labels[axis.name]: point for point in reversed(on)}
        if best.changes.keys() <= axis.keys:  # then the base is on the slice
            of_base = (label for label, choice in axis.choices.items() if choice.items() <= base.items())
            by_label = {**dict.fromkeys(of_base, found.points[0]), **by_label}
        return [(label, by_label[label]) for label in axis.choices if label in by_label]
    on = sorted(on, key=lambda point: point.trials[0].labels[axis.name])
    x = [float(point.trials[0].labels[axis.name]) for point in on]
    d = [point.finding.difference for point in on]
    titles = [
        f"{p.name}: {format_difference(i.value)} ({i.low:+.3f} to {i.high:+.3f})" for p, i in zip(on, d, strict=True)
    ]
    gap = [np.nan] * len(on)  # interrupts the line between two intervals
    bars = np.ravel([x, x, gap], "F"), np.ravel([[i.low for i in d], [i.high for i in d], gap], "F")
    marks: list[Mark] = [
        Line(axis.range.log, [0, 0]),
        Line(*bars, style="s1"),
        Points(x, [i.value for i in d], titles, style="s1"),
    ]
    value = base.get(axis.name)
    if isinstance(value, int | float) and axis.range.log[0] <= value <= axis.range.log[1]:
        marks.append(VerticalLine(value, "base"))
    label = f"Difference from the base in {METRICS[found.sweep.settings.metric]} by {axis.name}"
    across, up = Axis(axis.name, *axis.range.log, log=True), Axis("difference from the base", -reach, reach)
    return chart(label, across, up, marks)


def _curves(found: Results) -> Markup:
    """Validation curves: of the base, the best points, and, without names, the others."""
    shown = [point for point in found.points if point.curve]
    samples = max((point.curve[-1][0] for point in shown), default=1.0)
    top = max((value for point in shown for _, value in point.curve), default=1.0)
    lines = [
        Line(
            *zip(*point.curve, strict=True),
            name=point.name if number < MOST_CURVES else "",
            style="ink" if point is found.points[0] else "",
        )
        for number, point in enumerate(shown)
    ]
    metric = METRICS[found.sweep.settings.metric]
    return chart(f"{metric} by samples", Axis("samples", 0, samples), Axis(metric, 0, top), lines)


def _costs(found: Results) -> Markup | None:
    """Metric against cost with the Pareto front; None where all points cost the same."""
    done = sorted((point.flop, -point.finding.mean, point.name) for point in found.points if point.complete)
    if len({flop for flop, _, _ in done}) < 2:
        return None
    flop, means = np.array([row[0] for row in done]), -np.array([row[1] for row in done])
    front = means > np.maximum.accumulate([-np.inf, *means[:-1]])
    titles = [f"{name}: {format_number(-mean)}, {cost:.3g} FLOP" for cost, mean, name in done]
    margin = 0.05 * (means.max() - means.min()) or SMALLEST_RANGE
    x = Axis("FLOP of a run", flop[0] / 1.1, flop[-1] * 1.1, log=flop[-1] > 3 * flop[0])
    y = Axis(METRICS[found.sweep.settings.metric], means.min() - margin, means.max() + margin)
    groups = {"others": (UNDECIDED, np.flatnonzero(~front)), "Pareto front": ("s1", np.flatnonzero(front))}
    dots = [
        Points(flop[rows], means[rows], [titles[i] for i in rows], name=name, style=style)
        for name, (style, rows) in groups.items()
        if len(rows)
    ]
    return chart(f"{y.label} against cost", x, y, [Line(flop[front], means[front], style="s1"), *dots])

"""Small SVG charts for HTML pages: curves, points, bars and intervals, readable at any width.

All positions are percentages of the plot, which fills the SVG. So a chart takes any width while text, dots and
strokes keep their size; labels are in the margins around the SVG. Colours come from the page's style sheet: series 1
to 9 have the classes s1 to s9. Names come from datasets and are not trusted, so they are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from joytag.evaluation.bootstrap import Interval
from joytag.reports.formats import breakable

N_SERIES = 9  # colours in the style sheet
SMALLEST_RANGE = 0.01  # of an axis of differences, to either side of 0
UNDECIDED = "undecided"  # the class of what belongs to no series
Numbers = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True)
class Axis:
    """The label, range and scale of one direction of a chart; a logarithmic axis needs `low` > 0."""

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def percent(self, values: Numbers) -> NDArray[np.float64]:
        """Map values from [low, high] to [0, 100]; those outside lie on the edge. NaN stays NaN."""
        values = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return np.clip((values - low) / (high - low), 0, 1) * 100

    def ticks(self) -> list[float]:
        """Return three to seven round numbers in the range; on a logarithmic axis powers of ten."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if math.log10(self.high / self.low) > 2.5 else (1, 2, 5)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(step for step in (1, 2, 5, 10) if step * power >= rough * 0.999) * power
            ticks = [number * step for number in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        tolerance = 1e-9 * (self.high - self.low)
        return [tick for tick in ticks if self.low - tolerance <= tick <= self.high + tolerance]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something drawn in a chart; with a name it is in the legend.

    A named mark without a `style`, a class of the style sheet, gets the next series' colour.
    """

    name: str = ""
    style: str = ""

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """Return the SVG of the mark in the plot."""
        raise NotImplementedError

    def legend_key(self, style: str) -> str:
        """Return the SVG of the mark's symbol in the legend."""
        raise NotImplementedError


@dataclass(frozen=True)
class Line(Mark):
    """A curve through points [N], interrupted where it is NaN; without a name it is in the background."""

    x: Numbers
    y: Numbers

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """Return a polyline for each part without NaN, in a box that stretches with the plot while strokes do not."""
        across, down = x.percent(self.x), 100 - y.percent(self.y)
        finite = np.isfinite(across) & np.isfinite(down)
        breaks = np.flatnonzero(np.diff(finite.astype(np.int8))) + 1
        parts = [part for part in np.split(np.arange(len(finite)), breaks) if len(part) and finite[part[0]]]
        title = f"<title>{escape(self.name)}</title>" if self.name else ""
        points = [f"{format_coordinate(a)},{format_coordinate(b)}" for a, b in zip(across, down, strict=True)]
        lines = [
            f'<polyline class="line {style}" points="{" ".join(points[i] for i in part)}">{title}</polyline>'
            for part in parts
        ]
        return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg>'

    def legend_key(self, style: str) -> str:
        """Return a short stroke."""
        return f'<line class="line {style}" x2="100%" y1="50%" y2="50%"/>'


@dataclass(frozen=True)
class Points(Mark):
    """Dots [N], each with a title that appears on hover; those with NaN are left out."""

    x: Numbers
    y: Numbers
    titles: Sequence[str]

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """Return a circle for each point."""
        positions = zip(x.percent(self.x), 100 - y.percent(self.y), self.titles, strict=True)
        dots = [
            f'<circle cx="{format_coordinate(across)}%" cy="{format_coordinate(down)}%" r="3">'
            f"<title>{escape(title)}</title></circle>"
            for across, down, title in positions
            if math.isfinite(across) and math.isfinite(down)
        ]
        return f'<g class="dots {style}">{"".join(dots)}</g>'

    def legend_key(self, style: str) -> str:
        """Return a dot."""
        return f'<g class="dots {style}"><circle cx="50%" cy="50%" r="4"/></g>'


@dataclass(frozen=True)
class Bars(Mark):
    """Vertical bars [N] between edges [N + 1], each with a title."""

    edges: Numbers
    y: Numbers
    titles: Sequence[str]

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """Return a rectangle for each bar that is not empty, with a gap to the next."""
        edges, heights = x.percent(self.edges), y.percent(self.y)
        boxes = zip(edges[:-1] + 0.15, np.diff(edges) - 0.3, heights, self.titles, strict=True)
        bars = [
            f'<rect x="{format_coordinate(left)}%" y="{format_coordinate(100 - height)}%" '
            f'width="{format_coordinate(max(0.1, width))}%" height="{format_coordinate(height)}%">'
            f"<title>{escape(title)}</title></rect>"
            for left, width, height, title in boxes
            if height > 0
        ]
        return f'<g class="bars {style}">{"".join(bars)}</g>'

    def legend_key(self, style: str) -> str:
        """Return a square."""
        return f'<g class="bars {style}"><rect x="25%" width="50%" height="100%"/></g>'


@dataclass(frozen=True)
class VerticalLine(Mark):
    """A vertical line across the plot, with a short text at its foot."""

    x: float
    text: str

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """Return the line and its text, which is on the side that has more room."""
        across = float(x.percent([self.x])[0])
        left, anchor, shift = format_coordinate(across), ("end" if across > 50 else "start"), (-5 if across > 50 else 5)
        return (
            f'<g class="rule"><line x1="{left}%" x2="{left}%" y2="100%"/>'
            f'<text x="{left}%" y="100%" dx="{shift}" dy="-6" text-anchor="{anchor}">{escape(self.text)}</text></g>'
        )


def chart(label: str, x: Axis, y: Axis, marks: Sequence[Mark]) -> Markup:
    """Return a chart of marks, the first one at the bottom, with axes and, for several named marks, a legend.

    `label` describes the chart to readers who cannot see it.
    """
    drawn, keys, series = [], [], 0
    for mark in marks:
        style = mark.style
        if mark.name and not style:
            series, style = series + 1, series_style(series)
        drawn.append(mark.draw(x, y, style or "s0"))
        if mark.name:
            symbol = f'<svg class="key" aria-hidden="true">{mark.legend_key(style)}</svg>'
            keys.append(f"<li>{symbol}{breakable(mark.name)}</li>")
    legend = f'<ul class="legend">{"".join(keys)}</ul>' if len(keys) > 1 else ""
    return Markup(
        f'<div class="chart"><svg role="img" aria-label="{escape(label)}">{_axes(x, y)}{"".join(drawn)}</svg></div>'
        f"{legend}"
    )


def _axes(x: Axis, y: Axis) -> str:
    parts = ['<g class="grid">']
    for tick, position in zip(y.ticks(), map(format_coordinate, 100 - y.percent(y.ticks())), strict=True):
        parts.append(f'<line x2="100%" y1="{position}%" y2="{position}%"/>')
        parts.append(f'<text x="-8" y="{position}%" dy="4" text-anchor="end">{format_tick(tick)}</text>')
    for tick, position in zip(x.ticks(), map(format_coordinate, x.percent(x.ticks())), strict=True):
        parts.append(f'<line x1="{position}%" x2="{position}%" y2="100%"/>')
        parts.append(f'<text x="{position}%" y="100%" dy="18" text-anchor="middle">{format_tick(tick)}</text>')
    parts.append(f'</g><text class="axis" x="100%" y="100%" dy="36" text-anchor="end">{escape(x.label)}</text>')
    parts.append(f'<text class="axis" x="-8" dy="-10">{escape(y.label)}</text>')
    return "".join(parts)


def series_style(number: int) -> str:
    """Return the class with the colour of a series, counted from 0; colours repeat after N_SERIES."""
    return f"s{number % N_SERIES + 1}"


def interval_bar(value: float, low: float, high: float, axis: Axis, style: str = "") -> Markup:
    """Return a value and its interval on a line, for a table cell; NaN leaves only the line."""
    left, middle, right = (format_coordinate(p) if math.isfinite(p) else "" for p in axis.percent([low, value, high]))
    bar = f'<line class="bar" x1="{left}%" x2="{right}%" y1="50%" y2="50%"/>' if left and right else ""
    tick = f'<line class="value" x1="{middle}%" x2="{middle}%" y2="100%"/>' if middle else ""
    return Markup(
        f'<svg class="interval {style}" aria-hidden="true"><line x2="100%" y1="50%" y2="50%"/>{bar}{tick}</svg>'
    )


def difference_axis(label: str, intervals: Iterable[Interval]) -> Axis:
    """Return an axis for differences with 0 in the middle, which all of their defined intervals fit."""
    bounds = [abs(bound) for i in intervals for bound in (i.value, i.low, i.high) if math.isfinite(bound)]
    reach = max([SMALLEST_RANGE, *bounds])
    return Axis(label, -reach, reach)


def iso_f1_lines(levels: Sequence[float] = (0.2, 0.4, 0.6, 0.8)) -> list[Line]:
    """Return lines of constant F1 for a chart of precision (y) by recall (x)."""
    lines = []
    for level in levels:
        recall = np.linspace(level / (2 - level), 1, 60)  # precision is 1 at the first point
        lines.append(Line(recall, level * recall / (2 * recall - level)))
    return lines


def running_median(
    x: Numbers, y: Numbers, windows: int = 24, fewest: int = 30
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the geometric mean of x and the median of y in up to `windows` windows of neighbouring points.

    Points [N] with NaN or x <= 0 are ignored. Windows contain equally many points, at least `fewest` if possible.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y) & (x > 0)
    order = np.flatnonzero(known)[np.argsort(x[known], kind="stable")]
    parts = [part for part in np.array_split(order, min(windows, max(1, len(order) // fewest))) if len(part)]
    return (
        np.array([np.exp(np.log(x[part]).mean()) for part in parts]),
        np.array([np.median(y[part]) for part in parts]),
    )


def format_coordinate(value: float) -> str:
    """Format a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def format_tick(value: float) -> str:
    """Format a number for an axis: 0.25, 20, 5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"

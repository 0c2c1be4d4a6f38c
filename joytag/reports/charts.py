"""Small charts as SVG for a page of HTML: curves, points, bars and intervals, readable at any width.

The plot is the SVG's whole box, placed in percent, so that it takes any width while letters, dots and strokes keep
their size; labels stand in the box's margins. Colours are the page's: series 1 to 9 have the classes s1 to s9. Names
come from strangers' datasets and are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

SERIES = 9  # classes that the page's style tells apart
Floats = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Axis:
    """One direction of a chart: what it shows, its range, and whether it is logarithmic (then `low` > 0)."""

    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def percent(self, values: Floats) -> np.ndarray:
        """Where values lie between low (0) and high (100), float64 of the same shape; those beyond lie on the edge."""
        values = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return np.clip((values - low) / (high - low), 0, 1) * 100

    def ticks(self) -> list[float]:
        """Round numbers in the range: three to seven of them, or the powers of ten of a logarithmic axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if math.log10(self.high / self.low) > 2.5 else (1, 2, 5)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(step for step in (1, 2, 5, 10) if step * power >= rough * 0.999) * power
            ticks = [number * step for number in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [tick for tick in ticks if self.low - slack <= tick <= self.high + slack]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a chart shows. With a name it is in the legend, in the next series' colour, unless it has its own style."""

    name: str = ""
    style: str = ""

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """SVG in the box of the plot."""
        raise NotImplementedError

    def key(self, style: str) -> str:
        """SVG in a box of the legend."""
        raise NotImplementedError


@dataclass(frozen=True)
class Line(Mark):
    """A curve through points [N]; parts that are NaN are left out. Without a name it is background."""

    x: Floats
    y: Floats

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """One polyline for each part without NaN, in a box that stretches while strokes do not."""
        across, down = x.percent(self.x), 100 - y.percent(self.y)
        known = np.isfinite(across) & np.isfinite(down)
        breaks = np.flatnonzero(np.diff(known.astype(np.int8))) + 1
        parts = [part for part in np.split(np.arange(len(known)), breaks) if len(part) and known[part[0]]]
        title = f"<title>{escape(self.name)}</title>" if self.name else ""
        lines = [
            f'<polyline class="line {style}" points="'
            + " ".join(f"{number(a)},{number(b)}" for a, b in zip(across[part], down[part], strict=True))
            + f'">{title}</polyline>'
            for part in parts
        ]
        return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg>'

    def key(self, style: str) -> str:
        """A short stroke."""
        return f'<line class="line {style}" x2="100%" y1="50%" y2="50%"/>'


@dataclass(frozen=True)
class Points(Mark):
    """Dots [N], each with a title that shows when it is pointed at; those that are NaN are left out."""

    x: Floats
    y: Floats
    titles: Sequence[str]

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """A circle a point."""
        places = zip(x.percent(self.x), 100 - y.percent(self.y), self.titles, strict=True)
        dots = [
            f'<circle cx="{number(across)}%" cy="{number(down)}%" r="3"><title>{escape(title)}</title></circle>'
            for across, down, title in places
            if math.isfinite(across) and math.isfinite(down)
        ]
        return f'<g class="dots {style}">{"".join(dots)}</g>'

    def key(self, style: str) -> str:
        """A dot."""
        return f'<g class="dots {style}"><circle cx="50%" cy="50%" r="4"/></g>'


@dataclass(frozen=True)
class Bars(Mark):
    """Upright bars [N] between edges [N + 1], each with a title."""

    edges: Floats
    y: Floats
    titles: Sequence[str]

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """A rectangle a bar, with a gap to the next; none where there is nothing."""
        edges, heights = x.percent(self.edges), y.percent(self.y)
        places = zip(edges[:-1] + 0.15, np.diff(edges) - 0.3, heights, self.titles, strict=True)
        bars = [
            f'<rect x="{number(left)}%" y="{number(100 - height)}%" width="{number(max(0.1, width))}%" '
            f'height="{number(height)}%"><title>{escape(title)}</title></rect>'
            for left, width, height, title in places
            if height > 0
        ]
        return f'<g class="bars {style}">{"".join(bars)}</g>'

    def key(self, style: str) -> str:
        """A square."""
        return f'<g class="bars {style}"><rect x="25%" width="50%" height="100%"/></g>'


@dataclass(frozen=True)
class Rule(Mark):
    """An upright line across the chart, with a few words at its foot."""

    x: float
    text: str

    def draw(self, x: Axis, y: Axis, style: str) -> str:
        """The words stand on the side that has room."""
        across = float(x.percent([self.x])[0])
        place, anchor, shift = number(across), ("end" if across > 50 else "start"), (-5 if across > 50 else 5)
        return (
            f'<g class="rule"><line x1="{place}%" x2="{place}%" y2="100%"/>'
            f'<text x="{place}%" y="100%" dx="{shift}" dy="-6" text-anchor="{anchor}">{escape(self.text)}</text></g>'
        )


def chart(label: str, x: Axis, y: Axis, marks: Sequence[Mark], low: bool = False) -> Markup:
    """A chart of marks, the first at the bottom, with axes and a legend of those that have a name: HTML.

    `label` tells in words what it shows, for those who can't see it. `low` charts are a third as high.
    """
    drawn, keys, series = [], [], 0
    for mark in marks:
        style = mark.style
        if mark.name and not style:
            series, style = series + 1, f"s{series % SERIES + 1}"
        drawn.append(mark.draw(x, y, style or "s0"))
        if mark.name:
            keys.append(f'<li><svg class="key" aria-hidden="true">{mark.key(style)}</svg>{escape(mark.name)}</li>')
    legend = f'<ul class="legend">{"".join(keys)}</ul>' if len(keys) > 1 else ""
    return Markup(
        f'<div class="chart{" low" if low else ""}"><svg role="img" aria-label="{escape(label)}">'
        f"{_axes(x, y)}{''.join(drawn)}</svg></div>{legend}"
    )


def _axes(x: Axis, y: Axis) -> str:
    parts = ['<g class="grid">']
    for tick, place in zip(y.ticks(), 100 - y.percent(y.ticks()), strict=True):
        parts.append(f'<line x2="100%" y1="{number(place)}%" y2="{number(place)}%"/>')
        parts.append(f'<text x="-8" y="{number(place)}%" dy="4" text-anchor="end">{short(tick)}</text>')
    for tick, place in zip(x.ticks(), x.percent(x.ticks()), strict=True):
        parts.append(f'<line x1="{number(place)}%" x2="{number(place)}%" y2="100%"/>')
        parts.append(f'<text x="{number(place)}%" y="100%" dy="18" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'</g><text class="axis" x="100%" y="100%" dy="36" text-anchor="end">{escape(x.label)}</text>')
    parts.append(f'<text class="axis" x="-8" dy="-10">{escape(y.label)}</text>')
    return "".join(parts)


def interval(value: float, low: float, high: float, axis: Axis) -> Markup:
    """A figure with its interval on a line, for a cell of a table; nothing but the line where it is NaN."""
    left, middle, right = (number(place) if math.isfinite(place) else "" for place in axis.percent([low, value, high]))
    bar = f'<line class="bar" x1="{left}%" x2="{right}%" y1="50%" y2="50%"/>' if left and right else ""
    tick = f'<line class="value" x1="{middle}%" x2="{middle}%" y2="100%"/>' if middle else ""
    return Markup(f'<svg class="interval" aria-hidden="true"><line x2="100%" y1="50%" y2="50%"/>{bar}{tick}</svg>')


def iso_f1(levels: Sequence[float] = (0.2, 0.4, 0.6, 0.8)) -> list[Line]:
    """Where F1 is the same, in a chart of precision by recall: background lines."""
    lines = []
    for level in levels:
        recall = np.linspace(level / (2 - level), 1, 60)  # where precision is 1, to where recall is
        lines.append(Line(recall, level * recall / (2 * recall - level)))
    return lines


def running_median(x: Floats, y: Floats, windows: int = 24, fewest: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Medians of y [N] in up to so many windows, by x, of as many points each, at their geometric mean x.

    No window has fewer than `fewest` points, if there are as many; those that are NaN are left out.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y) & (x > 0)
    order = np.flatnonzero(known)[np.argsort(x[known], kind="stable")]
    parts = [part for part in np.array_split(order, min(windows, max(1, len(order) // fewest))) if len(part)]
    return (
        np.array([np.exp(np.log(x[part]).mean()) for part in parts]),
        np.array([np.median(y[part]) for part in parts]),
    )


def number(value: float) -> str:
    """A coordinate in few characters: two decimals, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def short(value: float) -> str:
    """A number for an axis: 0.25, 20, 5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"

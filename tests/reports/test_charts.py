"""Charts: positions of marks, undefined values, and escaping."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joytag.reports.charts import (
    Axis,
    Bars,
    Line,
    Points,
    VerticalLine,
    chart,
    format_coordinate,
    format_tick,
    interval_bar,
    iso_f1_lines,
    running_median,
)
from joytag.reports.formats import breakable

X, Y = Axis("threshold"), Axis("F1")
FINITE = st.floats(-1e6, 1e6)


def parse(html: str) -> ET.Element:
    """Parse a chart, which is well-formed XML but for the possible breaks in names."""
    return ET.fromstring(f"<div>{html}</div>".replace("<wbr>", ""))


def child(element: ET.Element, path: str) -> ET.Element:
    child = element.find(path)
    assert child is not None
    return child


def percent(element: ET.Element, name: str) -> float:
    """Return an attribute that is a percentage."""
    return float(element.attrib[name].removesuffix("%"))


def positions(html: str) -> list[tuple[float, float]]:
    return [(percent(dot, "cx"), percent(dot, "cy")) for dot in parse(html).iter("circle")]


def test_points_are_at_their_values_and_those_with_nan_are_left_out():
    html = chart("dots", Axis("x", 0, 10), Axis("y", 0, 2), [Points([0, 5, 10, 7], [0, 1, 2, np.nan], list("abcd"))])
    assert positions(html) == [(0, 100), (50, 50), (100, 0)]
    assert [title.text for title in parse(html).iter("title")] == ["a", "b", "c"]


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors_and_clips_at_its_edges():
    axis = Axis("images", 1, 1000, log=True)
    np.testing.assert_allclose(axis.percent([0, 1, 10, 100, 1000, 5000]), [0, 0, 100 / 3, 200 / 3, 100, 100])
    assert axis.ticks() == [1, 10, 100, 1000]
    assert Axis("", 40, 700, log=True).ticks() == [50, 100, 200, 500]


@given(st.lists(FINITE, min_size=2, max_size=2, unique=True).map(sorted).filter(lambda p: p[1] - p[0] > 1e-3))
def test_ticks_are_few_round_evenly_spaced_and_in_range(ends):
    axis = Axis("", *ends)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.3e}"[0] in "125" or f"{steps[0]:.3e}".startswith("9.99")
    inside = axis.percent(ticks)
    assert (inside >= 0).all()
    assert (inside <= 100).all()


@given(st.lists(FINITE, min_size=1), st.booleans())
def test_marks_stay_inside_the_plot(values, log):
    percent = Axis("", 1, 1e5, log).percent(values)
    assert ((percent >= 0) & (percent <= 100)).all()


def test_a_line_is_interrupted_at_nan():
    html = chart("a line", X, Y, [Line([0, 0.25, 0.5, 0.75, 1], [0, 1, np.nan, 0.5, 0.5], name="macro")])
    lines = [line.get("points") for line in parse(html).iter("polyline")]
    assert lines == ["0,100 25,0", "75,50 100,50"]
    assert list(parse(chart("nothing", X, Y, [Line([0, 1], [np.nan, np.nan])])).iter("polyline")) == []


def test_bars_start_at_the_axis_and_empty_ones_are_left_out():
    axis = Axis("decisions", 1, 1000, log=True)
    bars = list(parse(chart("bars", X, axis, [Bars([0, 0.5, 0.75, 1], [10, 0, 1000], list("abc"))])).iter("rect"))
    assert [child(bar, "title").text for bar in bars] == ["a", "c"]
    for bar, height in zip(bars, (100 / 3, 100), strict=True):
        top, size = percent(bar, "y"), percent(bar, "height")
        assert top + size == pytest.approx(100)
        assert size == pytest.approx(height, abs=0.01)


def test_a_chart_has_a_label_and_a_legend_of_its_named_marks():
    marks = [
        *iso_f1_lines(),
        Line([0, 1], [0, 1], name="precision"),
        Line([0, 1], [1, 0], name="recall"),
        Line([0, 1], [0.5, 0.5], name="median", style="ink"),
        VerticalLine(0.4, "0.4"),
    ]
    root = parse(chart("Precision and recall", X, Y, marks))
    image = child(root, "div/svg")
    assert image.get("role") == "img"
    assert image.get("aria-label") == "Precision and recall"
    assert ["".join(item.itertext()) for item in root.iter("li")] == ["precision", "recall", "median"]
    classes = [line.get("class") for line in image.iter("polyline")]
    assert classes == ["line s0"] * 4 + ["line s1", "line s2", "line ink"]
    texts = [text.text for text in image.iter("text")]
    assert "0.4" in texts
    assert "threshold" in texts
    assert "F1" in texts


def test_iso_f1_lines_have_constant_f1():
    for level, line in zip((0.2, 0.4, 0.6, 0.8), iso_f1_lines(), strict=True):
        recall, precision = np.asarray(line.x), np.asarray(line.y)
        np.testing.assert_allclose(2 * recall * precision / (recall + precision), level)
        assert recall.max() == pytest.approx(1)
        assert precision.max() == pytest.approx(1)


@given(st.text())
def test_names_are_escaped_in_text_and_attributes(name):
    name = re.sub(r"[^\x20-\ud7ff]", "", name)  # characters that XML cannot contain
    hostile = f"<script>alert(1)</script>\"'&lt;{name}"
    marks = [
        Line([0, 1], [0, 1], name=hostile),
        Points([1], [1], [hostile], name=hostile),
        VerticalLine(0.1, hostile),
        Bars([0, 1], [1], [hostile], name=hostile),
    ]
    html = chart(hostile, Axis(hostile), Axis(hostile), marks)
    assert "<script" not in html
    root = parse(html)
    assert child(root, "div/svg").get("aria-label") == hostile
    assert [text.text for text in root.iter("title")] == [hostile] * 3
    expected = {"div", "svg", "g", "line", "polyline", "circle", "rect", "text", "title", "ul", "li", "bdi"}
    assert {element.tag for element in root.iter()} <= expected


def test_names_break_after_underscores_and_slashes_only():
    assert breakable("a_b/c__d-e_") == "<bdi>a_<wbr>b/<wbr>c__<wbr>d-e_</bdi>"
    assert breakable("<i>_&") == "<bdi>&lt;i&gt;_<wbr>&amp;</bdi>"


def test_an_interval_bar_shows_value_and_interval_unless_they_are_nan():
    bar, tick = parse(interval_bar(0.5, 0.4, 0.7, Axis("")))[0][1:]
    assert (bar.get("x1"), bar.get("x2"), tick.get("x1")) == ("40%", "70%", "50%")
    assert len(parse(interval_bar(np.nan, np.nan, np.nan, Axis("")))[0]) == 1


def test_the_running_median_follows_the_points():
    rng = np.random.default_rng(0)
    x = 10 ** rng.uniform(2, 6, 5000)
    y = np.log10(x) / 10 + rng.normal(0, 0.05, 5000)
    y[::7], x[3] = np.nan, 0
    across, middle = running_median(x, y)
    assert len(across) == 24
    assert (np.diff(across) > 0).all()
    np.testing.assert_allclose(middle, np.log10(across) / 10, atol=0.02)
    assert [len(part) for part in running_median([1.0, 2.0], [np.nan, np.nan])] == [0, 0]


def test_coordinates_and_ticks_are_short():
    assert [format_coordinate(value) for value in (0, 100, 12.5, 1 / 3)] == ["0", "100", "12.5", "0.33"]
    ticks = (0, 0.25, 20, 5000, 2e6, 0.1 + 0.2)
    assert [format_tick(value) for value in ticks] == ["0", "0.25", "20", "5k", "2M", "0.3"]

"""Charts: where marks lie, what is left out, and that nothing in them can break out."""

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

X, Y = Axis("threshold"), Axis("F1")
FINITE = st.floats(-1e6, 1e6)


def parsed(html: str) -> ET.Element:
    """A chart is well-formed XML as well as HTML."""
    return ET.fromstring(f"<div>{html}</div>")


def places(html: str) -> list[tuple[str, str]]:
    return [(dot.get("cx"), dot.get("cy")) for dot in parsed(html).iter("circle")]


def test_points_lie_where_they_should_and_those_without_a_value_are_left_out():
    html = chart("dots", Axis("x", 0, 10), Axis("y", 0, 2), [Points([0, 5, 10, 7], [0, 1, 2, np.nan], list("abcd"))])
    assert places(html) == [("0%", "100%"), ("50%", "50%"), ("100%", "0%")]
    assert [title.text for title in parsed(html).iter("title")] == ["a", "b", "c"]


def test_a_logarithmic_axis_steps_by_factors_and_keeps_what_is_below_it_on_its_edge():
    axis = Axis("images", 1, 1000, log=True)
    np.testing.assert_allclose(axis.percent([0, 1, 10, 100, 1000, 5000]), [0, 0, 100 / 3, 200 / 3, 100, 100])
    assert axis.ticks() == [1, 10, 100, 1000]
    assert Axis("", 40, 700, log=True).ticks() == [50, 100, 200, 500]


@given(st.lists(FINITE, min_size=2, max_size=2, unique=True).map(sorted).filter(lambda p: p[1] - p[0] > 1e-3))
def test_ticks_are_few_round_evenly_spaced_and_within_the_range(ends):
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


def test_a_line_is_broken_where_it_is_undefined():
    html = chart("a line", X, Y, [Line([0, 0.25, 0.5, 0.75, 1], [0, 1, np.nan, 0.5, 0.5], name="macro")])
    lines = [line.get("points") for line in parsed(html).iter("polyline")]
    assert lines == ["0,100 25,0", "75,50 100,50"]
    assert list(parsed(chart("nothing", X, Y, [Line([0, 1], [np.nan, np.nan])])).iter("polyline")) == []


def test_bars_stand_on_the_axis_and_empty_ones_are_left_out():
    axis = Axis("decisions", 1, 1000, log=True)
    bars = list(parsed(chart("bars", X, axis, [Bars([0, 0.5, 0.75, 1], [10, 0, 1000], list("abc"))])).iter("rect"))
    assert [bar.find("title").text for bar in bars] == ["a", "c"]
    for bar, height in zip(bars, (100 / 3, 100), strict=True):
        top, size = (float(bar.get(name)[:-1]) for name in ("y", "height"))
        assert top + size == pytest.approx(100)
        assert size == pytest.approx(height, abs=0.01)


def test_a_chart_is_named_and_has_a_legend_of_what_has_a_name():
    marks = [*iso_f1_lines(), Line([0, 1], [0, 1], name="precision"), Line([0, 1], [1, 0], name="recall"),
             Line([0, 1], [0.5, 0.5], name="median", style="ink"), VerticalLine(0.4, "0.4")]  # fmt: skip
    root = parsed(chart("Precision and recall", X, Y, marks))
    image = root.find("div/svg")
    assert image.get("role") == "img"
    assert image.get("aria-label") == "Precision and recall"
    assert [item[0].tail for item in root.iter("li")] == ["precision", "recall", "median"]
    classes = [line.get("class") for line in image.iter("polyline")]
    assert classes == ["line s0"] * 4 + ["line s1", "line s2", "line ink"]
    texts = [text.text for text in image.iter("text")]
    assert "0.4" in texts
    assert "threshold" in texts
    assert "F1" in texts


def test_lines_of_equal_f1_have_that_f1():
    for level, line in zip((0.2, 0.4, 0.6, 0.8), iso_f1_lines(), strict=True):
        np.testing.assert_allclose(2 * line.x * line.y / (line.x + line.y), level)
        assert line.x.max() == pytest.approx(1)
        assert line.y.max() == pytest.approx(1)


@given(st.text())
def test_names_cannot_break_out_of_text_or_attributes(name):
    name = re.sub(r"[^\x20-\ud7ff]", "", name)  # what XML cannot hold at all
    hostile = f"<script>alert(1)</script>\"'&lt;{name}"
    marks = [Line([0, 1], [0, 1], name=hostile), Points([1], [1], [hostile], name=hostile), VerticalLine(0.1, hostile),
             Bars([0, 1], [1], [hostile], name=hostile)]  # fmt: skip
    html = chart(hostile, Axis(hostile), Axis(hostile), marks)
    assert "<script" not in html
    root = parsed(html)
    assert root.find("div/svg").get("aria-label") == hostile
    assert [text.text for text in root.iter("title")] == [hostile] * 3
    assert {element.tag for element in root.iter()} <= {"div", "svg", "g", "line", "polyline", "circle", "rect", "text",
                                                        "title", "ul", "li"}  # fmt: skip


def test_a_cell_shows_a_figure_with_its_interval_or_nothing():
    bar, tick = parsed(interval_bar(0.5, 0.4, 0.7, Axis("")))[0][1:]
    assert (bar.get("x1"), bar.get("x2"), tick.get("x1")) == ("40%", "70%", "50%")
    assert len(parsed(interval_bar(np.nan, np.nan, np.nan, Axis("")))[0]) == 1


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


def test_numbers_are_short():
    assert [format_coordinate(value) for value in (0, 100, 12.5, 1 / 3)] == ["0", "100", "12.5", "0.33"]
    ticks = (0, 0.25, 20, 5000, 2e6, 0.1 + 0.2)
    assert [format_tick(value) for value in ticks] == ["0", "0.25", "20", "5k", "2M", "0.3"]

"""The reports of a comparison: files, terminal tables and compare.html."""

import dataclasses
import json
import re

import analyses
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from browser import BROKEN_NAMES, CUT_OFF
from contests import clear_and_noisy_comparison, contest
from rich.console import Console
from scipy.sparse import csc_array

from joytag.evaluation.comparison import METRICS, VIEWS, Comparison, compare
from joytag.reports import comparison as reports
from joytag.reports.comparison_html import render_page, tags_won


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return clear_and_noisy_comparison()


def test_files_contain_all_findings(comparison, tmp_path):
    reports.write_reports(tmp_path / "new", comparison)
    report = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert list(report["taggers"]) == ["A", "B", "C"]
    assert report["facts"]["images"] == 1500
    assert len(report["summary"]) == 3
    assert report["tags"]["AB"]["A"] >= 6
    by_key = {(d["first"], d["second"], d["view"], d["figure"]): d for d in report["differences"]}
    assert len(by_key) == 3 * sum(len(view.metrics) for view in VIEWS.values())
    row = by_key["A", "B", "ranking", "map"]
    value, low, high = (row["difference"][name] for name in ("value", "low", "high"))
    assert low < value < high
    assert row["winner"] == "A"
    of_a, of_b = (report["figures"]["ranking"][letter]["map"]["value"] for letter in "AB")
    assert value == pytest.approx(of_a - of_b)
    table = pq.read_table(tmp_path / "new" / "per_tag.parquet")
    assert table.equals(comparison.per_tag)
    assert pyarrow.csv.read_csv(tmp_path / "new" / "per_tag.csv").column_names == table.column_names


def test_undefined_metrics_are_null_and_named(tmp_path):
    contenders, labels, tags = contest([2.0, 1.0], images=100, n_tags=4)
    comparison = compare(contenders, csc_array(labels.shape, dtype=bool), tags, {"labels": "x"}, resamples=20)
    reports.write_reports(tmp_path, comparison)
    text = (tmp_path / "compare.json").read_text()
    assert json.loads(text)["figures"]["ranking"]["A"]["map"]["value"] is None
    assert "NaN" not in text
    assert "undefined" in (tmp_path / "compare.html").read_text()


def test_tags_won_are_counted(comparison):
    won = tags_won(comparison.per_tag, "A", "B")
    assert won["A"] >= 6
    assert won["B"] == 0
    assert tags_won(comparison.per_tag, "A", "C") == {"A": 0, "C": 0, "neither": 12}


def test_terminal_tables_show_all_taggers_and_pairs(comparison, capsys):
    for table in reports.comparison_tables(comparison):
        Console(width=100).print(table)
    text = capsys.readouterr().out
    assert text.count("A is better than B in") == 1
    assert text.count("No difference between A and C") == 1
    assert "macro precision" in text
    assert set(METRICS.values()) <= {name for name in METRICS.values() if name in text}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Path of a compare.html with names of tags and taggers that would break unescaped HTML."""
    contenders, labels, tags = contest([2.5, 2.0, 1.5], images=300)
    named = dataclasses.replace(tags, names=[*tags.names[len(analyses.HOSTILE) :], *analyses.HOSTILE])
    path = tmp_path_factory.mktemp("page") / "compare.html"
    comparison = compare(contenders, labels, named, {"labels": "<img src=x>"}, resamples=50)
    path.write_text(render_page(comparison), encoding="utf-8")
    return path


def test_colours_follow_the_winner(comparison):
    html = render_page(comparison)
    verdicts = re.findall(r'<span class="by (\w+)">([A-C] is|no difference)', html)
    assert set(verdicts) == {("s1", "A is"), ("s3", "C is"), ("undecided", "no difference")}
    assert html.count('<svg class="interval s1"') >= 5
    assert html.count('<svg class="interval undecided"') >= 5
    [_, _, of_b_and_c] = html.split("Average precision of 12 tags by")[1:]
    assert '<g class="dots s3">' in of_b_and_c.split("</figure>")[0]
    assert '<g class="dots s1">' not in of_b_and_c.split("</figure>")[0]


def test_names_are_escaped(hostile):
    html = hostile.read_text(encoding="utf-8")
    for name in (*analyses.HOSTILE[:3], "tagger <A>", "<img src=x>"):
        assert name not in html
    assert "tagger &lt;A&gt;" in html
    assert "&lt;script&gt;alert" in html


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_page_is_complete_and_requests_nothing(browser, hostile, width):
    page = browser.open(hostile, width=width)
    assert page.problems == []
    assert page.requests == []
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelectorAll('.chart polyline.s3').length") == 4  # the third tagger's curves
    assert page.value("document.querySelectorAll('.chart').length") == 4 + 3
    differences = 3 * sum(len(view.metrics) for view in VIEWS.values())  # of three pairs
    assert page.value("document.querySelectorAll('.zero .interval .bar').length") == differences
    rows = "document.querySelectorAll('.sortable tbody tr').length"
    assert page.value(rows) == 12
    assert page.value("document.querySelectorAll('.verdict').length") > differences
    assert page.value(CUT_OFF) == []
    assert page.value(BROKEN_NAMES) == []

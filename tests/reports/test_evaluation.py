"""The reports of an evaluation: what each file contains, and that undefined metrics break none."""

import dataclasses
import json
import math
import re
from pathlib import Path

import analyses
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from full_metrics_file import read_full_metrics
from scipy.sparse import csc_array

from joytag.data.dataset import TagTable
from joytag.evaluation.analysis import analyse
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation
from joytag.tagging.captions import read_thresholds


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """An analysis of 80 tags and the directory of its reports."""
    directory, analysis = tmp_path_factory.mktemp("reports") / "new", analyses.analysis(80)
    evaluation.write_reports(directory, analysis, analyses.predictions(80))
    return directory, analysis


def test_all_reports_are_written(reports):
    directory, _ = reports
    assert {path.name for path in directory.iterdir()} == {
        "full-metrics.txt", "metrics.json", "per_tag.parquet", "per_tag.csv", "thresholds.csv", "label_errors.csv",
        "report.html",
    }  # fmt: skip
    assert read_full_metrics(directory / "full-metrics.txt").names == analyses.names(80)


def test_metrics_json_holds_all_averages_with_intervals_and_null_where_undefined(reports):
    directory, analysis = reports

    def no_constant(text):
        raise AssertionError(f"{text} is no JSON")

    written = json.loads((directory / "metrics.json").read_text(), parse_constant=no_constant)
    interval = analysis.headline["fixed"]["macro_f1"]
    assert written["headline"]["fixed"]["macro_f1"] == {"value": interval.value, "low": interval.low,
                                                        "high": interval.high}  # fmt: skip
    assert written["groups"]["empty"]["macro_f1"] is None
    assert written["groups"]["empty"]["images"] == 0
    assert written["facts"]["threshold"] == 0.4
    assert written["calibration"]["ece"] == analysis.calibration.ece
    assert written["split_half"]["per_tag"]["verdict"] == analysis.split_half.per_tag.verdict


def test_the_summary_names_the_weakest_groups(reports, tmp_path):
    directory, analysis = reports
    skill = {name: row.macro_f1 for name, row in analysis.groups.rows.items() if name != "empty"}
    weakest = ", ".join(f"{name} ({skill[name]:.3f})" for name in sorted(skill, key=skill.get)[:3])
    micro, macro = (analysis.headline["fixed"][f"{kind}_f1"].value for kind in ("micro", "macro"))
    assert evaluation.summarize(directory / "metrics.json") == (
        f"The model predicts 80 tags with micro F1 {micro:.3f} and macro F1 {macro:.3f}. "
        f"Its weakest groups of tags, by macro F1: {weakest}."
    )
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    with pytest.raises(ValueError, match=r"metrics.json: not the metrics of an evaluation \(KeyError\('headline'\)\)"):
        evaluation.summarize(tmp_path / "metrics.json")


def test_tables_hold_every_tag_and_nothing_where_a_figure_is_undefined(reports):
    directory, analysis = reports
    assert pq.read_table(directory / "per_tag.parquet") == analysis.per_tag
    table = pyarrow.csv.read_csv(directory / "per_tag.csv", convert_options=pyarrow.csv.ConvertOptions(
        strings_can_be_null=False))  # fmt: skip
    for name in ("name", "tp", "recall", "undefined"):
        assert table[name].to_pylist() == analysis.per_tag[name].to_pylist(), name
    assert table["recall"].null_count > 0


def test_thresholds_are_those_that_predict_reads(reports):
    directory, analysis = reports
    names = [*analyses.names(80), "of_another_model"]
    thresholds = read_thresholds(directory / "thresholds.csv", names, 0.45)
    expected = [0.45 if value is None else value for value in analysis.per_tag["threshold"].to_pylist()] + [0.45]
    np.testing.assert_array_equal(thresholds, np.array(expected, dtype=np.float32))


def test_a_tag_of_every_image_gets_a_threshold_that_predict_takes(tmp_path):
    table = analyses.analysis(60).per_tag.slice(1, 1)
    table = table.set_column(table.column_names.index("threshold"), "threshold", [[-0.5]])
    evaluation.write_thresholds(tmp_path / "thresholds.csv", table)
    names = table["name"].to_pylist()
    assert 0 < read_thresholds(tmp_path / "thresholds.csv", names, 0.4)[0] < np.nextafter(np.float16(0), np.float16(1))


def test_label_errors_are_a_list_to_correct(reports):
    directory, analysis = reports
    rows = pyarrow.csv.read_csv(directory / "label_errors.csv").to_pylist()
    assert len(rows) == len(analysis.label_errors)
    first, names = analysis.label_errors[0], analyses.names(80)
    assert (rows[0]["id"], rows[0]["tag"], rows[0]["labelled"]) == (first.row * 7, names[first.tag], first.labelled)


def small(kind: str) -> Predictions:
    """Predictions of 40 images and 12 tags that leave this or that undefined."""
    rng = np.random.default_rng(0)
    labels = rng.random((40, 12)) < np.linspace(0.6, 0, 12)
    scores = (0.7 * labels + 0.3 * rng.random((40, 12))).astype(np.float16)
    if kind == "never":
        scores[:] = 0
    if kind == "unlabelled":
        labels[:] = False
    if kind == "always":
        labels[:], scores[:] = True, 1
    if kind == "single":
        labels, scores = labels[:1], scores[:1]
    n = len(labels)
    counts = np.arange(12)[::-1] * 90
    tags = TagTable(analyses.names(12), np.zeros(12, dtype=np.int8), counts, counts)
    return Predictions(Path(), scores, np.arange(n), rng.integers(0, 256, (n, 32), dtype=np.uint8),
                       np.zeros(n, dtype=np.int64), ["all"], csc_array(labels), tags, {"model": "m"})  # fmt: skip


@pytest.mark.parametrize("kind", ["usual", "never", "unlabelled", "always", "single"])
def test_whatever_is_undefined_all_reports_are_written(tmp_path, kind):
    predictions = small(kind)
    analysis = analyse(predictions, 0.4, {"half": analyses.names(12)[:6]}, resamples=20)
    evaluation.write_reports(tmp_path, analysis, predictions)
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"\b(nan|None|inf)\b", html)
    assert "Undefined metrics" in html
    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    read_thresholds(tmp_path / "thresholds.csv", predictions.tags.names, 0.4)
    assert read_full_metrics(tmp_path / "full-metrics.txt").names == predictions.tags.names
    evaluation.metrics_table(analysis)


def test_the_terminal_s_table_has_a_row_for_everything_sources_and_categories():
    analysis = analyses.analysis(80)
    sources = analysis.sources.rows
    sources["photographs"] = dataclasses.replace(sources["photographs"], map=math.nan)
    table = evaluation.metrics_table(analysis)
    rows = [list(column.cells) for column in table.columns]
    assert rows[0] == ["all", "", "danbooru", "photographs", *analyses.CATEGORIES]
    value = analysis.headline["fixed"]["macro_f1"].value
    assert rows[6][:2] == [f"{value:.3f}", "±0.010"]
    assert rows[7][3] == "undefined"

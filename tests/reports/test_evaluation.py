"""The reports of an evaluation: what each file contains, and that undefined metrics break none."""

import copy
import dataclasses
import json
import math
import re
from typing import NoReturn

import analyses
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from full_metrics_file import read_full_metrics
from scipy.sparse import csc_array

from joytag.core import terminal
from joytag.evaluation.analysis import analyse
from joytag.evaluation.per_tag import COLUMNS
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation
from joytag.tagging.captions import read_thresholds


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The directory of all reports of an analysis of 80 tags, and the analysis."""
    directory, analysis = tmp_path_factory.mktemp("reports") / "new", analyses.analysis(80)
    evaluation.write_reports(directory, analysis, analyses.predictions(80))
    return directory, analysis


def test_all_reports_are_written(reports):
    directory, _ = reports
    assert sorted(path.name for path in directory.iterdir()) == [
        "full-metrics.txt",
        "label_errors.csv",
        "metrics.json",
        "per_tag.csv",
        "per_tag.parquet",
        "report.html",
        "thresholds.csv",
    ]
    assert read_full_metrics(directory / "full-metrics.txt").names == analyses.names(80)


def refuse_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not valid JSON")


def test_metrics_json_contains_averages_with_intervals_and_null_where_undefined(reports):
    directory, analysis = reports
    written = json.loads((directory / "metrics.json").read_text(), parse_constant=refuse_constant)
    interval = analysis.headline["fixed"]["macro_f1"]
    expected = {"value": interval.value, "low": interval.low, "high": interval.high}
    assert written["headline"]["fixed"]["macro_f1"] == expected
    assert written["groups"]["empty"]["macro_f1"] is None
    assert written["groups"]["empty"]["images"] == 0
    assert written["facts"]["threshold"] == 0.4
    assert written["calibration"]["ece"] == analysis.calibration.ece
    assert written["split_half"]["per_tag"]["verdict"] == analysis.split_half.per_tag.verdict


def test_the_summary_names_the_weakest_groups(reports, tmp_path):
    directory, analysis = reports
    macro_f1 = {name: row.macro_f1 for name, row in analysis.groups.rows.items() if name != "empty"}
    weakest = sorted(macro_f1.items(), key=lambda item: item[1])[:3]
    listed = ", ".join(f"{name} ({value:.3f})" for name, value in weakest)
    micro, macro = (analysis.headline["fixed"][f"{kind}_f1"].value for kind in ("micro", "macro"))
    assert evaluation.summarize(directory / "metrics.json") == (
        f"The model predicts 80 tags with micro F1 {micro:.3f} and macro F1 {macro:.3f}. "
        f"Its weakest groups of tags, by macro F1: {listed}."
    )
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    with pytest.raises(ValueError, match=r"metrics.json: not the metrics of an evaluation \(KeyError\('headline'\)\)"):
        evaluation.summarize(tmp_path / "metrics.json")


def test_per_tag_tables_are_complete_and_empty_where_a_metric_is_undefined(reports):
    directory, analysis = reports
    assert pq.read_table(directory / "per_tag.parquet") == analysis.per_tag
    assert analysis.per_tag.column_names == [column.name for column in COLUMNS]
    empty_text_is_not_null = pyarrow.csv.ConvertOptions(strings_can_be_null=False)
    table = pyarrow.csv.read_csv(directory / "per_tag.csv", convert_options=empty_text_is_not_null)
    for name in ("name", "tp", "recall", "undefined"):
        assert table[name].to_pylist() == analysis.per_tag[name].to_pylist(), name
    assert table["recall"].null_count > 0


def test_thresholds_csv_is_read_by_the_tagger(reports):
    directory, analysis = reports
    names = [*analyses.names(80), "of_another_model"]
    thresholds = read_thresholds(directory / "thresholds.csv", names, 0.45)
    expected = [0.45 if value is None else value for value in analysis.per_tag["threshold"].to_pylist()] + [0.45]
    np.testing.assert_array_equal(thresholds, np.array(expected, dtype=np.float32))


def test_a_tag_that_every_image_should_get_has_a_tiny_positive_threshold(tmp_path):
    table = analyses.analysis(60).per_tag.slice(1, 1)
    table = table.set_column(table.column_names.index("threshold"), "threshold", [[-0.5]])
    evaluation.write_thresholds(tmp_path / "thresholds.csv", table)
    names = table["name"].to_pylist()
    assert 0 < read_thresholds(tmp_path / "thresholds.csv", names, 0.4)[0] < np.nextafter(np.float16(0), np.float16(1))


def test_label_errors_csv_names_image_and_tag(reports):
    directory, analysis = reports
    rows = pyarrow.csv.read_csv(directory / "label_errors.csv").to_pylist()
    assert len(rows) == len(analysis.label_errors)
    first, names = analysis.label_errors[0], analyses.names(80)
    assert (rows[0]["id"], rows[0]["tag"], rows[0]["labelled"]) == (first.row * 7, names[first.tag], first.labelled)
    assert rows[0]["sha256"] == analyses.predictions(80).hashes[first.row].tobytes().hex()


def small(kind: str) -> Predictions:
    """Return predictions of 40 images and 12 tags that leave some metrics undefined."""
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
    sources = np.zeros(len(labels), dtype=np.int64)
    predictions = analyses.predictions(12, len(labels))
    return dataclasses.replace(
        predictions, scores=scores, labels=csc_array(labels), sources=sources, source_names=["all"]
    )


@pytest.mark.parametrize("kind", ["usual", "never", "unlabelled", "always", "single"])
def test_reports_are_complete_whatever_is_undefined(tmp_path, kind):
    predictions = small(kind)
    analysis = analyse(predictions, 0.4, {"half": analyses.names(12)[:6]}, resamples=20)
    evaluation.write_reports(tmp_path, analysis, predictions)
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"\b(nan|None|inf)\b", html)
    assert "Undefined metrics" in html
    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse_constant)
    read_thresholds(tmp_path / "thresholds.csv", predictions.tags.names, 0.4)
    assert read_full_metrics(tmp_path / "full-metrics.txt").names == predictions.tags.names
    evaluation.metrics_table(analysis)


def test_the_terminal_table_has_rows_for_all_images_sources_and_categories():
    analysis = analyses.analysis(80)
    sources = analysis.sources.rows
    sources["photographs"] = dataclasses.replace(sources["photographs"], map=math.nan)
    table = evaluation.metrics_table(analysis)
    rows = [list(column.cells) for column in table.columns]
    assert rows[0] == ["all", "", "danbooru", "photographs", *analyses.CATEGORIES]
    value = analysis.headline["fixed"]["macro_f1"].value
    assert rows[6][:2] == [f"{value:.3f}", "±0.010"]
    assert rows[7][3] == "–"


def test_the_terminal_table_fits_80_columns_and_keeps_its_words_whole_when_metrics_are_undefined(monkeypatch, capsys):
    analysis = analyses.analysis(80)
    row = copy.copy(next(iter(analysis.categories.rows.values())))
    for field in dataclasses.fields(row):
        if isinstance(getattr(row, field.name), float):
            object.__setattr__(row, field.name, math.nan)
    analysis.categories.rows["copyright"] = row
    monkeypatch.setenv("COLUMNS", "80")
    terminal.show(evaluation.metrics_table(analysis))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert next(line for line in lines if "copyright" in line).split()[1:-1] == ["–"] * 7

"""Reports to the byte, and images that can be looked at."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csc_array
from sklearn.metrics import f1_score

from joytag.data.dataset import TagTable
from joytag.evaluation.analysis import analyse
from joytag.evaluation.metrics import Counts
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation, training_plots
from joytag.reports.full_metrics import ReportError, read_full_metrics, write_full_metrics
from joytag.tagging.captions import read_thresholds

# Two blocks in the published format.
TEXT = """\
Tag: 1girl (1) (cnt: 3097226)
Precision: 0.9000
Recall: 0.8182
F1: 0.8571
TP: 9, TN: 0, FP: 1, FN: 2

Tag: hand (0) (cnt: 5)
Precision: 0.5000
Recall: 0.5000
F1: 0.5000
TP: 1, TN: 9, FP: 1, FN: 1

"""


def random_counts(n_tags: int, images: int, seed: int = 0) -> Counts:
    """Counts of labels and decisions that agree more or less; some tags are never labelled, or never predicted."""
    rng = np.random.default_rng(seed)
    positives = rng.binomial(images, rng.beta(0.3, 30, n_tags))
    tp = rng.binomial(positives, rng.beta(2, 2, n_tags))
    fp = rng.binomial(images - positives, rng.beta(0.3, 60, n_tags))
    positives[::50], tp[::50] = 0, 0
    tp[::70], fp[::70] = 0, 0
    return Counts(tp=tp, fp=fp, fn=positives - tp, tn=images - positives - fp)


def test_full_metrics_has_the_published_format(tmp_path):
    counts = Counts(*(np.array(row) for row in ([1, 0, 9, 1], [1, 0, 1, 1], [1, 0, 2, 1], [7, 10, 0, 7])))
    path = tmp_path / "full-metrics.txt"
    write_full_metrics(path, ["b", "none", "1girl", "ö_(x)"], [5, 4, 3_097_226, 5], counts)
    assert path.read_bytes().decode() == (
        "Tag: 1girl (2) (cnt: 3097226)\nPrecision: 0.9000\nRecall: 0.8182\nF1: 0.8571\nTP: 9, TN: 0, FP: 1, FN: 2\n\n"
        "Tag: b (0) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: ö_(x) (3) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: none (1) (cnt: 4)\nPrecision: 0.0000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 10, FP: 0, FN: 0\n\n"
    )


def published(counts: Counts, names: list[str], trained: list[int]) -> str:
    """full-metrics.txt in plain Python, with each operation rounded to float32, which orders near-ties."""
    rows = []
    for i, (tp, fp, fn, tn) in enumerate(zip(*map(np.ndarray.tolist, vars(counts).values()), strict=True)):
        single, tiny = np.float32, np.float32(1e-8)
        p, r = single(tp) / (single(tp) + single(fp) + tiny), single(tp) / (single(tp) + single(fn) + tiny)
        f1 = 2 * p * r / (p + r + tiny)
        rows.append((-f1, i, f"Tag: {names[i]} ({i}) (cnt: {trained[i]})\nPrecision: {p:.4f}\nRecall: {r:.4f}\n"
                     f"F1: {f1:.4f}\nTP: {tp}, TN: {tn}, FP: {fp}, FN: {fn}\n\n"))  # fmt: skip
    return "".join(text for *_, text in sorted(rows))


def test_a_published_file_read_and_written_again_is_the_same_to_the_byte(tmp_path):
    """5,813 tags over 32,768 images, in the published format; its mean F1 is that of the counts, to 4 decimals."""
    counts, names = random_counts(5_813, 32_768), analyses.names(5_813)
    trained = sorted(np.random.default_rng(1).integers(1_200, 3_100_000, 5_813).tolist(), reverse=True)
    original, again = tmp_path / "full-metrics.txt", tmp_path / "again.txt"
    original.write_bytes(published(counts, names, trained).encode())
    read = read_full_metrics(original)
    write_full_metrics(again, *read)
    assert again.read_bytes() == original.read_bytes()
    assert read.names == names
    assert read.train_counts == trained
    printed = [float(line.split()[1]) for line in original.read_text().splitlines() if line.startswith("F1: ")]
    tp, fp, fn = read.counts.tp, read.counts.fp, read.counts.fn
    assert np.mean(printed) == pytest.approx(np.mean(2 * tp / np.maximum(1, 2 * tp + fp + fn)), abs=5e-5)


def test_the_mean_of_the_file_is_that_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.random((200, 30)) < 0.2, rng.random((200, 30)) < 0.3
    labels[:, 3], predicted[:, 4] = False, False
    counts = Counts(*((a & b).sum(0) for a, b in ((labels, predicted), (~labels, predicted), (labels, ~predicted),
                                                  (~labels, ~predicted))))  # fmt: skip
    write_full_metrics(tmp_path / "f.txt", [f"tag_{i}" for i in range(30)], range(30), counts)
    printed = [float(line.split()[1]) for line in (tmp_path / "f.txt").read_text().splitlines() if line[:2] == "F1"]
    assert np.mean(printed) == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0), abs=5e-5)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1).filter(lambda t: not {"\n", "\r"} & set(t)),
                          *[st.integers(0, 40_000)] * 5), min_size=1, max_size=20))  # fmt: skip
def test_whatever_is_written_is_read_again(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("full") / "full-metrics.txt"
    names, trained, *counts = map(list, zip(*rows, strict=True))
    write_full_metrics(path, names, trained, Counts(*map(np.array, counts)))
    read = read_full_metrics(path)
    assert (read.names, read.train_counts) == (names, trained)
    assert [list(values) for values in vars(read.counts).values()] == counts


def test_a_name_that_would_break_a_line_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"full-metrics.txt: tag 0, 'a\\nb': holds a line break; rename it"):
        write_full_metrics(tmp_path / "full-metrics.txt", ["a\nb"], [1], Counts(*np.ones((4, 1), dtype=int)))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (TEXT, "", 1, "is empty"),
        (TEXT, "hello\n", 1, "expected Tag: NAME (INDEX) (cnt: COUNT), found 'hello'"),
        ("\n", "\r\n", 1, r"found 'Tag: 1girl (1) (cnt: 3097226)\r'"),
        ("FN: 1\n\n", "FN: 1\n", 12, "expected an empty line, but the file ends"),
        ("FN: 1\n\n", "FN: 1", 11, "ends amid a line"),
        ("Recall: 0.5000\n", "", 9, "expected Recall: 0.1234, found 'F1: 0.5000'"),
        ("Recall: 0.5000", "Recall: 0.5", 9, "expected Recall: 0.1234"),
        ("Recall: 0.5000", "Recall: nan", 9, "expected Recall: 0.1234"),
        ("FP: 1, FN: 1", "FP: -1, FN: 1", 11, "expected TP: 1, TN: 2, FP: 3, FN: 4"),
        ("TP: 1, TN: 9", "TP: 1, TN: " + "9" * 30, 11, "expected TP: 1, TN: 2, FP: 3, FN: 4"),
        ("F1: 0.5000", "F1: 0.6000", 10, "F1: 0.6000, but its counts give 0.5000"),
        ("hand (0)", "hand (1)", 7, "index 1 occurs again, after line 1"),
        ("hand (0)", "hand (2)", 12, "ends after 2 tags, none of which has the index 0"),
        ("hand (0)", "hand (0x)", 7, "expected Tag: NAME (INDEX) (cnt: COUNT)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_file_is_refused_with_file_line_and_remedy(tmp_path, old, new, line, message):
    path = tmp_path / "full-metrics.txt"
    assert old in TEXT
    path.write_bytes(TEXT.replace(old, new).encode())
    with pytest.raises(ReportError) as error:
        read_full_metrics(path)
    text = str(error.value)
    assert text.startswith(f"{path}: line {line}: ")
    assert message in text
    assert "\n" not in text
    assert text.endswith("; restore the file, or write it again with evaluate.py")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"gone.txt: cannot be read .*; write it again"):
        read_full_metrics(tmp_path / "gone.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match=r"binary.txt: cannot be read"):
        read_full_metrics(tmp_path / "binary.txt")


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
    assert evaluation.summary(directory / "metrics.json") == (
        f"The model names 80 tags with micro F1 {micro:.3f} and macro F1 {macro:.3f}. "
        f"Its weakest groups of tags, by macro F1: {weakest}."
    )
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    with pytest.raises(ReportError, match=r"metrics.json: no metrics.json of evaluate.py \(KeyError\('headline'\)\)"):
        evaluation.summary(tmp_path / "metrics.json")


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
    assert "What is undefined" in html
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


def test_contact_sheet_and_curves_are_images(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.new("RGB", (64, 64), (i * 30, 100, 100)) for i in range(7)]
    names = [f"tag_with_a_long_name_{i}" for i in range(30)]
    sheet = training_plots.contact_sheet(images, rng.random((7, 30)) < 0.5, rng.random((7, 30)), names, 0.4, columns=4)
    assert sheet.width > sheet.height / 2
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"samples": 1, "loss": 2, "lr": 1}\n{"samples": 2, "val_micro_f1": 0.5, "val_macro_f1": 0.2}\n{"unfin'
    )
    training_plots.plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 600

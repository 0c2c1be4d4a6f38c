"""Comparisons: figures against scikit-learn, and that what is better wins while what is noise is called noise."""

import dataclasses
import json
from collections import Counter

import analyses
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from browser import Browser
from rich.console import Console
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from joytag.data.dataset import TagTable
from joytag.evaluation import thresholds
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.comparison import (
    F1_METRICS,
    HEADLINE,
    METRICS,
    VIEWS,
    Comparison,
    Contender,
    Difference,
    compare,
)
from joytag.reports import comparison as reports
from joytag.reports.comparison_html import render_page, tags_won

FACTS = {"kind": "release", "path": "runs/x", "images": 9, "tags": 9, "image_size": 64}


def contest(
    strengths: list[float], images: int = 1500, n_tags: int = 12, seed: int = 0, rarest: float = 0.02
) -> tuple[list[Contender], csc_array, TagTable]:
    """Taggers that find as many tags the better the stronger they are, each with noise of its own beside a common one.

    A tag is carried by a share of the images from 40 % down to `rarest`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.random((images, n_tags)) < np.geomspace(0.4, rarest, n_tags)
    common = rng.normal(size=labels.shape)
    contenders = []
    for letter, strength in zip("ABCD", strengths, strict=False):
        logits = strength * labels + 0.8 * common + 0.6 * rng.normal(size=labels.shape) - 2
        scores = (1 / (1 + np.exp(-logits))).astype(np.float16)
        contenders.append(Contender(letter, f"tagger <{letter}>", 0.4, scores, FACTS))
    names = [f"tag_{i}" for i in range(n_tags)]
    categories = np.where(np.arange(n_tags) < n_tags // 2, 0, 4).astype(np.int8)
    counts = np.arange(n_tags, dtype=np.int64)[::-1] * 100
    return contenders, csc_array(labels), TagTable(names, categories, counts, counts)


def with_scores(contender: Contender, letter: str, scores: np.ndarray) -> Contender:
    return Contender(letter, letter, contender.threshold, scores.astype(np.float16), FACTS)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """A is clearly better than B; C is A, but for noise of no consequence."""
    (a, b), labels, tags = contest([2.5, 2.0])
    noise = np.random.default_rng(1).normal(0, 0.003, a.scores.shape)
    c = with_scores(a, "C", (a.scores + noise).clip(0, 1))
    return compare([a, b, c], labels, tags, {"labels": "data/x"})


JUDGED = [(name, metric) for name, view in VIEWS.items() for metric in view.metrics if metric in (*F1_METRICS, "map")]


@pytest.mark.parametrize(("view", "figure"), JUDGED)
def test_the_better_one_wins_and_noise_is_called_noise(comparison, view, figure):
    better = comparison.difference("A", "B", view, figure)
    assert better.winner == "A"
    assert better.verdict.startswith("A is better by 0.")
    assert comparison.difference("B", "C", view, figure).winner == "C"
    copy = comparison.difference("A", "C", view, figure)
    assert copy.winner == ""
    assert copy.verdict.startswith("no difference beyond noise (")


def test_summaries_say_it_in_a_sentence(comparison):
    assert comparison.summary("A", "B") == "A is better than B in macro F1, micro F1 and mAP."
    assert comparison.summary("A", "C") == "No difference between A and C beyond noise."


def test_tags_are_won_by_the_better_one(comparison):
    won = tags_won(comparison.per_tag, "A", "B")
    assert won["A"] >= 6
    assert won["B"] == 0
    assert tags_won(comparison.per_tag, "A", "C") == {"A": 0, "C": 0, "neither": 12}
    general, character = (comparison.categories[name].differences[0] for name in ("general", "character"))
    assert general.winner == "A"
    assert character.winner == "A"


def test_figures_are_scikit_learns(comparison):
    contenders, labels, _ = contest([2.5, 2.0])
    labels = labels.toarray()
    for c in contenders:
        scores = c.scores.astype(np.float64)
        for view in ("own", "break_even"):
            predicted = scores > comparison.thresholds[view][c.letter]
            for name in VIEWS[view].metrics:
                kind, figure = name.split("_")
                score = {"f1": f1_score, "precision": precision_score, "recall": recall_score}[figure]
                found = comparison.metrics[view][c.letter][name].value
                assert found == pytest.approx(score(labels, predicted, average=kind, zero_division=np.nan), abs=1e-9)
        found = comparison.metrics["ranking"][c.letter]["map"].value
        assert found == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
        positives = comparison.per_tag["positives"].to_numpy()
        np.testing.assert_array_equal(positives, labels.sum(0))
        fair = scores > comparison.thresholds["break_even"][c.letter]
        expected = f1_score(labels, fair, average=None)
        np.testing.assert_allclose(comparison.per_tag[f"f1_{c.letter}"].to_numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["macro", "micro"])
def test_crossed_thresholds_are_the_best_of_the_other_half(comparison, kind):
    contenders, labels, _ = contest([2.5, 2.0])
    labels = labels.toarray()
    upper = thresholds.random_half(len(labels), 0)
    for c in contenders:
        scores = c.scores.astype(np.float64)
        predicted = np.zeros_like(labels)
        for half, threshold in zip((~upper, upper), comparison.thresholds[f"crossed_{kind}"][c.letter], strict=True):
            other = ~half
            best = max(f1_score(labels[other], scores[other] > t, average=kind) for t in np.linspace(0.3, 0.7, 81))
            assert f1_score(labels[other], scores[other] > threshold, average=kind) >= best - 1e-9
            predicted[half] = scores[half] > threshold
        found = comparison.metrics[f"crossed_{kind}"][c.letter][f"{kind}_f1"].value
        assert found == pytest.approx(f1_score(labels, predicted, average=kind), abs=1e-9)


def test_intervals_are_those_of_pairs_resampled_together():
    """Against a plain bootstrap of the difference; resampled independently, it would scatter several times as much."""
    (a, b), labels, tags = contest([2.5, 2.4], images=600)
    b = with_scores(b, "B", 0.9 * a.scores.astype(np.float64) + 0.1 * b.scores.astype(np.float64))
    found = compare([a, b], labels, tags).difference("A", "B", "own", "micro_f1").interval
    truth, rng, differences = labels.toarray(), np.random.default_rng(5), []
    decisions = [c.scores.astype(np.float64) > 0.4 for c in (a, b)]
    for _ in range(1000):
        rows = rng.integers(600, size=600)
        of_a, of_b = (2 * (truth & made)[rows].sum() / (truth[rows].sum() + made[rows].sum()) for made in decisions)
        differences.append(of_a - of_b)
    low, high = np.percentile(differences, (2.5, 97.5))
    width = high - low
    assert abs(found.low - low) < 0.15 * width
    assert abs(found.high - high) < 0.15 * width


def test_a_tagger_against_itself_differs_by_nothing():
    (a,), labels, tags = contest([2.0], images=300)
    found = compare([a, with_scores(a, "B", a.scores)], labels, tags, resamples=100)
    assert {(d.interval.value, d.interval.low, d.interval.high) for d in found.differences} == {(0, 0, 0)}
    assert found.summary("A", "B") == "No difference between A and B beyond noise."
    assert set(found.per_tag["winner_AB"].to_pylist()) == {""}


def test_equally_good_taggers_seldom_differ():
    """Of 60 equally good pairs some 5 % may be said to differ; thresholds that are chosen cost a little more."""
    said = Counter()
    for seed in range(60):
        contenders, labels, tags = contest([2.0, 2.0], images=500, n_tags=8, seed=seed)
        found = compare(contenders, labels, tags, resamples=200, seed=seed)
        said.update((d.view, d.metric) for d in found.differences if d.winner)
        said["tags"] += any(found.per_tag["winner_AB"].to_pylist())
    assert max(said.values()) <= 12, said
    assert sum(said[key] for key in HEADLINE) / len(HEADLINE) <= 8, said
    assert said["tags"] <= 8, said


def test_more_images_tell_smaller_differences_apart():
    few, many = (compare(*contest([2.1, 2.0], images=n), resamples=200) for n in (200, 8000))
    assert few.difference("A", "B", *HEADLINE[0]).winner == ""
    assert many.difference("A", "B", *HEADLINE[0]).winner == "A"


def test_what_is_undefined_is_said(tmp_path):
    contenders, labels, tags = contest([2.0, 1.0], images=100, n_tags=4)
    empty = csc_array(labels.shape, dtype=bool)
    found = compare(contenders, empty, tags, {"labels": "x"}, resamples=20)
    assert {d.verdict for d in found.differences if d.metric.endswith(("macro_f1", "recall", "map"))} == {"undefined"}
    reports.write_reports(tmp_path, found)
    text = (tmp_path / "compare.json").read_text()
    assert json.loads(text)["figures"]["ranking"]["A"]["map"]["value"] is None
    assert "NaN" not in text
    assert "undefined" in (tmp_path / "compare.html").read_text()
    silent = with_scores(contenders[1], "B", np.zeros_like(contenders[1].scores))
    found = compare([contenders[0], silent], labels, tags, resamples=20)
    assert found.difference("A", "B", "own", "macro_precision").verdict == "undefined"
    assert found.difference("A", "B", "own", "macro_f1").winner == "A"


@pytest.mark.parametrize(
    ("figure", "interval", "verdict", "winner"),
    [
        ("macro_f1", (0.03, 0.02, 0.04), "A is better by 0.0300 (95 % 0.0200 to 0.0400)", "A"),
        ("macro_f1", (-0.03, -0.04, -0.02), "B is better by 0.0300 (95 % 0.0200 to 0.0400)", "B"),
        ("micro_recall", (-0.03, -0.04, -0.02), "B is higher by 0.0300 (95 % 0.0200 to 0.0400)", "B"),
        ("map", (0.01, -0.01, 0.03), "no difference beyond noise (+0.0100, 95 % -0.0100 to +0.0300)", ""),
        ("map", (0.0, 0.0, 0.0), "no difference beyond noise (+0.0000, 95 % +0.0000 to +0.0000)", ""),
        ("map", (np.nan, np.nan, np.nan), "undefined", ""),
    ],
)
def test_verdicts_in_words(figure, interval, verdict, winner):
    difference = Difference("A", "B", "own", figure, Interval(*interval))
    assert (difference.verdict, difference.winner) == (verdict, winner)


def test_files_say_what_was_found(comparison, tmp_path):
    reports.write_reports(tmp_path / "new", comparison)
    found = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert list(found["taggers"]) == ["A", "B", "C"]
    assert found["facts"]["images"] == 1500
    assert len(found["summary"]) == 3
    assert found["tags"]["AB"]["A"] >= 6
    by_key = {(d["first"], d["second"], d["view"], d["figure"]): d for d in found["differences"]}
    assert len(by_key) == 3 * sum(len(view.metrics) for view in VIEWS.values())
    row = by_key["A", "B", "ranking", "map"]
    value, low, high = (row["difference"][name] for name in ("value", "low", "high"))
    assert low < value < high
    assert row["winner"] == "A"
    of_a, of_b = (found["figures"]["ranking"][letter]["map"]["value"] for letter in "AB")
    assert value == pytest.approx(of_a - of_b)
    table = pq.read_table(tmp_path / "new" / "per_tag.parquet")
    assert table.equals(comparison.per_tag)
    assert pyarrow.csv.read_csv(tmp_path / "new" / "per_tag.csv").column_names == table.column_names


def test_the_terminal_shows_everyone_and_every_pair(comparison, capsys):
    for table in reports.comparison_tables(comparison):
        Console(width=100).print(table)
    text = capsys.readouterr().out
    assert text.count("A is better than B in") == 1
    assert text.count("No difference between A and C") == 1
    assert "macro precision" in text
    assert set(METRICS.values()) <= {name for name in METRICS.values() if name in text}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """compare.html about tags and taggers with names that would break out of it."""
    contenders, labels, tags = contest([2.5, 2.0, 1.5], images=300)
    named = dataclasses.replace(tags, names=[*tags.names[len(analyses.HOSTILE) :], *analyses.HOSTILE])
    path = tmp_path_factory.mktemp("page") / "compare.html"
    found = compare(contenders, labels, named, {"labels": "<img src=x>"}, resamples=50)
    path.write_text(render_page(found), encoding="utf-8")
    return path


def test_what_strangers_wrote_stays_text(hostile):
    html = hostile.read_text(encoding="utf-8")
    for name in (*analyses.HOSTILE[:3], "tagger <A>", "<img src=x>"):
        assert name not in html
    assert "tagger &lt;A&gt;" in html
    assert "&lt;script&gt;alert" in html


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_all_is_drawn_and_nothing_is_asked_for(hostile, tmp_path, width):
    with Browser(tmp_path) as browser:
        page = browser.open(hostile, width=width)
        assert page.problems == []
        assert page.requests == []
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("document.querySelectorAll('.chart polyline.s3').length") == 4  # the third tagger's curves
        assert page.value("document.querySelectorAll('.chart').length") == 4 + 3
        assert page.value("document.querySelectorAll('.zero .interval .bar').length") == 3 * 11
        rows = "document.querySelectorAll('.sortable tbody tr').length"
        assert page.value(rows) == 12

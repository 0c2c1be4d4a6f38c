"""Comparisons: metrics match scikit-learn, better taggers win, and noise is called noise."""

from collections import Counter

import numpy as np
import pytest
from contests import clear_and_noisy_comparison, contest, with_scores
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from joytag.evaluation import thresholds
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.comparison import (
    F1_METRICS,
    HEADLINE,
    VIEWS,
    Comparison,
    Difference,
    compare,
)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return clear_and_noisy_comparison()


JUDGED = [(name, metric) for name, view in VIEWS.items() for metric in view.metrics if metric in (*F1_METRICS, "map")]


@pytest.mark.parametrize(("view", "metric"), JUDGED)
def test_the_better_tagger_wins_and_noise_is_called_noise(comparison, view, metric):
    better = comparison.difference("A", "B", view, metric)
    assert better.winner == "A"
    assert better.verdict.startswith("A is better by 0.")
    assert comparison.difference("B", "C", view, metric).winner == "C"
    copy = comparison.difference("A", "C", view, metric)
    assert copy.winner == ""
    assert copy.verdict.startswith("no difference beyond noise (")


def test_summaries_are_one_sentence(comparison):
    assert comparison.summary("A", "B") == "At break-even thresholds: A is better than B in macro F1, micro F1 and mAP."
    assert comparison.summary("A", "C") == "At break-even thresholds: No difference between A and C beyond noise."


def test_tags_are_won_by_the_better_tagger(comparison):
    winners = [comparison.per_tag[f"winner_{pair}"].to_pylist() for pair in ("AB", "AC")]
    assert winners[0].count("A") >= 6
    assert winners[0].count("B") == 0
    assert winners[1] == [""] * 12
    general, character = (comparison.categories[name].differences[0] for name in ("general", "character"))
    assert general.winner == "A"
    assert character.winner == "A"


def test_metrics_match_scikit_learn(comparison):
    contenders, labels, _ = contest([2.5, 2.0])
    labels = labels.toarray()
    for c in contenders:
        scores = c.scores.astype(np.float64)
        for view in ("own", "break_even"):
            predicted = scores > comparison.thresholds[view][c.letter]
            for name in VIEWS[view].metrics:
                kind, metric = name.split("_")
                score = {"f1": f1_score, "precision": precision_score, "recall": recall_score}[metric]
                result = comparison.metrics[view][c.letter][name].value
                assert result == pytest.approx(score(labels, predicted, average=kind, zero_division=np.nan), abs=1e-9)
        result = comparison.metrics["ranking"][c.letter]["map"].value
        assert result == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
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
        result = comparison.metrics[f"crossed_{kind}"][c.letter][f"{kind}_f1"].value
        assert result == pytest.approx(f1_score(labels, predicted, average=kind), abs=1e-9)


def test_intervals_of_differences_are_paired():
    """Against a plain bootstrap of the difference; resampled independently, it would scatter several times as much."""
    (a, b), labels, tags = contest([2.5, 2.4], images=600)
    b = with_scores(b, "B", 0.9 * a.scores.astype(np.float64) + 0.1 * b.scores.astype(np.float64))
    difference = compare([a, b], labels, tags).difference("A", "B", "own", "micro_f1").interval
    truth, rng, differences = labels.toarray(), np.random.default_rng(5), []
    decisions = [c.scores.astype(np.float64) > 0.4 for c in (a, b)]
    for _ in range(1000):
        rows = rng.integers(600, size=600)
        of_a, of_b = (
            2 * (truth & predicted)[rows].sum() / (truth[rows].sum() + predicted[rows].sum()) for predicted in decisions
        )
        differences.append(of_a - of_b)
    low, high = np.percentile(differences, (2.5, 97.5))
    width = high - low
    assert abs(difference.low - low) < 0.15 * width
    assert abs(difference.high - high) < 0.15 * width


def test_a_tagger_does_not_differ_from_itself():
    (a,), labels, tags = contest([2.0], images=300)
    comparison = compare([a, with_scores(a, "B", a.scores)], labels, tags, resamples=100)
    assert {(d.interval.value, d.interval.low, d.interval.high) for d in comparison.differences} == {(0, 0, 0)}
    assert comparison.summary("A", "B") == "At break-even thresholds: No difference between A and B beyond noise."
    assert set(comparison.per_tag["winner_AB"].to_pylist()) == {""}


@pytest.mark.statistics
def test_equally_good_taggers_seldom_differ():
    """Of 60 equally good pairs about 5 % may differ by accident, and a few more with chosen thresholds."""
    wins: Counter = Counter()
    for seed in range(60):
        contenders, labels, tags = contest([2.0, 2.0], images=500, n_tags=8, seed=seed)
        comparison = compare(contenders, labels, tags, resamples=200, seed=seed)
        wins.update((d.view, d.metric) for d in comparison.differences if d.winner)
        wins["tags"] += any(comparison.per_tag["winner_AB"].to_pylist())
    assert max(wins.values()) <= 12, wins
    assert sum(wins[key] for key in HEADLINE) / len(HEADLINE) <= 8, wins
    assert wins["tags"] <= 8, wins


def test_more_images_reveal_smaller_differences():
    few, many = (compare(*contest([2.1, 2.0], images=n), resamples=200) for n in (200, 8000))
    assert few.difference("A", "B", *HEADLINE[0]).winner == ""
    assert many.difference("A", "B", *HEADLINE[0]).winner == "A"


def test_undefined_differences_are_called_undefined():
    contenders, labels, tags = contest([2.0, 1.0], images=100, n_tags=4)
    empty = csc_array(labels.shape, dtype=bool)
    comparison = compare(contenders, empty, tags, {"labels": "x"}, resamples=20)
    assert {d.verdict for d in comparison.differences if d.metric.endswith(("macro_f1", "recall", "map"))} == {
        "undefined"
    }
    silent = with_scores(contenders[1], "B", np.zeros_like(contenders[1].scores))
    comparison = compare([contenders[0], silent], labels, tags, resamples=20)
    assert comparison.difference("A", "B", "own", "macro_precision").verdict == "undefined"
    assert comparison.difference("A", "B", "own", "macro_f1").winner == "A"


@pytest.mark.parametrize(
    ("metric", "interval", "verdict", "winner"),
    [
        ("macro_f1", (0.03, 0.02, 0.04), "A is better by 0.0300 (95 % 0.0200 to 0.0400)", "A"),
        ("macro_f1", (-0.03, -0.04, -0.02), "B is better by 0.0300 (95 % 0.0200 to 0.0400)", "B"),
        ("micro_recall", (-0.03, -0.04, -0.02), "B is higher by 0.0300 (95 % 0.0200 to 0.0400)", "B"),
        ("map", (0.01, -0.01, 0.03), "no difference beyond noise (+0.0100, 95 % -0.0100 to +0.0300)", ""),
        ("map", (0.0, 0.0, 0.0), "no difference beyond noise (+0.0000, 95 % +0.0000 to +0.0000)", ""),
        ("map", (np.nan, np.nan, np.nan), "undefined", ""),
    ],
)
def test_verdicts_are_put_into_words(metric, interval, verdict, winner):
    difference = Difference("A", "B", "own", metric, Interval(*interval))
    assert (difference.verdict, difference.winner) == (verdict, winner)

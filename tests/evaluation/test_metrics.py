"""Every metric against scikit-learn or, where that has none, against plain counting."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array
from sklearn.calibration import calibration_curve

from joytag.evaluation import metrics
from joytag.evaluation.curves import BELOW, BINS, calibration, choose_thresholds, compute_curves
from joytag.evaluation.metrics import Counts, Histogram

NAMES = ("precision", "recall", "f1")


@st.composite
def decisions(draw):
    """Draw scores float16 [P, N] and labels bool [P, N]: spread or tied, some tags never or always labelled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 60)), draw(st.integers(2, 5))  # scikit-learn treats one column as a binary problem
    scores = rng.random(shape)
    kind = draw(st.sampled_from(["spread", "tied", "equal", "extreme"]))
    if kind == "tied":
        scores = scores.round(1)
    elif kind == "equal":
        scores[:] = draw(st.sampled_from([0, 0.4, 1]))
    elif kind == "extreme":
        scores = np.where(scores < 0.5, scores**20, 1 - (1 - scores) ** 20)
    shares = [draw(st.sampled_from([0, 0.05, 0.3, 0.9, 1])) for _ in range(shape[1])]
    return scores.astype(np.float16), rng.random(shape) < np.array(shares)


def curves(scores, labels, rows=None):
    return compute_curves(scores, csc_array(labels), rows)


def counted(scores, labels, threshold) -> Counts:
    confusion = reference.multilabel_confusion_matrix(labels, scores.astype(np.float64) > threshold)
    return Counts(confusion[:, 1, 1], confusion[:, 0, 1], confusion[:, 1, 0], confusion[:, 0, 0])


def candidates(scores):
    """Return every threshold with different decisions: between neighbouring scores, and below all."""
    values = np.unique(scores.astype(np.float64))
    return (values + np.append(BELOW, values[:-1])) / 2


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")
        yield


def check_against_scikit_learn(scores, labels, threshold):
    n_tags, y, s = labels.shape[1], labels, scores.astype(np.float64)
    stored = curves(scores, labels)
    some = labels.any(0)
    precision = [reference.average_precision_score(y[:, i], s[:, i]) if some[i] else np.nan for i in range(n_tags)]
    same(stored.ap, precision)
    same(metrics.average_precision(table for _, table in metrics.histograms(scores, csc_array(labels))), precision)

    counts = counted(scores, labels, threshold)
    expected = reference.precision_recall_fscore_support(y, s > threshold, average=None, zero_division=np.nan)
    result = metrics.from_counts(counts)
    for name, value in zip(NAMES, expected, strict=False):
        same(result[name], value)
    mcc = [reference.matthews_corrcoef(y[:, i], s[:, i] > threshold) for i in range(n_tags)]
    same(np.nan_to_num(result["mcc"]), mcc)

    means = metrics.averages(counts)
    arrays = y[:, some], s[:, some] > threshold
    for kind, part in (("macro", arrays), ("micro", (y, s > threshold))):
        if some.sum() > 1:
            expected = reference.precision_recall_fscore_support(*part, average=kind, zero_division=np.nan)
            for name, value in zip(NAMES, expected, strict=False):
                same(means[f"{kind}_{name}"], value)
    assert means["tags_with_positives"] == some.sum()
    assert means["tags_predicted"] == np.sum(some & (s > threshold).any(0))


@settings(max_examples=60)
@given(decisions(), st.sampled_from([0, 0.05, 0.4, 0.7, 1]))
def test_metrics_match_scikit_learn(pair, threshold):
    scores, labels = pair
    check_against_scikit_learn(scores, labels, threshold)


def test_metrics_of_many_tags_match_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 500)) < np.geomspace(1e-4, 0.7, 500)
    scores = (0.3 * labels + 0.7 * rng.beta(0.5, 2, labels.shape)).astype(np.float16)
    assert not labels.any(0).all()
    check_against_scikit_learn(scores, labels, 0.4)


@settings(max_examples=40)
@given(decisions())
def test_best_thresholds_of_tags_match_a_search(pair):
    scores, labels = pair
    tag_curves = curves(scores, labels)
    for i in np.flatnonzero(~labels.any(0)):
        assert np.isnan(tag_curves.best_f1[i])
        assert np.isnan(tag_curves.best_threshold[i])
    for i in np.flatnonzero(labels.any(0)):
        y, s = labels[:, i], scores[:, i].astype(np.float64)
        all_f1 = {t: reference.f1_score(y, s > t) for t in candidates(s)}
        same(tag_curves.best_f1[i], max(all_f1.values()))
        assert tag_curves.best_threshold[i] == pytest.approx(
            max(t for t, f1 in all_f1.items() if f1 > tag_curves.best_f1[i] - 1e-12), abs=1e-7
        )


@settings(max_examples=60)
@given(decisions())
def test_best_thresholds_of_averages_match_a_search(pair):
    scores, labels = pair
    thresholds = choose_thresholds(curves(scores, labels))
    if not labels.any():
        assert all(np.isnan(value) for value in thresholds.values())
        return
    points = {t: metrics.averages(counted(scores, labels, t)) for t in candidates(scores)}
    for kind in ("micro", "macro"):
        f1 = {t: point[f"{kind}_f1"] for t, point in points.items()}
        assert thresholds[f"best_{kind}_f1"] in nearly(f1, max(f1.values()))

        gaps = {t: points[t][f"{kind}_precision"] - points[t][f"{kind}_recall"] for t in sorted(points)}
        crossed = [t for t, gap in gaps.items() if gap >= -1e-12]
        if not crossed:
            assert np.isnan(thresholds[f"{kind}_break_even"])
            continue
        around = {t: abs(gaps[t]) for t in [*[t for t in gaps if t < crossed[0]][-1:], crossed[0]]}
        assert thresholds[f"{kind}_break_even"] in nearly(around, min(around.values()))


def nearly(by_threshold, wanted):
    """Return the thresholds at which a metric equals a value up to rounding, since the order of sums differs."""
    return [t for t, value in by_threshold.items() if abs(value - wanted) < 1e-12]


@settings(max_examples=100)
@given(decisions())
def test_curves_at_a_level_equal_the_averages_at_its_threshold(pair):
    scores, labels = pair
    tag_curves = curves(scores, labels)
    for threshold in (0.0, 0.05, 0.4, 0.7):
        level, expected = metrics.first_level_above(threshold), metrics.averages(counted(scores, labels, threshold))
        for name in NAMES:
            same(getattr(tag_curves.macro, name)[level], expected[f"macro_{name}"])
            same(getattr(tag_curves.micro, name)[level], expected[f"micro_{name}"])
        assert tag_curves.tags_predicted[level] == expected["tags_predicted"]


@settings(max_examples=100)
@given(decisions())
def test_calibration_matches_scikit_learn(pair):
    scores, labels = pair
    stored = curves(scores, labels)
    bins = calibration(stored)
    y, s = labels.ravel(), scores.ravel().astype(np.float64)
    frequency, mean_score = calibration_curve(y, s, n_bins=BINS)
    same(bins.frequency, frequency)
    same(bins.mean_score, mean_score)
    assert bins.count.sum() == y.size
    same(bins.ece, np.sum(bins.count * np.abs(frequency - mean_score)) / y.size)
    for i in range(labels.shape[1]):
        y, s = labels[:, i], scores[:, i].astype(np.float64)
        frequency, mean_score = calibration_curve(y, s, n_bins=BINS)
        count = np.bincount(np.searchsorted(bins.edges[1:-1], s), minlength=BINS)
        same(stored.ece[i], np.sum(count[count > 0] * np.abs(frequency - mean_score)) / y.size)


@settings(max_examples=50)
@given(decisions(), st.integers(1, 20))
def test_streamed_and_stored_scores_give_the_same_metrics(pair, batch):
    scores, labels = pair
    first, second = Histogram.zeros(labels.shape[1]), Histogram.zeros(labels.shape[1])
    for start in range(0, len(scores), batch):
        rows = slice(start, start + batch)
        histogram = (first, second)[start // batch % 2]
        histogram.add(torch.from_numpy(scores[rows]).float(), torch.from_numpy(labels[rows]))
    both = Histogram(first.table + second.table)
    stored = np.concatenate([table for _, table in metrics.histograms(scores, csc_array(labels))], axis=1)
    np.testing.assert_array_equal(both.table, stored)
    for threshold in (0.4, np.linspace(0, 1, labels.shape[1])):
        decisions = metrics.predicted(scores, threshold)
        np.testing.assert_array_equal(decisions.toarray(), scores.astype(float) > threshold)
        expected = counted(scores, labels, threshold)
        for result in (both.counts(threshold), metrics.count(csc_array(labels), decisions)):
            for name in ("tp", "fp", "fn", "tn"):
                np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    logged = metrics.validation_metrics(both, 0.4)
    means = metrics.averages(both.counts(0.4))
    np.testing.assert_equal({name: means[name] for name in logged if name != "map"} | {"map": logged["map"]}, logged)
    some = labels.any(0)
    if some.any():
        same(logged["map"], reference.average_precision_score(labels[:, some], scores[:, some], average="macro"))


def test_blocks_of_tags_are_joined_in_order():
    rng = np.random.default_rng(0)
    labels = rng.random((50, 3 * metrics.TAG_BLOCK + 1)) < 0.3
    scores = rng.random(labels.shape).astype(np.float16)
    whole = curves(scores, labels)
    for i in (0, metrics.TAG_BLOCK - 1, metrics.TAG_BLOCK, labels.shape[1] - 1):
        alone = curves(scores[:, [i]], labels[:, [i]])
        assert (whole.ap[i], whole.best_threshold[i], whole.ece[i]) == (
            alone.ap[0],
            alone.best_threshold[0],
            alone.ece[0],
        )
    rows = np.array([3, 5, 7, 20])
    np.testing.assert_array_equal(curves(scores, labels, rows).best_f1, curves(scores[rows], labels[rows]).best_f1)


def test_columns_of_counts_are_averaged_independently():
    rng = np.random.default_rng(0)
    many = Counts(*rng.integers(0, 3, (4, 30, 7)))
    averages = metrics.averages(many)
    for column in range(7):
        expected = metrics.averages(many[:, column])
        assert expected.pop("tags") == 30
        assert {name: pytest.approx(averages[name][column]) for name in expected} == expected


def test_undefined_metrics_are_nan():
    nothing = metrics.from_counts(Counts(*np.array([[0, 0], [0, 3], [0, 0], [5, 2]])))
    assert np.isnan(nothing["recall"]).all()
    assert np.isnan(nothing["mcc"]).all()
    assert np.isnan(nothing["precision"][0])
    assert nothing["precision"][1] == 0
    assert np.isnan(nothing["f1"][0])
    assert nothing["f1"][1] == 0
    assert np.isnan(metrics.mean_average_precision(np.array([np.nan]), np.array([0]))[0])
    assert metrics.mean_average_precision(np.array([0.5, 1, 0]), np.array([5, 4, 9]), minimum=5) == (0.25, 2)


def test_full_metrics_convention_is_float32_and_zero_where_undefined():
    result = metrics.precision_recall_f1(Counts(*np.array([[0, 9, 1], [0, 1, 1], [0, 2, 1], [5, 0, 7]])))
    for value, expected in zip(result, ([0, 0.9, 0.5], [0, 9 / 11, 0.5], [0, 6 / 7, 0.5]), strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_score_at_the_threshold_is_not_a_prediction():
    score = np.float16(0.4)
    assert metrics.VALUES[metrics.first_level_above(float(score)) - 1] == score
    assert metrics.predicted(
        np.array([[score, np.nextafter(score, np.float16(1))]]), float(score)
    ).toarray().tolist() == [[False, True]]


def test_invalid_scores_count_as_zero_in_training_and_are_refused_on_disk():
    histogram = Histogram.zeros(1)
    histogram.add(torch.tensor([[torch.nan], [-0.0], [1.0]]), torch.tensor([[True], [False], [False]]))
    assert histogram.table[1, 0, 0] == histogram.table[0, 0, 0] == histogram.table[0, 0, -1] == 1
    for bad in (np.nan, -0.1, 1.5):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            list(metrics.histograms(np.array([[bad]], dtype=np.float16), csc_array([[True]])))

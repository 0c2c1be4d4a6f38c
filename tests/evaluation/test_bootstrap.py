"""Resampled metrics against a bootstrap that draws images and calls scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, matthews_corrcoef, precision_recall_fscore_support

from joytag.evaluation import bootstrap, metrics
from joytag.evaluation.bootstrap import Interval, interval

RNG = np.random.default_rng


@pytest.fixture
def sample():
    """Scores and labels of 400 images with 6 tags, 2 to 250 positives each."""
    rng = RNG(0)
    labels = rng.random((400, 6)) < np.array([0.01, 0.05, 0.1, 0.2, 0.4, 0.6])
    scores = (0.25 * labels + 0.75 * rng.beta(1, 2, labels.shape)).astype(np.float16)
    return scores, labels


def drawn(images, seed, resamples):
    """Return the images of each resample, repeated as often as they were drawn."""
    blocks = np.concatenate(list(bootstrap.resample_weights(images, seed, resamples)), axis=1)
    return [np.repeat(np.arange(images), column.astype(int)) for column in blocks.T]


def test_resamples_are_drawn_with_replacement_and_repeat_for_a_seed():
    first = list(bootstrap.resample_weights(50, seed=1, resamples=230))
    assert {block.shape for block in first} == {(50, bootstrap.BLOCK), (50, 230 % bootstrap.BLOCK)}
    whole = np.concatenate(first, axis=1)
    assert whole.shape == (50, 230)
    assert (whole.sum(0) == 50).all()
    assert whole.var() == pytest.approx(1 - 1 / 50, rel=0.03)  # of the multinomial distribution
    np.testing.assert_array_equal(
        whole, np.concatenate(list(bootstrap.resample_weights(50, seed=1, resamples=230)), axis=1)
    )
    assert (first[0] != next(bootstrap.resample_weights(50, seed=2))).any()


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.integers(0, 2**32))
def test_families_are_drawn_together_as_single_images_would_be(families, seed):
    names, row = np.unique(families, return_inverse=True)
    drawn = next(bootstrap.resample_weights(len(families), seed, families=np.array(families)))
    np.testing.assert_array_equal(drawn, next(bootstrap.resample_weights(len(names), seed))[row])


def test_variants_of_an_image_do_not_make_intervals_narrower(sample):
    """Each image three times, as a family, varies as the images alone; as independent images, it would vary less."""
    scores, labels = sample
    once = bootstrap.replicates(csc_array(labels), {"": metrics.predicted(scores, 0.4)})[""]
    scores, labels = np.repeat(scores, 3, axis=0), csc_array(np.repeat(labels, 3, axis=0))
    decisions, families = {"": metrics.predicted(scores, 0.4)}, np.repeat(np.arange(400), 3)
    thrice = bootstrap.replicates(labels, decisions, families=families)[""]
    for name in ("macro_f1", "micro_mcc"):
        np.testing.assert_allclose(thrice[name], once[name])
    assert bootstrap.replicates(labels, decisions)[""]["micro_f1"].std() < 0.7 * once["micro_f1"].std()
    influence = bootstrap.ap_influence(scores, labels, np.arange(6))
    apart, together = (bootstrap.ap_replicates(0.5, influence, families=of).std() for of in (None, families))
    assert together == pytest.approx(np.sqrt(3) * apart, rel=0.1)


def test_averages_of_resamples_match_scikit_learn_on_the_images_drawn(sample):
    scores, labels = sample
    decisions = {str(t): metrics.predicted(scores, t) for t in (0.4, 0.7)}
    replicates = bootstrap.replicates(csc_array(labels), decisions, seed=3, resamples=110)
    for r, rows in enumerate(drawn(400, 3, 110)):
        some = labels[rows].any(0)
        for t in (0.4, 0.7):
            predicted = scores[rows].astype(float) > t
            mcc = matthews_corrcoef(labels[rows].ravel(), predicted.ravel())
            assert replicates[str(t)]["micro_mcc"][r] == pytest.approx(mcc, abs=1e-9)
            for kind, tags in (("macro", some), ("micro", slice(None))):
                expected = precision_recall_fscore_support(
                    labels[rows][:, tags], predicted[:, tags], average=kind, zero_division=np.nan
                )
                for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
                    assert replicates[str(t)][f"{kind}_{name}"][r] == pytest.approx(value, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans())
def test_influence_is_the_derivative_of_mean_average_precision(seed, tied):
    rng = RNG(seed)
    labels, scores = rng.random((12, 3)) < 0.4, rng.random((12, 3)).astype(np.float16)
    labels[rng.integers(12), :2] = True
    labels[:, 2] = False
    if tied:
        scores = scores.round(1)
    tags = np.array([1, 0])

    def mean(weight):
        return np.mean([average_precision_score(labels[:, i], scores[:, i], sample_weight=weight) for i in tags])

    influence = bootstrap.ap_influence(scores, csc_array(labels), tags)
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    for j in range(12):
        step = np.eye(12)[j] * 1e-5
        assert influence[j] == pytest.approx((mean(1 + step) - mean(1 - step)) / 2e-5, abs=1e-6)


@pytest.mark.statistics
def test_linearized_average_precision_varies_like_that_of_the_images_drawn(sample):
    scores, labels = sample
    tags = np.arange(1, 6)
    value = average_precision_score(labels[:, tags], scores[:, tags].astype(float), average="macro")
    influence = bootstrap.ap_influence(scores, csc_array(labels), tags)
    replicates = bootstrap.ap_replicates(value, influence, seed=5, resamples=600)
    expected = np.array(
        [
            average_precision_score(labels[rows][:, tags], scores[rows][:, tags].astype(float), average="macro")
            for rows in drawn(400, 5, 600)
        ]
    )
    assert np.corrcoef(replicates, expected)[0, 1] > 0.97
    ours, theirs = interval(value, replicates), interval(value, expected)
    width = theirs.high - theirs.low
    assert ours.high - ours.low == pytest.approx(width, rel=0.1)
    assert ours.low == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.12 * width)


@pytest.mark.statistics
def test_intervals_cover_the_truth_at_their_rate():
    """Tags with about five positives each, for which plain percentiles of macro F1 are too low."""
    result, values = [], []
    for trial in range(200):
        rng = RNG(trial)
        labels = rng.random((200, 20)) < 0.025
        predicted = {"": csc_array(np.where(labels, rng.random(labels.shape) < 0.6, rng.random(labels.shape) < 0.01))}
        values.append(metrics.averages(metrics.count(csc_array(labels), predicted[""]))["macro_f1"])
        replicates = bootstrap.replicates(csc_array(labels), predicted, seed=trial, resamples=200)[""]["macro_f1"]
        result.append(interval(values[-1], replicates))
    truth = np.mean(values)
    assert all(i.low < i.value < i.high for i in result)
    assert 180 <= sum(i.low <= truth <= i.high for i in result) <= 199


def test_differences_are_paired(sample):
    """The difference of two models that err on almost the same images is known better than either metric."""
    scores, labels = sample
    better = scores.copy()
    better[labels[:, 5].nonzero()[0][:60], 5] = 1
    decisions = {name: metrics.predicted(of, 0.5) for name, of in (("a", better), ("b", scores), ("c", scores.copy()))}
    replicates = bootstrap.replicates(csc_array(labels), decisions, seed=0)
    single = interval(0.5, replicates["a"]["micro_f1"])
    difference = interval(0.1, replicates["a"]["micro_f1"] - replicates["b"]["micro_f1"])
    assert difference.excludes_zero
    assert difference.high - difference.low < single.high - single.low
    none = interval(0, replicates["c"]["micro_f1"] - replicates["b"]["micro_f1"])
    assert none == Interval(0, 0, 0)
    assert not none.excludes_zero


def test_undefined_values_of_resamples_are_left_out():
    assert interval(1, np.array([np.nan, 1, 1])) == Interval(1, 1, 1)
    bounds = interval(0.97, np.linspace(0.8, 1, 100))
    assert bounds.high == 1
    assert bounds.low == pytest.approx(0.97 - 0.9 + 0.805, abs=1e-3)
    for value, parts in ((np.nan, np.ones(3)), (0.5, np.full(3, np.nan))):
        bounds = interval(value, parts)
        assert np.isnan(bounds.low)
        assert np.isnan(bounds.high)
        assert not bounds.excludes_zero
    labels = csc_array(np.array([[True], [False]]))  # a quarter of the resamples holds no positive
    recall = bootstrap.replicates(labels, {"": labels}, resamples=400)[""]["macro_recall"]
    assert 0.15 < np.isnan(recall).mean() < 0.35
    assert np.nanmin(recall) == 1

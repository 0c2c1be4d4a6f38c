"""Thresholds chosen on some images and tried on others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.curves import choose_thresholds, compute_curves
from joytag.evaluation.thresholds import cross_fit, predicted_by_half, random_half, shrunk_thresholds


def curves(scores, labels, rows=None):
    return compute_curves(scores, labels, rows)


def skewed(seed, images=300, tags=40):
    """Return scores that are lower for rarer tags, so that 0.4 suits few of them, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random((images, tags)) < np.geomspace(0.02, 0.4, tags)
    logits = rng.normal(size=labels.shape) + 2.5 * labels + np.linspace(-4, -1, tags)
    return (1 / (1 + np.exp(-logits))).astype(np.float16), csc_array(labels)


def macro_f1(labels, decisions):
    return metrics.averages(metrics.count(labels, decisions))["macro_f1"]


def test_halves_are_random_and_disjoint():
    first = random_half(1001, seed=3)
    assert first.sum() == 500
    assert 200 < first[:500].sum() < 300
    assert (first != random_half(1001, seed=4)).any()


def test_halves_do_not_divide_families():
    families = np.random.default_rng(0).integers(0, 300, 1000)
    first = random_half(1000, seed=3, families=families)
    assert not set(families[first]) & set(families[~first])
    assert len(set(families[first])) == len(set(families)) // 2
    scores, labels = skewed(0)
    fit = cross_fit(scores, labels, seed=3, families=np.arange(len(scores)) // 4)
    assert (fit.first_half == np.repeat(fit.first_half[::4], 4)).all()


def test_each_half_uses_thresholds_of_the_other_alone():
    scores, labels = skewed(0)
    fit = cross_fit(scores, labels, seed=1)
    for half in (fit.first_half, ~fit.first_half):
        others = np.flatnonzero(~half)
        tag_curves = curves(scores, labels, others)
        shared = choose_thresholds(tag_curves)["best_macro_f1"]
        own = shrunk_thresholds(scores[others], labels[others].tocsc(), tag_curves)
        for decisions, threshold in ((fit.shared, shared), (fit.per_tag, own)):
            np.testing.assert_array_equal(decisions.toarray()[half], scores[half].astype(float) > threshold)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 5, 1e9]))
def test_shrunk_thresholds_match_a_search(seed, prior):
    rng = np.random.default_rng(seed)
    scores = rng.random((30, 3)).round(2).astype(np.float16)
    labels = rng.random((30, 3)) < [0.1, 0.4, 0]
    labels[0, 0] = True
    tag_curves = curves(scores, csc_array(labels))
    thresholds = shrunk_thresholds(scores, csc_array(labels), tag_curves, prior=prior)
    levels = np.unique(scores.astype(float))
    predicted = scores.astype(float) >= levels[:, None, None]
    each = 2 * (predicted & labels).sum(1) / np.maximum(predicted.sum(1) + labels.sum(0), 1)
    n = labels.sum(0)
    macro = each[:, n > 0].mean(1)
    wanted = n * each + prior * macro[:, None]
    for i in range(3):
        if n[i] + prior:
            reached = wanted[np.searchsorted(levels, thresholds[i]), i]
            assert reached == pytest.approx(wanted[:, i].max(), rel=1e-9)


def test_shrunk_thresholds_beat_raw_shared_and_fixed_thresholds_on_other_images():
    fixed, shared, raw, shrunk = np.zeros(4), np.zeros(4), np.zeros(4), np.zeros(4)
    for seed in range(4):
        scores, labels = skewed(seed)
        fit = cross_fit(scores, labels, seed)
        fixed[seed] = macro_f1(labels, metrics.predicted(scores, 0.4))
        shared[seed], shrunk[seed] = macro_f1(labels, fit.shared), macro_f1(labels, fit.per_tag)
        sides = [np.flatnonzero(side) for side in (~fit.first_half, fit.first_half)]
        chosen = [shrunk_thresholds(scores, labels, curves(scores, labels, s), s, prior=0) for s in sides]
        raw[seed] = macro_f1(labels, predicted_by_half(scores, fit.first_half, *chosen))
    assert (shrunk > fixed + 0.03).all()
    assert shrunk.mean() > shared.mean() + 0.01
    assert shrunk.mean() > raw.mean() + 0.01


def test_tags_without_positives_get_the_shared_threshold():
    scores, labels = skewed(0)
    labels = labels.tolil()
    labels[:, 3] = False
    labels = csc_array(labels)
    tag_curves = curves(scores, labels)
    shared = choose_thresholds(tag_curves)["best_macro_f1"]
    threshold = shrunk_thresholds(scores, labels, tag_curves)[3]
    assert abs(threshold - shared) < 0.02
    assert tag_curves.macro.f1[metrics.first_level_above(threshold)] == tag_curves.macro.f1.max()

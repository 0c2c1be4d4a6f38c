"""Confusions against plain counts, and labels falsified on purpose."""

from itertools import product

import numpy as np
import pytest
from scipy.sparse import csc_array

from joytag.evaluation import error_analysis, metrics
from joytag.evaluation.error_analysis import Confusion, Disagreement

NAMES = [f"tag_{i}" for i in range(12)]


def test_confusions_match_a_plain_count():
    rng = np.random.default_rng(0)
    labels = rng.random((400, 12)) < 0.2
    decisions = labels ^ (rng.random(labels.shape) < 0.1)
    swapped = np.flatnonzero(labels[:, 2])[:50]  # the model takes 2 for 7
    decisions[swapped, 2], decisions[swapped, 7] = False, True
    labels[swapped, 7] = False
    common, by_share = error_analysis.confusions(csc_array(labels), csc_array(decisions), NAMES)
    missed, wrong = labels & ~decisions, decisions & ~labels
    expected = {}
    for a, b in product(range(12), range(12)):
        images = int((missed[:, a] & wrong[:, b]).sum())
        if images and images * 400 >= error_analysis.MIN_LIFT * missed[:, a].sum() * wrong[:, b].sum():
            expected[NAMES[a], NAMES[b]] = images, images / missed[:, a].sum()
    assert {(c.labelled, c.predicted): (c.images, c.share) for c in common} == expected
    assert common[0][:2] == ("tag_2", "tag_7")
    assert common[0].images >= 50
    assert [c.images for c in common] == sorted((c.images for c in common), reverse=True)
    assert [c.share for c in by_share] == sorted((c.share for c in by_share), reverse=True)
    assert set(by_share) == {c for c in common if c.images >= error_analysis.MIN_IMAGES}


def test_a_tag_predicted_on_every_image_is_not_a_confusion():
    labels = np.zeros((100, 3), dtype=bool)
    labels[::2, 0] = True
    decisions = np.zeros_like(labels)
    decisions[:, 1] = True  # on every image
    decisions[::2, 2] = True  # where tag 0 is
    confusions, _ = error_analysis.confusions(csc_array(labels), csc_array(decisions), NAMES)
    assert confusions == [Confusion("tag_0", "tag_2", 50, 1.0)]


def test_disagreements_are_exactly_the_wrong_decisions():
    rng = np.random.default_rng(0)
    labels, scores = rng.random((50, 20)) < 0.2, rng.random((50, 20)).astype(np.float16)
    disagreements = error_analysis.disagreements(scores, csc_array(labels), metrics.predicted(scores, 0.6))
    positions = set(
        zip(disagreements.row.tolist(), disagreements.tag.tolist(), disagreements.labelled.tolist(), strict=True)
    )
    wrong = (scores.astype(float) > 0.6) != labels
    assert positions == {(row, tag, bool(labels[row, tag])) for row, tag in zip(*np.nonzero(wrong), strict=True)}
    assert len(disagreements.row) == len(positions)
    np.testing.assert_array_equal(disagreements.score, scores[disagreements.row, disagreements.tag])
    assert (disagreements.confidence >= 0).all()
    assert (disagreements.confidence <= 1).all()


def test_confidence_matches_its_definition():
    #                     with the tag           without
    scores = np.array([0.9, 0.8, 0.7, 0.02, 0.85, 0.3, 0.1, 0.05, 0.01, 0.01])[:, None].astype(np.float16)
    labels = csc_array(np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)[:, None])
    disagreements = error_analysis.disagreements(scores, labels, metrics.predicted(scores, 0.5))
    by_row = dict(zip(disagreements.row.tolist(), disagreements.confidence.tolist(), strict=True))
    # 0.85: one of two that score no less has the tag; three of four with it score lower.
    # 0.02: of those without, 4 of 6 score higher and 2 of 6 no higher; of those with, 1 of 4.
    assert by_row == {4: pytest.approx(1 / 2 * 3 / 4), 3: pytest.approx((1 - (1 / 4) / (2 / 6)) * 4 / 6)}


def test_falsified_labels_are_listed_first():
    rng = np.random.default_rng(0)
    truth = rng.random((3000, 30)) < np.geomspace(0.01, 0.4, 30)
    skill = rng.uniform(0.5, 5, 30)  # of some tags the model knows nothing
    scores = (1 / (1 + np.exp(-rng.normal(size=truth.shape) - skill * truth + 2))).astype(np.float16)
    spoilt = rng.random(truth.shape) < np.where(truth, 0.03, 0.001)
    labels = truth ^ spoilt
    disagreements = error_analysis.disagreements(scores, csc_array(labels), metrics.predicted(scores, 0.5))
    listed = error_analysis.label_errors(disagreements)
    assert len(listed) == error_analysis.LABEL_ERRORS
    assert [m.confidence for m in listed] == sorted((m.confidence for m in listed), reverse=True)
    for labelled, times in ((False, 4), (True, 4)):
        kind = disagreements.labelled == labelled
        chance = spoilt[disagreements.row[kind], disagreements.tag[kind]].mean()
        right = np.mean([spoilt[m.row, m.tag] for m in listed if m.labelled == labelled][:40])
        assert right > min(0.6, times * chance), (labelled, right, chance)


def test_worst_disagreements_are_of_different_images():
    rng = np.random.default_rng(0)
    labels, scores = rng.random((60, 20)) < 0.3, rng.random((60, 20)).astype(np.float16)
    scores[5] = np.where(labels[5], 0, 1)  # the worst of all images
    disagreements = error_analysis.disagreements(scores, csc_array(labels), metrics.predicted(scores, 0.6))
    wrong, missed = error_analysis.worst_disagreements(disagreements)
    for shown, labelled in ((wrong, False), (missed, True)):
        assert len(shown) == error_analysis.WORST
        assert {m.labelled for m in shown} == {labelled}
        assert len({m.row for m in shown}) == len(shown)
        assert max(np.unique([m.tag for m in shown], return_counts=True)[1]) <= error_analysis.WORST_PER_TAG
    assert wrong[0] == Disagreement(5, int(np.flatnonzero(~labels[5])[0]), 1.0, False, wrong[0].confidence)


def test_perfect_decisions_have_no_disagreements():
    labels = csc_array(np.eye(4, dtype=bool))
    scores = labels.toarray().astype(np.float16)
    disagreements = error_analysis.disagreements(scores, labels, labels)
    assert error_analysis.worst_disagreements(disagreements) == ([], [])
    assert error_analysis.label_errors(disagreements) == []
    assert error_analysis.confusions(labels, labels, NAMES) == ([], [])

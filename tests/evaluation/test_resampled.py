"""Resampled metrics against scikit-learn."""

import numpy as np
import pytest
from contests import contest
from sklearn.metrics import average_precision_score, f1_score

from joytag.evaluation.resampled import measure


def test_metrics_are_those_of_scikit_learn():
    (tagger, _), labels, _ = contest([2.0, 1.0], images=400)
    truth, scores = labels.toarray(), tagger.scores.astype(float)
    measured = measure(tagger.scores, labels, "macro_f1", 0.4, 200)
    assert measured.value == pytest.approx(f1_score(truth, scores > 0.4, average="macro"))
    assert measured.replicates.mean() == pytest.approx(measured.value, abs=0.03)
    ranked = measure(tagger.scores, labels, "map", 0.4, 200)
    assert ranked.value == pytest.approx(average_precision_score(truth, scores, average="macro"))
    assert len(measured.replicates) == len(ranked.replicates) == 200


def test_differences_are_paired_over_resamples():
    (better, worse), labels, _ = contest([2.0, 1.0], images=400)
    first, second = (measure(tagger.scores, labels, "macro_f1", 0.4, 200) for tagger in (better, worse))
    difference = first - second
    assert difference.value == first.value - second.value
    assert np.std(difference.replicates) < np.hypot(np.std(first.replicates), np.std(second.replicates))

"""Counts and averages against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support

from joytag.metrics import Counts, averages, precision_recall_f1


@pytest.fixture
def decisions():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(300, 40, generator=generator) < torch.linspace(0.01, 0.6, 40)
    scores = (0.35 * labels + 0.6 * torch.rand(300, 40, generator=generator)).clamp(0, 1)
    labels[:, 3], scores[:, 3] = False, 0.0  # neither labelled nor predicted
    labels[:, 5] = False  # predicted alone
    scores[:, 7] = 0.0  # labelled alone
    return scores, labels, torch.randint(0, 3, (300,), generator=generator)


def counted(scores, labels, sources) -> Counts:
    counts = Counts.zeros(3, 40)
    for part in torch.arange(300).split(64):
        counts.add(scores[part], labels[part], sources[part], 0.4)
    return counts


def test_counts_are_scikit_learns_confusion_matrices(decisions):
    scores, labels, sources = decisions
    counts = counted(scores, labels, sources)
    for source in range(3):
        of = sources == source
        expected = multilabel_confusion_matrix(labels[of].numpy(), (scores[of] > 0.4).numpy())
        found = np.stack([np.stack([counts.tn, counts.fp], -1), np.stack([counts.fn, counts.tp], -1)], -2)[source]
        np.testing.assert_array_equal(found, expected)


def test_precision_recall_and_f1_are_scikit_learns(decisions):
    scores, labels, _ = decisions
    counts = counted(*decisions).sum(0)
    expected = precision_recall_fscore_support(labels.numpy(), (scores > 0.4).numpy(), zero_division=0)
    for ours, theirs in zip(precision_recall_f1(counts), expected, strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["macro", "micro"])
def test_averages_are_scikit_learns(decisions, kind):
    scores, labels, _ = decisions
    found = averages(counted(*decisions).sum(0))
    expected = precision_recall_fscore_support(labels.numpy(), (scores > 0.4).numpy(), average=kind, zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
        assert found[f"{kind}_{name}"] == pytest.approx(value, abs=1e-6)
    assert found["tags_with_positives"] == 38


def test_a_score_at_the_threshold_is_no_prediction():
    counts = Counts.zeros(1, 1)
    counts.add(torch.tensor([[0.4]]), torch.tensor([[True]]), torch.tensor([0]), threshold=torch.tensor(0.4).item())
    assert counts.fn.item() == 1

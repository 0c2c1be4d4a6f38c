"""The randomization test against an enumeration of all swaps."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array
from sklearn.metrics import f1_score

from joytag.evaluation.randomization_test import randomization_test


def by_enumeration(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of the 2^P swaps after which F1 differs at least as much; takes bool [P]."""

    def difference(swapped: np.ndarray) -> float:
        a, b = np.where(swapped, second, first), np.where(swapped, first, second)
        return abs(f1_score(labels, a, zero_division=0) - f1_score(labels, b, zero_division=0))

    observed = difference(np.zeros(len(labels), dtype=bool))
    swaps = itertools.product([False, True], repeat=len(labels))
    return float(np.mean([difference(np.array(swapped)) >= observed - 1e-9 for swapped in swaps]))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=5))
@settings(max_examples=30)
def test_p_value_is_the_share_of_all_swaps(decisions):
    labels, first, second = np.array(decisions).T
    (p_value,) = randomization_test(*(csc_array(column[:, None]) for column in (labels, first, second)))
    if not labels.any():
        assert np.isnan(p_value)
    else:
        np.testing.assert_allclose(p_value, by_enumeration(labels, first, second), atol=1e-12)


def test_p_values_of_many_images_agree_with_random_swaps():
    rng = np.random.default_rng(0)
    labels = rng.random((3000, 3)) < (0.02, 0.2, 0.5)
    first, second = (labels ^ (rng.random((3000, 3)) < noise) for noise in (0.1, 0.12))
    p_values = randomization_test(*map(csc_array, (labels, first, second)))
    swapped = rng.random((2000, 3000)) < 0.5
    for tag in range(3):
        y, a, b = (matrix[:, tag].astype(np.float64) for matrix in (labels, first, second))

        def f1(hits: np.ndarray, predicted: np.ndarray, positives: float = y.sum()) -> np.ndarray:
            return 2 * hits / (predicted + positives)

        hits, predicted = (
            (np.where(swapped, b * of, a * of).sum(1), np.where(swapped, a * of, b * of).sum(1))
            for of in (y, np.ones(3000))
        )
        differences = np.abs(f1(hits[0], predicted[0]) - f1(hits[1], predicted[1]))
        observed = abs(f1((a * y).sum(), a.sum()) - f1((b * y).sum(), b.sum()))
        share = np.mean(differences >= observed - 1e-9)
        assert abs(p_values[tag] - share) < 4 * np.sqrt(share * (1 - share) / 2000) + 2e-3


def test_p_value_is_tiny_where_only_one_tagger_is_right():
    labels = np.zeros((20_000, 2), dtype=bool)
    labels[:5000] = True
    wrong = np.stack([~labels[:, 0], labels[:, 1]], axis=1)
    p = randomization_test(*map(csc_array, (labels, labels, wrong)))
    assert p[0] < 1e-100
    assert p[1] == 1

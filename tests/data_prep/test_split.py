"""The validation images represent every tag and source, and never look like a training image."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import split
from data_prep.split import choose_validation
from data_prep.tags import Rows


def choose(groups, labels, wanted, least, seed=0, sources=None, per_source=(0,)) -> np.ndarray:
    sources = np.zeros(len(groups), np.int16) if sources is None else np.array(sources, np.int16)
    return choose_validation(np.array(groups), Rows.of(labels), sources, wanted, least, np.array(per_source), seed)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_validation_holds_every_tag_and_no_look_alike_of_a_training_image(data):
    n_tags = 4
    images = data.draw(st.lists(st.tuples(st.integers(0, 12), st.sets(st.integers(0, n_tags - 1))), min_size=2))
    groups = np.array([group for group, _ in images])
    labels = [np.array(sorted(names), np.int64) for _, names in images]
    wanted, least, seed = data.draw(st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 99)))
    totals = np.bincount(np.concatenate(labels), minlength=n_tags)

    def attempt() -> np.ndarray | str:
        try:
            return choose(groups, labels, wanted, np.full(n_tags, least), seed)
        except ValueError as error:
            return str(error)

    mask = attempt()
    if isinstance(mask, str):
        assert mask.startswith("validation.")
        largest = max(Counter(groups.tolist()).values())
        assert totals.min() < least or max(wanted, least * n_tags * largest) + largest > len(groups)
        return
    assert mask.dtype == bool
    assert mask.shape == groups.shape
    assert not mask.all()
    assert mask.sum() >= wanted
    assert (np.bincount(np.concatenate([labels[row] for row in np.flatnonzero(mask)]), minlength=n_tags) >= least).all()
    assert not set(groups[mask].tolist()) & set(groups[~mask].tolist())
    if least == 0:
        sizes = Counter(groups.tolist())
        rest = [sizes[group] for group in set(groups[~mask].tolist())]
        assert mask.sum() <= wanted or (
            max(sizes.values()) > 1 and mask.sum() - wanted < min(max(sizes.values()), *rest, 99)
        )
    np.testing.assert_array_equal(mask, choose(groups, labels, wanted, np.full(n_tags, least), seed))


def test_another_seed_chooses_other_images():
    groups, labels = np.arange(200), [np.array([0])] * 200
    first, second = (choose(groups, labels, 20, np.array([5]), seed) for seed in (0, 1))
    assert first.sum() == second.sum() == 20
    assert (first != second).any()
    assert first[:100].any()
    assert first[100:].any()


def test_a_tag_that_is_too_rare_is_refused():
    with pytest.raises(ValueError, match=r"validation\.min_per_tag: .* occurs 2 times"):
        choose(range(9), [[0]] * 2 + [[]] * 7, 3, np.array([3]))


@pytest.mark.parametrize(
    ("groups", "labels", "wanted", "least"),
    [(range(5), [0] * 5, 5, 0), (range(5), [0] * 5, 9, 0), ([7] * 5, [0] * 5, 1, 0), (range(5), [0] * 5, 1, 5)],
)
def test_a_split_that_leaves_nothing_to_train_on_is_refused(groups, labels, wanted, least):
    with pytest.raises(ValueError, match=r"^validation\."):
        choose(list(groups), [[tag] for tag in labels], wanted, np.array([least]))


def test_every_source_is_represented():
    sources = [0] * 1000 + [1] * 20
    mask = choose(range(1020), [[0]] * 1020, 50, np.array([5]), sources=sources, per_source=(5, 7))
    assert mask.sum() == 50
    assert mask[1000:].sum() >= 7


def test_a_group_larger_than_the_missing_images_is_left_to_training():
    groups = [7] * 500 + list(range(1000, 1100))
    for seed in range(5):
        mask = choose(groups, [[0]] * 600, 40, np.array([0]), seed)
        assert mask.sum() == 40
        assert not mask[:500].any()


def test_rare_tags_are_found_in_all_chunks(monkeypatch):
    monkeypatch.setattr(split, "CHUNK", 7)
    labels = [[0, 1] if number % 50 == 0 else [0] for number in range(400)]
    mask = choose(range(400), labels, 20, np.array([5, 5]))
    assert mask.sum() == 20
    assert sum(mask[number] for number in range(0, 400, 50)) >= 5

"""Groups of tags: categories, bands, and a user's file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joytag.core.settings import SettingsError
from joytag.evaluation import tag_groups


def test_categories_are_named_in_their_usual_order():
    groups = tag_groups.by_category(np.array([4, 0, 9, 0, 4], dtype=np.int8))
    assert {name: tags.tolist() for name, tags in groups.items()} == {
        "general": [1, 3],
        "character": [0, 4],
        "category 9": [2],
    }
    assert list(groups) == ["general", "character", "category 9"]


@given(st.lists(st.one_of(st.integers(0, 100), st.integers(0, 4_000_000)), min_size=1, max_size=80))
def test_every_tag_is_in_one_band_of_several_tags(counts):
    counts = np.array(counts)
    groups = tag_groups.by_count(counts)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(groups.values()))), np.arange(len(counts)))
    assert len(groups) == 1 or min(map(len, groups.values())) >= tag_groups.FEWEST
    highest = [counts[tags].max() for tags in groups.values()]
    assert highest == sorted(highest)


def test_bands_are_named_by_their_bounds():
    counts = np.concatenate([np.full(200, n) for n in (1200, 2999, 3000, 40_000, 3_097_226)])
    assert {name: len(tags) for name, tags in tag_groups.by_count(counts).items()} == {
        "under 3k": 400,
        "3k to 30k": 200,
        "30k to 3M": 200,
        "3M or more": 200,
    }
    assert list(tag_groups.by_count(np.full(9, 20))) == ["all"]


def test_a_groups_file_is_read(tmp_path):
    path = tmp_path / "groups.yaml"
    path.write_text("# by eye\nbase: [dark, medium]\nexpressions:\n  - ';)'\n  - smile\n")
    assert tag_groups.read(path) == {"base": ["dark", "medium"], "expressions": [";)", "smile"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "a: not a name with a list of tags"),
        ("a: []", "a: not a name with a list of tags"),
        ("1: [b]", "1: not a name with a list of tags"),
        ("a: [b, 1]", "a: 1 is not text; write it in quotes"),
        ("a: [b, no]", "a: False is not text; write it in quotes"),
        ("a: [b]\na: [c]", "a: given twice"),
        ("a: [", "line 1"),
    ],
)
def test_errors_in_a_groups_file_are_named(tmp_path, text, message):
    path = tmp_path / "groups.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        tag_groups.read(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_tags_of_groups_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="hair: not in the vocabulary: blue_hair"):
        groups = tag_groups.by_name({"hair": ["red_hair", "blue_hair", "long_hair"]}, ["long_hair", "hat", "red_hair"])
    assert {name: tags.tolist() for name, tags in groups.items()} == {"hair": [0, 2]}
    with (
        pytest.warns(UserWarning, match="hair: not in"),
        pytest.raises(ValueError, match="none of their tags is in the vocabulary"),
    ):
        tag_groups.by_name({"hair": ["red"]}, ["hat"])
    assert tag_groups.by_name({}, ["hat"]) == {}

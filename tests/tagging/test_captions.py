"""Tests of joytag.tagging.captions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joytag.data.tag_names import canonical, is_kaomoji
from joytag.tagging.captions import Captions, CaptionStyle, read_thresholds

TAGS = {"1girl": 0.99, "blue_hair": 0.9, "^_^": 0.8, "saber_(fate)": 0.7, "solo": 0.6}
VOCABULARY = ["solo", "1girl", "saber_(fate)", "blue_hair", "^_^"]
ANY_TAG = st.text("ab1_()^;\\ ", min_size=1).map(lambda text: text.strip(" _")).filter(bool)


def captions(**options) -> Captions:
    return Captions(CaptionStyle(**options), VOCABULARY)


def names(**options) -> list[str]:
    return list(captions(**options).choose(TAGS))


def test_by_default_tags_are_unchanged_and_the_best_is_first():
    assert captions().choose(TAGS) == TAGS
    assert names() == list(TAGS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"underscores": "space"}, ["1girl", "blue hair", "^_^", "saber (fate)", "solo"]),
        ({"escape": True}, ["1girl", "blue_hair", "^_^", r"saber_\(fate\)", "solo"]),
        ({"max_tags": 2}, ["1girl", "blue_hair"]),
        ({"sort": "vocabulary"}, ["solo", "1girl", "saber_(fate)", "blue_hair", "^_^"]),
        ({"sort": "vocabulary", "max_tags": 2}, ["1girl", "blue_hair"]),
        ({"exclude": ["Blue Hair", "solo"]}, ["1girl", "^_^", "saber_(fate)"]),
        ({"exclude": ["1girl"], "max_tags": 2}, ["blue_hair", "^_^"]),
        ({"always_first": ["solo", "gone", "saber (fate)"]}, ["solo", "saber_(fate)", "1girl", "blue_hair", "^_^"]),
        ({"replace": {"1girl": "one_girl"}}, ["one_girl", "blue_hair", "^_^", "saber_(fate)", "solo"]),
        ({"exclude": ["*_*"]}, ["1girl", "solo"]),
        ({"exclude": ["*hair", "S*"]}, ["1girl", "^_^"]),
        ({"always_first": ["*_hair", "solo"]}, ["blue_hair", "solo", "1girl", "^_^", "saber_(fate)"]),
        ({"replace": {"1*": "x", "1girl": "y"}}, ["y", "blue_hair", "^_^", "saber_(fate)", "solo"]),
        ({"replace": {"*o*": "x"}, "exclude": ["solo"]}, ["1girl", "blue_hair", "^_^", "saber_(fate)", "x"]),
        ({"replace": {"solo": "1girl"}, "exclude": ["1girl"]}, ["blue_hair", "^_^", "saber_(fate)"]),
        ({"replace": {"solo": "1girl"}}, ["1girl", "blue_hair", "^_^", "saber_(fate)"]),
        (
            {"replace": {"solo": "1girl"}, "sort": "vocabulary"},
            ["1girl", "saber_(fate)", "blue_hair", "^_^"],
        ),
    ],
    ids=str,
)
def test_options_choose_order_and_spell_tags(options, expected):
    assert names(**options) == expected


def test_a_name_of_several_tags_gets_the_highest_score():
    assert captions(replace={"solo": "1girl"}).choose(TAGS)["1girl"] == 0.99


def test_a_tag_with_an_asterisk_is_excluded_by_its_name_alone():
    style = CaptionStyle(exclude=["*_*"], always_first=["*_*"])
    assert list(Captions(style, ["*_*", "a_b"]).choose({"*_*": 0.9, "a_b": 0.8})) == ["a_b"]


def test_names_that_mean_no_tag_are_described():
    style = captions(
        exclude=["sole", "blue hair", "*_request", "new"], replace={"1gril": "new", "*g*": "b"}, always_first=["NEW"]
    )
    assert style.unknown() == {
        "exclude": "sole (did you mean solo?), *_request",
        "replace": "1gril (did you mean 1girl?)",
    }
    assert captions().unknown() == {}


@pytest.mark.parametrize("tag", ["^_^", ">_<", "o_o", "|_|", "0_0", "(o)_(o)", "<|>_<|>", "||_||", "@_@", "=_=", "a_b"])
def test_kaomoji_keep_their_underscores(tag):
    assert is_kaomoji(tag)
    assert CaptionStyle(underscores="space").spell(tag) == tag


@pytest.mark.parametrize("tag", ["blue_hair", "k-on!_x", "saber_(fate)", "looking_at_viewer", "日本_語"])
def test_words_lose_their_underscores(tag):
    assert CaptionStyle(underscores="space").spell(tag) == tag.replace("_", " ")


def test_merging_keeps_existing_tags_and_adds_missing_ones():
    style = captions(underscores="space", escape=True)
    text = "my character,  Blue Hair,saber \\(fate\\)\nblue_hair, , solo"
    assert style.merge(text, ["1girl", "blue hair", r"saber \(fate\)"]) == [
        "my character",
        "Blue Hair",
        r"saber \(fate\)",
        "solo",
        "1girl",
    ]
    assert captions(always_first=["1girl"]).merge("a, b", ["1girl"]) == ["1girl", "a", "b"]
    assert captions(separator="\n").merge("a b\nc", ["d"]) == ["a b", "c", "d"]
    assert captions(separator=" ").merge("a b", ["b", "c"]) == ["a", "b", "c"]
    assert captions().merge("", ["a"]) == ["a"]


@pytest.mark.parametrize(
    ("separator", "text", "names", "merged"),
    [
        (", ", "mine, hello,_good-bye, a", ["hello,_good-bye", "b"], ["mine", "hello,_good-bye", "a", "b"]),
        (", ", "hello,_good-bye", ["hello,_good-bye"], ["hello,_good-bye"]),
        (", ", "hello,_good-byes,a", ["b"], ["hello", "_good-byes", "a", "b"]),
        ("-", "a-travel-places-mine", ["travel-places", "a"], ["a", "travel-places", "mine"]),
        (" ", "a hello,_good-bye", ["b"], ["a", "hello,_good-bye", "b"]),
    ],
)
def test_names_that_contain_the_separator_stay_whole(separator, text, names, merged):
    captions = Captions(CaptionStyle(separator=separator), ["hello,_good-bye", "travel-places", "a", "b"])
    assert captions.merge(text, names) == merged
    assert captions.merge(captions.join(merged), names) == merged


@given(st.lists(ANY_TAG), st.lists(ANY_TAG), st.sampled_from(["keep", "space"]), st.booleans())
def test_merging_again_changes_nothing(there, new, underscores, escape):
    style = captions(underscores=underscores, escape=escape, always_first=["a", "b"])
    names = [style.style.spell(tag) for tag in new]
    once = style.merge(", ".join(there), names)
    assert style.merge(", ".join(once), names) == once
    assert len({canonical(name) for name in once}) == len(once)
    assert {canonical(tag) for tag in [*there, *new]} == {canonical(name) for name in once}


def test_separators_that_occur_within_tags_are_refused():
    with pytest.raises(ValueError, match=r"^separator: "):
        CaptionStyle(separator="")
    with pytest.raises(ValueError, match=r"^separator: .*keep their underscores"):
        CaptionStyle(separator=" ", underscores="space")


def test_thresholds_are_read_from_json(tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"b c": 0.9, "a": 0.1}), encoding="utf-8-sig")
    expected = np.array([0.1, 0.9, 0.4], dtype=np.float32)
    np.testing.assert_array_equal(read_thresholds(path, ["a", "b_c", "d"], 0.4), expected)
    np.testing.assert_array_equal(read_thresholds(None, ["a", "b"], 0.3), np.full(2, 0.3, dtype=np.float32))


def test_a_threshold_of_a_pattern_holds_for_tags_without_their_own(tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"*hair": 0.9, "Blue Hair": 0.1}))
    expected = np.array([0.9, 0.1, 0.4], dtype=np.float32)
    np.testing.assert_array_equal(read_thresholds(path, ["red_hair", "blue_hair", "solo"], 0.4), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"solo": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[1]", "write it as"),
        ('{"solo": 2}', "solo: 2 is not a number"),
        ('{"solo": true}', "True"),
        ('{"sole": 0.5}', r"the model has no tag sole \(did you mean solo\?\)$"),
        ('{"*x": 0.5}', r"the model has no tag \*x$"),
        ('{"solo": 0.5, "Solo": 0.6}', "Solo: occurs twice"),
        ('{"solo": {"a": 1}}', "solo: .* is not a number"),
    ],
)
def test_errors_in_json_thresholds_name_file_and_tag(tmp_path, text, message):
    path = tmp_path / "thresholds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_thresholds(path, ["solo", "1girl"], 0.4)
    assert str(path) in str(error.value)


def test_thresholds_are_read_from_a_table(tmp_path):
    """The table is as a spreadsheet writes it; tags that it lacks have the default threshold."""
    path = tmp_path / "Thresholds.CSV"
    path.write_bytes('\ufefff1,tag,threshold\r\n0.5,"b,""c""",0.25\r\n,a,0.1\r\n\r\n'.encode())
    expected = np.array([0.1, 0.25, 0.4], dtype=np.float32)
    np.testing.assert_array_equal(read_thresholds(path, ["a", 'b,"c"', "d"], 0.4), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: must name the columns tag and threshold"),
        ("solo;0.5\n", "line 1: must name the columns tag and threshold"),
        ("tag,threshold\nsolo,0.5\nsolo,0.6\n", "solo: occurs twice"),
        ("tag,threshold\nsole,0.5\n", "did you mean solo"),
        ("tag,threshold\nsolo,half\n", "solo: 'half' is not a number"),
        ("tag,threshold\nsolo,\n", "solo: '' is not a number"),
        ("tag,threshold\nsolo,nan\n", "solo: nan is not a number"),
        ("tag,threshold\nsolo,1\n", "solo: 1.0 is not a number between 0 and 1"),
        ("tag,threshold\nsolo,0,5\n", "'solo,0,5': 3 values, but the first line names 2"),
        ('tag,threshold\n"solo,0.5\n', "not valid CSV"),
        ("tag,threshold\n\xff,0.5\n", "not valid CSV in UTF-8"),
    ],
)
def test_errors_in_a_table_of_thresholds_name_file_and_tag(tmp_path, text, message):
    path = tmp_path / "thresholds.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        read_thresholds(path, ["solo", "1girl"], 0.4)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)

"""Spellings of tags, and lists of tag names."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from joytag.data import tag_names
from joytag.data.tag_names import TagListError, canonical, describe_unknown, matcher

ANY_TAG = st.text() | st.text(r"aA_ \()	" + "\u00a0\u2028")


@given(ANY_TAG)
@example("a _ b__\\(C\\)  ")
@example("a\u200d\ufeff ")
def test_the_canonical_form_is_composed_and_stable(tag):
    form = canonical(tag)
    assert canonical(form) == form == unicodedata.normalize("NFC", form)
    assert not re.search(r"\s|__|\\[()]|[\u200b\ufeff]", form)


@given(st.text("aA_ ()\t" + "\u00a0\u2028"))
def test_the_canonical_form_of_plain_text_follows_its_definition(tag):
    assert canonical(tag) == re.sub(r"[\s_]+", "_", tag.strip().lower())


@pytest.mark.parametrize(
    ("tag", "form"),
    [
        ("\u200bcat\u200b", "cat"),
        ("blue\u3000hair", "blue_hair"),
        ("\u202ecat\u202c", "cat"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("cat\u200d", "cat"),
        ("d\0g", "d\0g"),
        ("\u200b", ""),
    ],
)
def test_invisible_characters_are_removed_unless_they_join(tag, form):
    assert canonical(tag) == form


def test_spellings_of_a_tag_compare_as_equal():
    assert {canonical(tag) for tag in (r"Blue Hair \(dyed\)", "blue_hair_(dyed)", " blue__hair (dyed)")} == {
        "blue_hair_(dyed)"
    }


def test_spellings_in_nfc_and_nfd_compare_as_equal():
    assert canonical("cafe\u0301") == canonical("caf\u00e9")


def test_names_and_patterns_match_tags_in_any_spelling():
    find = matcher(["Blue Hair", "*_request", "*_hair", "c.t"])
    assert [find(tag) for tag in ("blue_hair", "Some Request", "red hair", "c.t")] == [0, 1, 2, 3]
    assert [find(tag) for tag in ("hair", "requests", "cat", "my_request_2")] == [None] * 4


def test_a_tag_with_an_asterisk_is_no_pattern_where_it_exists():
    tags = ["*_*", "a_b"]
    assert [matcher(["*_*"], tags)(tag) for tag in tags] == [0, None]
    assert [matcher(["*_*"])(tag) for tag in tags] == [0, 0]


def test_a_name_takes_precedence_over_a_pattern():
    assert matcher(["*_hair", "blue_hair"])("blue hair") == 1


def test_unknown_names_are_listed_with_the_nearest_tag():
    tags = ["solo", "blue_hair", "translation_request"]
    assert describe_unknown(["Solo", "blue hair", "*_request"], tags) == ""
    assert describe_unknown(["sole", "zzz", "*_x"], tags) == "sole (did you mean solo?), zzz, *_x"
    assert describe_unknown([f"zz{i}" for i in range(7)], tags, limit=2) == "zz0, zz1, 5 more"


def test_names_are_read_in_order(tmp_path):
    path = tmp_path / "top_tags.txt"
    path.write_bytes("\ufeff1girl\r\n ^_^ \n\n猫\n".encode())
    assert tag_names.read(path) == ["1girl", "^_^", "猫"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"a\nb\na", "a: given twice"),
        (b" " * (tag_names.MAX_BYTES + 1), "larger than 16 MB"),
    ],
)
def test_an_unusable_list_is_named(tmp_path, content, message):
    path = tmp_path / "top_tags.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TagListError, match=message) as error:
        tag_names.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_folder_is_not_a_list(tmp_path):
    with pytest.raises(TagListError, match="cannot be read"):
        tag_names.read(tmp_path)

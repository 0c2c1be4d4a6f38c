"""Aliases, implications and the blacklist apply as in a slow and simple recount."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from data_prep import tags
from data_prep.tags import Policy, Rows

NAME = st.sampled_from("abcdefg")
PAIRS = st.lists(st.tuples(NAME, NAME), max_size=12)


# Aliases and implications


@pytest.mark.parametrize(
    ("pairs", "resolved"),
    [
        ([("a", "b"), ("b", "c"), ("c", "d")], {"a": "d", "b": "d", "c": "d"}),
        ([("a", "a")], {}),
        ([("a", "a"), ("a", "b")], {"a": "b"}),
        ([("b", "c"), ("c", "b")], {"c": "b"}),
        ([("z", "c"), ("c", "b"), ("b", "c")], {"z": "b", "c": "b"}),
        ([("a", "c"), ("a", "b")], {"a": "b"}),
        ([("a", "b"), ("a", "b")], {"a": "b"}),
    ],
)
def test_aliases_resolve(pairs, resolved):
    assert tags.resolve_aliases(pairs) == resolved
    assert tags.resolve_aliases(reversed(pairs)) == resolved


@given(PAIRS)
def test_resolved_aliases_end_where_repeated_steps_end(pairs):
    def end(name: str) -> str:
        orbit = [name]
        for _ in range(20):
            following = [c for a, c in pairs if a == orbit[-1] != c]
            orbit.append(min(following, default=orbit[-1]))
        return min(orbit[-8:])  # a cycle has at most seven members

    assert tags.resolve_aliases(pairs) == {name: end(name) for name in "abcdefg" if end(name) != name}


@given(PAIRS, PAIRS)
def test_closed_implications_equal_reachability(pairs, alias_pairs):
    aliases = tags.resolve_aliases(alias_pairs)
    names = "abcdefg"
    reach = np.zeros((7, 7), dtype=bool)
    for a, c in pairs:
        reach[names.index(aliases.get(a, a)), names.index(aliases.get(c, c))] = True
    for middle in range(7):
        reach |= reach[:, [middle]] & reach[[middle]]
    closed = tags.close_implications(pairs, aliases)
    for i, name in enumerate(names):
        assert closed.get(name, set()) == {names[j] for j in np.flatnonzero(reach[i])} - {name}


def final(raw: list[str], aliases=(), implications=(), blacklist=()) -> list[set[str]]:
    """The final tags of each raw name."""
    rows, names = Policy.of(aliases, implications, blacklist).final(raw)
    assert names == sorted(set(names))
    return [{names[i] for i in rows.tags[rows.offsets[row] : rows.offsets[row + 1]]} for row in range(len(rows))]


def test_names_are_dealiased_then_implied():
    aliases = [("kitty", "kitten"), ("kitten", "cat"), ("beast", "animal")]
    implications = [("kitten", "mammal"), ("mammal", "beast"), ("animal", "mammal")]
    result = final(["kitty", "cat", "sofa", "animal", "12"], aliases, implications)
    assert result == [{"cat", "mammal", "animal"}] * 2 + [{"sofa"}, {"animal", "mammal"}, {"12"}]


def test_blacklisted_tags_are_dropped_before_and_after_aliasing():
    result = final(
        ["old", "raw", "cat", "new"],
        [("old", "bad"), ("raw", "new")],
        [("cat", "hidden"), ("hidden", "animal")],
        ["bad", "raw", "hidden"],
    )
    assert result == [set(), set(), {"cat", "animal"}, {"new"}]


def test_patterns_of_the_blacklist_match_whole_names():
    names = ["bad_pixiv_id", "bad_id", "not_bad_id", "bad_id_card", "a.b", "axb", "?", "who?", "[x]", "x"]
    result = final(names, blacklist=["bad_*id", "a.b", "who*", "[x]"])
    assert [name for name, tags_ in zip(names, result, strict=True) if tags_] == [
        "not_bad_id",
        "bad_id_card",
        "axb",
        "?",
        "x",
    ]


@pytest.mark.parametrize(
    "name", ["", "a b", "a\tb", "a\0b", "a\nb", "x" * 256, "a\u2028b", "\x85", "\x1b[31m", "a\u3000b"]
)
def test_names_that_cannot_be_tags_are_recognized(name):
    assert not tags.is_tag(name)


@pytest.mark.parametrize("name", ["", " ", "a\0b", "x" * 256, "\x1b[31m", "\u200b"])
def test_names_that_cannot_be_tags_are_dropped_and_listed(name):
    assert final([name]) == [set()]
    bad, *_ = tags.odd_names(["cat", name]).values()
    assert bad == ([name] if name.strip("\u200b ") else [])


def test_spellings_of_a_tag_are_one_tag():
    raw = [
        "caf\u00e9",
        "cafe\u0301",
        "Caf\u00e9",
        "\ufeffcaf\u00e9\u200b",
        "blue  hair",
        "blue__hair",
        "blue\u3000hair",
    ]
    assert final(raw) == [{"caf\u00e9"}] * 4 + [{"blue_hair"}] * 3
    assert final(["\u200bBad_ID"], blacklist=["bad id"]) == [set()]


def test_tags_to_keep_are_spelled_as_in_their_release():
    policy = Policy.of([("kitty", "cat")], [("cat", "animal")], [], ["Cat", "cafe\u0301"])
    rows, names = policy.final(["kitty", "caf\u00e9"])
    assert [[names[i] for i in row] for row in lists(rows)] == [["Cat", "animal"], ["cafe\u0301"]]
    assert policy.categories(["character:kitty"], {"caf\u00e9": 3}) == {"Cat": 4, "cafe\u0301": 3}


@pytest.mark.parametrize(
    ("raw", "name", "category"),
    [
        ("character:hatsune miku", "hatsune_miku", 4),
        ("Character: Saber (fate)", "saber_(fate)", 4),
        ("series:fate/stay night", "fate/stay_night", 3),
        ("copyright:re:zero", "re:zero", 3),
        ("creator:someone", "someone", 1),
        ("artist:someone", "someone", 1),
        ("meta:highres", "highres", 5),
        ("general:cat", "cat", 0),
        ("rating:safe", "rating:safe", 5),
    ],
)
def test_a_namespace_gives_a_tag_its_category(raw, name, category):
    assert final([raw]) == [{name}]
    assert Policy.of([], [], []).categories([raw, "cat"], {}) == {name: category}


@pytest.mark.parametrize("name", [":3", ":d", "re:zero", "12:30", "nier:automata", "title:x", "artist:", "character:_"])
def test_other_prefixes_are_part_of_a_tag(name):
    assert final([name]) == [{name}]
    assert Policy.of([], [], []).categories([name], {}) == {}


def test_a_namespace_can_be_blacklisted():
    assert final(["artist:x", "x", "character:y"], blacklist=["artist:*", "y"]) == [set(), {"x"}, set()]


def test_names_that_may_be_sentences_are_listed():
    sentence = "a_photo_of_a_cat_sitting_on_a_mat"
    names = [sentence, "looking_at_viewer", "x" * 61, "the_cat_is_very_big.", "dr._stone", "-dr._stone", "-_-"]
    bad, long, rejected = tags.odd_names(names).values()
    assert (bad, long, rejected) == ([], [sentence, "the_cat_is_very_big.", "x" * 61], ["-dr._stone"])


def test_the_original_builds_policy_is_complete():
    """None of its names is in the published vocabulary, of which some names are listed here."""
    blacklist, deprecated = (
        tags.read_names(ROOT / "configs" / "data" / f"{n}.txt") for n in ("blacklist", "deprecated")
    )
    assert (len(set(blacklist)), len(set(deprecated))) == (53, 155)
    assert {"bad_id", "commentary_request", "absurdres"} <= set(blacklist)
    assert {"^o^", "silver_hair", "elite_ii_(arknights)"} <= set(deprecated)
    published = ["drawing", "painting", "upscaled", "resized", "what", "hot", "red_hair", "1girl", "animated"]
    assert final(published, blacklist=[*blacklist, *deprecated]) == [{name} for name in published]


@pytest.mark.parametrize(
    "name", ['a,b_"c"', "🦊_ears", "👩‍🚀", "ערבית", "\\o/", "<script>", "^_^", ";", "x" * 255, "名前", "'"]
)
def test_strange_names_are_tags(name):
    assert tags.is_tag(name)
    assert final([name]) == [{name}]


ROWS = st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=8)


def lists(rows: Rows) -> list[list[int]]:
    return [rows.tags[rows.offsets[i] : rows.offsets[i + 1]].tolist() for i in range(len(rows))]


@given(ROWS, ROWS.filter(bool), st.data())
def test_rows_behave_like_lists(drawn, more, data):
    rows = Rows.of(drawn)
    assert lists(rows) == drawn
    assert lists(rows.sets()) == [sorted(set(numbers)) for numbers in drawn]
    order = data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=9)) if drawn else []
    assert lists(rows.take(np.array(order, np.int64))) == [drawn[i] for i in order]
    assert lists(Rows.joined([rows, Rows.of(more)])) == drawn + more
    assert rows.uses(7).tolist() == [sum(numbers.count(i) for numbers in drawn) for i in range(7)]
    mapping = (more * 7)[:7]
    assert lists(rows.mapped(Rows.of(mapping))) == [[n for i in numbers for n in mapping[i]] for numbers in drawn]


def test_lists_of_names_are_read_with_comments(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# about\nhighres   # size\r\n\nbad_*_id\n#tag\nc#\n")
    assert tags.read_names(path) == ["highres", "bad_*_id", "c#"]
    with pytest.raises(ValueError, match=r"gone\.txt: cannot be read"):
        tags.read_names(tmp_path / "gone.txt")


def test_irregular_relations_are_counted():
    aliases = [
        ("a", "b"),
        ("b", "c"),
        ("x", "y"),
        ("y", "x"),
        ("z", "x"),
        ("s", "s"),
        ("k", "l"),
        ("k", "m"),
        ("a", "b"),
    ]
    implications = [("p", "q"), ("q", "p"), ("p", "q"), ("c", "unknown")]
    assert tags.survey(aliases, implications, set("abcxyzsklmpq")) == {
        "aliases": 9,
        "aliases_repeated": 1,
        "aliases_of_themselves": 1,
        "aliases_conflicting": 1,
        "aliases_in_chains": 1,
        "aliases_into_cycles": 3,
        "implications": 4,
        "implications_repeated": 1,
        "implications_into_cycles": 2,
        "tags_without_a_category": 1,
    }

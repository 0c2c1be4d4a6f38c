"""The embedded corpora have the tags of OpenMoji's table."""

import re
from pathlib import Path

import pytest

from data_prep.tools import emoji_variants, openmoji


@pytest.fixture(scope="module")
def emoji() -> dict[str, openmoji.Row]:
    return {row["hexcode"]: row for row in openmoji.read_table()}


def human_tags(row: openmoji.Row, emoji: dict[str, openmoji.Row]) -> set[str]:
    return openmoji.human_tags(row, emoji.get(row["skintone_base_hexcode"], row))


def test_the_openmoji_table_is_complete(emoji):
    assert len(emoji) == len(openmoji.read_table()) == 4495


def test_human_tags_of_known_emoji(emoji):
    assert {"grinning", "face", "happy", "teeth", "face-smiling"} <= human_tags(emoji["1F600"], emoji)
    wave = human_tags(emoji["1F44B-1F3FD"], emoji)
    assert {"waving", "hand", "hello", "medium_skin_tone", "hand-fingers-open"} <= wave
    assert not {"with", "light", "skin", "tone", "medium"} & wave


def test_a_skin_tone_variant_inherits_its_bases_tags_and_adds_its_tones(emoji):
    variants = [row for row in emoji.values() if row["skintone"]]
    assert len(variants) == 2030
    for row in variants:
        base = human_tags(emoji[row["skintone_base_hexcode"]], emoji)
        tones = {f"{openmoji.SKIN_TONES[int(tone) - 1]}_skin_tone" for tone in row["skintone"].split(",")}
        assert base | tones <= human_tags(row, emoji)
        assert not any(tag.endswith("_skin_tone") for tag in base)


def test_a_subgroup_implies_its_only_group(emoji):
    implied = openmoji.subgroup_implications(list(emoji.values()))
    groups: dict[str, set[str]] = {}
    for row in emoji.values():
        groups.setdefault(row["subgroups"], set()).add(row["group"])
    names = {row["group"] for row in emoji.values()}
    for subgroup, members in groups.items():
        if len(members) == 1 and subgroup not in names:
            assert {implied[subgroup]} == members
        else:
            assert subgroup not in implied
    assert implied["animal-bird"] == "animals-nature"
    assert len(implied) == 110


def test_openmoji_tags_can_be_joined_by_spaces_and_commas(emoji):
    names = {tag for row in emoji.values() for tag in human_tags(row, emoji)}
    assert not [name for name in names if not name or any(c.isspace() or c == "," for c in name)]
    assert names >= set(openmoji.ALIASES)


@pytest.mark.parametrize("name", ["1f44b-1f3fb.svg", "1F44B-1F3FB", "00a9-fe0f", "2764-FE0F-200D-1F525"])
def test_both_projects_spell_a_code_point_the_same_way(name):
    assert openmoji.code_point(Path(name).stem) in ("1F44B-1F3FB", "A9", "2764-200D-1F525")


def neutral_name(row: openmoji.Row) -> str:
    """What an annotation says besides skin tone, hair and gender, as a plain reading of its words."""
    name = re.sub(r": .*|, facing right", "", row["annotation"])
    name = re.sub(r"\b(wo)?m[ae]n\b|\bpeople\b|\bperson\b", "", name)
    return " ".join(re.sub(r"\b(boy|girl)\b", "child", name).split())


def test_variants_in_skin_tone_hair_and_gender_are_a_family(emoji):
    by_name: dict[str, set[str]] = {}
    for row in emoji.values():
        assert openmoji.family(row) == openmoji.family(emoji.get(row["skintone_base_hexcode"], row))
        if row["group"] == "people-body":
            by_name.setdefault(neutral_name(row), set()).add(openmoji.family(row))
    assert len(by_name) > 150
    assert {name: found for name, found in by_name.items() if len(found) > 1} == {}


def test_different_emoji_are_different_families(emoji):
    names: dict[str, set[str]] = {}
    for row in emoji.values():
        names.setdefault(openmoji.family(row), set()).add(neutral_name(row))
    assert [sorted(found) for found in names.values() if len(found) > 1] == [
        ["old", "older"],
        ["prince", "princess", "with crown"],
        ["Mrs. Claus", "Mx Claus", "Santa Claus"],
        ["mermaid", "merman", "merperson"],
        ["and holding hands", "holding hands"],
        ["female doctor", "male doctor"],
        ["female nurse", "male nurse"],
    ]


@pytest.mark.parametrize("hexcode", ["1F3FB", "1F9B0", "200D", "2640", "27A1"])
def test_a_modifier_alone_is_a_family_of_its_own(hexcode):
    assert emoji_variants.family(hexcode) == hexcode

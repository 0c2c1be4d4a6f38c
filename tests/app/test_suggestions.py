"""What one image's tags need, and what follows from a decision."""

import numpy as np
import pytest

from joytag.app.decisions import Answer, Decision
from joytag.app.suggestions import NEAR, Rules, suggest
from joytag.core.settings import SettingsError, validate

RULES = Rules(
    implies={"Cat Ears": ["animal ears"], "animal_ears": ["animal"], "kitten": ["cat_ears", "animal"]},
    exclusive={"tone": ["light", "Dark", "medium"], "kind": ["cat_ears", "dog_ears"]},
)
NAMES = ["cat_ears", "animal_ears", "light", "dark", "near", "far", "sure", "dog_ears"]


def decision(tag: str, answer: Answer) -> Decision:
    return Decision(sha256="0" * 64, tag=tag, decision=answer)


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def test_what_a_tag_implies_is_found_through_others():
    assert RULES.implied_by("kitten") == ["cat_ears", "animal", "animal_ears"]
    assert RULES.implied_by("animal") == []
    assert Rules(implies={"a": ["b"], "b": ["a"]}).implied_by("a") == ["b"]


def test_what_follows_from_a_yes():
    assert dict(RULES.consequences("dark")) == {"light": "no", "medium": "no"}
    expected = {"cat_ears": "yes", "animal_ears": "yes", "animal": "yes", "dog_ears": "no"}
    assert dict(RULES.consequences("kitten")) == expected
    assert dict(RULES.consequences("other")) == {}


def test_tags_are_sorted_by_what_they_need():
    thresholds = np.full(8, 0.5, dtype=np.float32)
    scores = np.array([0.99, 0.6, 0.3, 0.001, 0.55, 0.01, 0.999, 0.01])
    found = suggest(NAMES, scores, thresholds, {}, RULES)
    assert [row.tag for row in found.near] == ["near", "light"]  # the sure cat_ears imply the animal_ears
    assert [row.tag for row in found.sure] == ["sure", "cat_ears"]
    assert found.implied == {"animal_ears": ["cat_ears"], "animal": ["cat_ears"]}
    assert list(found.groups) == ["tone", "kind"]
    assert [row.tag for row in found.groups["kind"]] == [
        "cat_ears",
        "dog_ears",
    ]
    assert found.groups["tone"][2].score is None  # the model has no "medium"


def test_decided_tags_are_not_asked_again():
    thresholds = np.full(8, 0.5, dtype=np.float32)
    scores = np.array([0.99, 0.6, 0.3, 0.4, 0.55, 0.01, 0.999, 0.01])
    decided = {name: decision(name, "no") for name in ("cat_ears", "near", "new word")}
    found = suggest(NAMES, scores, thresholds, decided, RULES)
    assert [row.tag for row in found.near] == ["animal_ears", "dark", "light"]
    assert not found.implied
    assert [row.tag for row in found.sure] == ["sure"]
    assert [(row.tag, row.answer, row.score is None) for row in found.decided] == [
        ("cat_ears", "no", False),
        ("near", "no", False),
        ("new word", "no", True),
    ]
    has = suggest(NAMES, scores * 0.001, thresholds, {"cat_ears": decision("cat_ears", "yes")}, RULES)
    assert has.implied == {"animal_ears": ["cat_ears"], "animal": ["cat_ears"]}
    assert list(has.groups) == ["kind"]


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.9])
def test_near_is_a_distance_to_the_tags_own_threshold(threshold):
    thresholds = np.full(8, threshold, dtype=np.float32)
    margins = np.array([-NEAR - 0.1, -NEAR + 0.2, 0.5, NEAR - 0.1, NEAR + 0.1, -9, -9, -9])
    scores = 1 / (1 + np.exp(-(logit(threshold) + margins)))
    found = suggest(list("abcdefgh"), scores, thresholds, {}, Rules())
    assert [row.tag for row in found.near] == ["c", "b", "d"]
    assert [row.tag for row in found.sure] == ["e"]


def test_wrong_rules_are_named():
    with pytest.raises(SettingsError, match=r"rules\.yaml: exclusive\.tone: input should be a valid list"):
        validate(Rules, {"exclusive": {"tone": "light"}}, "rules.yaml")

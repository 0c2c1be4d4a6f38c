"""The validation images represent every tag and source, and never look like a training image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from data_prep import split
from data_prep.build import hold_out
from data_prep.config import BuildSettings, Validation
from data_prep.split import Needs, choose_validation, shuffled
from data_prep.tags import Rows
from data_prep.vocabulary import Labelled
from joytag.core.settings import load


def needs(wanted: int, least, groups, per_source=(0,), kept=None) -> Needs:
    least = np.array(least)
    return Needs(wanted, len(groups), least, np.array(per_source), np.zeros(len(least), bool) if kept is None else kept)


def choose(groups, labels, wanted, least, seed=0, sources=None, per_source=(0,)) -> np.ndarray:
    sources = np.zeros(len(groups), np.int16) if sources is None else np.array(sources, np.int16)
    order = shuffled(np.array(groups), seed)
    return choose_validation(order, Rows.of(labels), sources, needs(wanted, least, groups, per_source))


def labelled_images(labels: list[list[int]]) -> Labelled:
    names = [f"tag{number}" for number in range(1 + max((tag for tags in labels for tag in tags), default=0))]
    rows = np.array([row for row, tags in enumerate(labels) if tags], np.int64)
    unlabelled = np.array([row for row, tags in enumerate(labels) if not tags], np.int64)
    return Labelled(rows, Rows.of([labels[row] for row in rows]), names, unlabelled, {}, {})


FOLDERS = st.lists(
    st.tuples(st.integers(0, 40), st.sets(st.integers(0, 7), max_size=4)), min_size=2, max_size=60
)  # the group and the tags of each image


@given(
    FOLDERS,
    st.one_of(st.sampled_from([0.05, 0.1, 0.2, 0.4]), st.integers(1, 12)),
    st.integers(0, 5),
    st.sets(st.integers(0, 7)),
    st.integers(0, 9),
)
@settings(max_examples=300)
def test_each_tag_has_its_minima_on_both_sides_or_is_dropped_and_named(images, wanted, least, kept, seed):
    """A recount in plain Python of what docs/datasets.md states."""
    wish = Validation(images=wanted, min_per_tag=least, seed=seed)
    config = BuildSettings.model_validate(
        {
            "output": "out",
            "sources": [{"name": "a", "kind": "sidecar", "path": "a"}],
            "tags": {"min_count": 1},
            "validation": wish,
        }
    )
    group = np.array([number for number, _ in images])
    before = labelled_images([sorted(tags) for _, tags in images])
    keep = {f"tag{number}" for number in kept}
    after, mask = hold_out(before, np.zeros(len(images), np.int16), group, keep, config)

    names: dict[int, set[str]] = {}
    for index, row in enumerate(after.rows.tolist()):
        numbers = after.tags.tags[after.tags.offsets[index] : after.tags.offsets[index + 1]]
        names[row] = {after.vocabulary[number] for number in numbers}
        assert names[row] == {f"tag{number}" for number in images[row][1]} - set(after.one_sided)
        assert names[row]
    assert {*after.rows.tolist(), *after.unlabelled.tolist()} == set(range(len(images)))
    assert not keep & set(after.one_sided)
    assert set(after.vocabulary) | set(after.one_sided) == set(before.vocabulary)
    held = dict(zip(after.rows.tolist(), mask.tolist(), strict=True))
    assert not {group[row] for row in held if held[row]} & {group[row] for row in held if not held[row]}
    asked = wanted if isinstance(wanted, int) else max(1, round(wanted * len(held)))
    n_groups = len({group[row] for row in held if held[row]})
    assert sum(held.values()) <= max(asked, len(held) // 5) or n_groups == 1
    if not mask.any():
        return  # the build is refused
    for name in set(after.vocabulary) - keep:
        uses = [held[row] for row in names if name in names[row]]
        share = 0.2 if isinstance(wanted, int) else min(0.2, wanted)
        assert not uses or sum(uses) >= min(least, max(1, int(share * len(uses))))
        assert not uses or uses.count(False) >= (1 - asked / len(held)) / 2 * len(uses)


@pytest.mark.parametrize("n_images", [10, 30, 60, 300, 5000])
def test_a_tenth_of_a_folder_is_held_out_with_its_look_alikes(n_images):
    """Two to five images of each scene, one common tag, and a tag for each twentieth of the images, at least five."""
    rng = np.random.default_rng(n_images)
    group = np.repeat(np.arange(n_images), rng.integers(2, 6, n_images))[:n_images]
    labels = [[0, 1 + int(number)] for number in rng.permutation(n_images) // max(5, n_images // 20)]
    config = load(BuildSettings, ROOT / "configs/data/folder.yaml")
    after, mask = hold_out(labelled_images(labels), np.zeros(n_images, np.int16), group, set(), config)
    assert len(mask) == n_images
    assert 0.08 * n_images <= mask.sum() <= max(0.2 * n_images, np.bincount(group)[group].min())
    assert not set(group[mask]) & set(group[~mask])
    if n_images >= 300:
        assert mask.sum() <= 0.12 * n_images
        assert not after.one_sided


@pytest.mark.parametrize("seed", range(5))
def test_look_alikes_of_one_tag_leave_room_for_another(seed):
    """Ten images, of which two may be held out: not both look-alikes, or the second tag would be dropped."""
    taken = choose([0, 0, 2, 3, 4, 5, 6, 7, 8, 9], [[0]] * 5 + [[1]] * 5, 1, [1, 1], seed)
    assert (taken[:5].sum(), taken[5:].sum()) == (1, 1)


def test_a_small_default_holds_out_the_share_that_is_asked_for():
    """The default minima, 5 a tag and 100 a source, once held out 29 % of a small folder."""
    labels = [[0, 1 + number % 12] for number in range(60)]
    config = BuildSettings.model_validate(
        {
            "output": "out",
            "sources": [{"name": "a", "kind": "sidecar", "path": "a"}],
            "tags": {"min_count": 5},
            "validation": {"images": 0.1},
        }
    )
    after, mask = hold_out(labelled_images(labels), np.zeros(60, np.int16), np.arange(60), set(), config)
    assert not after.one_sided
    assert mask.sum() == 12


def test_a_tag_whose_images_all_look_alike_is_dropped_and_its_images_with_it():
    labels = [[0]] * 40 + [[1]] * 8 + [[0, 1]] * 2
    group = np.array([*range(40), *[99] * 10])
    config = load(BuildSettings, ROOT / "configs/data/folder.yaml")
    after, mask = hold_out(labelled_images(labels), np.zeros(50, np.int16), group, set(), config)
    assert after.one_sided == {"tag1": 10}
    assert after.unlabelled.tolist() == list(range(40, 48))
    assert (len(mask), mask.sum()) == (42, 4)


def test_validation_does_not_take_the_last_image_of_a_kept_tag():
    """Tags 1 to 20 are a release's, with one image each; the other images suffice for validation."""
    labels = [[0, number] for number in range(1, 21)] + [[0]] * 20
    config = load(BuildSettings, ROOT / "configs/data/folder.yaml")
    for seed in range(10):
        seeded = config.model_copy(update={"validation": config.validation.model_copy(update={"seed": seed})})
        keep = {f"tag{number}" for number in range(21)}
        _, mask = hold_out(labelled_images(labels), np.zeros(40, np.int16), np.arange(40), keep, seeded)
        assert not mask[:20].any()
        assert mask.sum() == 4
        everything = [[*tags, 21 + row] for row, tags in enumerate(labels)]
        keep |= {f"tag{21 + row}" for row in range(40)}
        _, mask = hold_out(labelled_images(everything), np.zeros(40, np.int16), np.arange(40), keep, seeded)
        assert mask.sum() == 4


def test_another_seed_chooses_other_images():
    groups, labels = np.arange(200), [np.array([0])] * 200
    first, second = (choose(groups, labels, 20, np.array([5]), seed) for seed in (0, 1))
    assert first.sum() == second.sum() == 20
    assert (first != second).any()
    assert first[:100].any()
    assert first[100:].any()


@pytest.mark.parametrize("least", [0, 1, 5])
def test_a_single_group_stays_in_training(least):
    assert not choose([7] * 5, [[0]] * 5, 1, np.array([least])).any()


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
    labels = [[0, 1] if number % 40 == 0 else [0] for number in range(400)]
    mask = choose(range(400), labels, 20, np.array([5, 5]))
    assert mask.sum() == 20
    assert sum(mask[number] for number in range(0, 400, 40)) >= 5


def test_a_source_that_validation_has_too_few_images_of_is_named(capsys):
    """The second source is one group of look-alikes, which stays in training."""
    sources = [{"name": name, "kind": "sidecar", "path": name} for name in "ab"]
    values = {"output": "out", "sources": sources, "tags": {"min_count": 5}, "validation": {"images": 20}}
    group, source = np.array([*range(200), *[999] * 30]), np.repeat([0, 1], [200, 30]).astype(np.int16)
    _, mask = hold_out(labelled_images([[0]] * 230), source, group, set(), BuildSettings.model_validate(values))
    assert mask[:200].sum() == 20
    assert not mask[200:].any()
    assert "validation holds 0 images of b, not 3" in capsys.readouterr().out

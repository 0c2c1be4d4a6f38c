"""Rejected tags: how sources name them, what they outweigh, and what a build makes of them."""

import json
import os
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mirror import encode, md5, random_image, relation, write_mirror

from data_prep import inputs
from data_prep.build import build
from data_prep.config import BuildSettings, Source
from data_prep.negatives import Negatives
from data_prep.sources import posts, sidecar
from data_prep.tags import Chunk, Policy, Rows
from joytag.data.dataset import SPLITS, Dataset, read_description
from joytag.data.tag_names import canonical, is_kaomoji


def read(path: Path, kind: str, **settings: object) -> dict[str, tuple[list[str], list[str]] | str]:
    """The tags and the rejected tags of each image, or why it is refused."""
    source = Source.model_validate({"name": "x", "kind": kind, "path": str(path)} | settings)
    rows = [row for part in inputs.parts(source) for row in inputs.read(part).to_pylist()]
    return {row["path"]: row["reason"] or (row["tags"], row["negatives"]) for row in rows}


def write_folder(folder: Path, texts: dict[str, str]) -> Path:
    """Write images with sidecars, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.png").write_bytes(encode(random_image(int(name))))
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("-cat", "cat"),
        ("-1girl", "1girl"),
        ("-long_hair", "long_hair"),
        ("-^_^", "^_^"),
        ("-:d", ":d"),
        ("--_-", "-_-"),
        ("-character:miku", "character:miku"),
        ("cat", None),
        ("-_-", None),
        ("-o-", None),
        ("-", None),
        ("-_cat", None),
    ],
)
def test_a_hyphen_before_a_tag_rejects_it_but_faces_are_tags(name, tag):
    assert posts.rejected(name) == tag


@given(st.text("-_^.:ab ", min_size=1, max_size=6).map(canonical))
def test_every_tag_can_be_rejected_unless_it_would_look_like_a_face_or_an_item_of_a_list(tag):
    is_ambiguous = tag == "" or tag.startswith("_") or (tag.endswith("-") and is_kaomoji(f"-{tag}"))
    assert posts.rejected(f"-{tag}") == (None if is_ambiguous and not tag.startswith("-") else tag)


def test_sidecars_reject_tags_only_if_the_source_says_so(tmp_path):
    texts = {"1": "cat, -Big Dog, -_-, - sofa", "2": "cat, dog", "3": "-cat", "4": "(-dog:1.2), sofa"}
    folder = write_folder(tmp_path / "images", texts)
    assert read(folder, "sidecar") == {
        "1.png": (["cat", "-big_dog", "-_-", "-_sofa"], []),
        "2.png": (["cat", "dog"], []),
        "3.png": (["-cat"], []),
        "4.png": (["-dog", "sofa"], []),
    }
    assert read(folder, "sidecar", negatives=True) == {
        "1.png": (["cat", "-_-", "-_sofa"], ["big_dog"]),
        "2.png": (["cat", "dog"], []),
        "3.png": ([], ["cat"]),
        "4.png": (["sofa"], ["dog"]),
    }


def test_lines_of_json_reject_tags_by_a_list_and_by_hyphens_in_their_text(tmp_path):
    lines = [
        {"path": "a.png", "tags": ["cat", "-dog"], "negatives": ["Big Dog", "big_dog", "sofa"]},
        {"path": "b.png", "text": "cat, -dog", "negatives": ["sofa"]},
        {"path": "c.png", "negatives": ["cat"]},
        {"path": "d.png", "tags": ["cat"], "negatives": None},
        {"path": "e.png", "tags": ["cat"], "negatives": [1]},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {
        "a.png": (["cat", "-dog"], ["big_dog", "sofa"]),
        "b.png": (["cat", "-dog"], ["sofa"]),
        "c.png": ([], ["cat"]),
        "d.png": (["cat"], []),
        None: "bad row",
    }
    assert read(path, "jsonl") == expected
    assert read(path, "jsonl", negatives=True) == expected | {"b.png": (["cat"], ["dog", "sofa"])}
    with pytest.raises(ValueError, match="family: the column negatives has another meaning"):
        read(path, "jsonl", family="negatives")


@pytest.mark.parametrize("column", ["tags", "negatives"])
def test_a_damaged_column_of_a_dataset_is_a_bad_row(tmp_path, column):
    (tmp_path / "top_tags.txt").write_text("cat\ndog")
    rows = {"post_id": [7, 8], "tags": [[0], [0]], "hash": [bytes(32)] * 2, "negatives": [[1], [1]]}
    rows[column] = [[1], [2]]
    for split in SPLITS:
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    source = Source(name="x", kind="parquet", path=str(tmp_path))
    tables = [inputs.read(part).to_pylist() for part in inputs.parts(source)]
    assert [[row["detail"] for row in table] for table in tables] == [[None, f"{column}: not all from 0 to 1"]] * 2
    assert tables[0][0]["negatives"] == ["dog"]


NAMES = st.sampled_from("abcdef")
PAIRS = st.lists(st.tuples(NAMES, NAMES), max_size=6)


@given(PAIRS, PAIRS, st.sets(NAMES, max_size=2))
def test_a_tag_is_rejected_with_all_that_imply_it(aliases, implications, blacklist):
    """Another tag is rejected if and only if its image would have the rejected one."""
    policy, names = Policy.of(aliases, implications, sorted(blacklist)), list("abcdef")
    mapping, final_names = policy.final(names)
    final = [[final_names[i] for i in mapping.tags[slice(*mapping.offsets[r : r + 2])]] for r in range(len(names))]
    rejected = policy.rejected(names)
    for (r, its), (s, others) in product(enumerate(final), enumerate(final)):
        if its and others:
            assert (others[0] in rejected[r]) == (its[0] in others), (names[r], names[s])
        else:
            assert rejected[r] == [] or its


def test_the_spelling_of_a_release_is_kept():
    policy = Policy.of([], [("kitten", "big_cat"), ("cub", "big_cat")], [], ["Kitten", "Big Cat"])
    assert sorted(policy.rejected(["big_cat"])[0]) == ["Big Cat", "Kitten", "cub"]


@given(st.data())
def test_rejections_behave_like_sets(data):
    """Of copies, by row, and as numbers of other names; compared with dicts of sets."""
    n_images, names = 12, ["a", "b", "c", "d"]
    keeper = np.array([data.draw(st.integers(-1, row)) for row in range(n_images)])
    keeper = np.where(keeper < 0, -1, keeper[keeper])
    raw = data.draw(st.dictionaries(st.integers(0, n_images - 1), st.lists(st.integers(0, 3), min_size=1)))
    pieces = [dict(list(raw.items())[start : start + 3]) for start in range(0, len(raw), 3)]
    chunks = [Chunk(np.array(list(piece)), Rows.of(list(piece.values()))) for piece in pieces]
    negatives = Negatives.of(chunks, names, keeper, Policy.of([], [("a", "b")], []))
    expected: dict[int, set[str]] = {}
    for row, numbers in raw.items():
        if keeper[row] >= 0:
            found = {names[number] for number in numbers}
            expected.setdefault(int(keeper[row]), set()).update(found | ({"a"} if "b" in found else set()))
    some = ["d", "b", "x", "a"]
    chosen = np.array([data.draw(st.booleans()) for _ in range(n_images)])
    for result, its in (
        (negatives, expected),
        (negatives.among(some), {row: tags & set(some) for row, tags in expected.items() if tags & set(some)}),
        (negatives.of_images(chosen), {row: tags for row, tags in expected.items() if chosen[row]}),
    ):
        assert result.rows.tolist() == sorted(its)
        lists = result.of_rows(np.arange(n_images))
        assert len(lists) == n_images
        for row in range(n_images):
            tags = lists.tags[lists.offsets[row] : lists.offsets[row + 1]]
            assert {result.names[i] for i in tags} == its.get(row, set())
            assert tags.tolist() == sorted(set(tags.tolist()))
    given_tags = [data.draw(st.lists(st.integers(0, 3))) for _ in range(n_images)]
    final = np.array([2, -1, 0, 1])  # of raw tags, as numbers of names that need not be the ones above
    chunk = Chunk(np.arange(n_images), Rows.of(given_tags))
    flags = negatives.among(["c", "d", "a"]).contradict(chunk, final).tolist()
    meant = {0: "a", 1: None, 2: "c", 3: "d"}
    assert flags == [meant[tag] in expected.get(row, set()) for row, tags in enumerate(given_tags) for tag in tags]


ALIASES = {"feline": "cat"}
IMPLICATIONS = {"kitten": {"cat", "animal"}, "cat": {"animal"}, "dog": {"animal"}}
WORDS = ["feline", "cat", "kitten", "dog", "animal", "house", "red"]


def recount(groups: list[list[tuple[list[str], list[str]]]]) -> tuple[list[tuple[set[str], set[str]]], Counter[str]]:
    """The tags and the rejected tags of each image, of which `groups` lists the copies, and the refused tags."""
    images, refused = [], Counter[str]()
    for copies in groups:
        given_tags, no = ({ALIASES.get(t, t) for copy in copies for t in copy[i]} for i in (0, 1))
        rejected = no | {name for name, implied in IMPLICATIONS.items() if implied & no}
        refused.update(given_tags & rejected)
        kept = given_tags - rejected
        images.append((kept | {other for name in kept for other in IMPLICATIONS.get(name, ())}, rejected))
    return images, refused


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> tuple[BuildSettings, dict[str, list[tuple[list[str], list[str]]]]]:
    """A config of a mirror, a folder that rejects tags and corrections of both, and the copies of each image."""
    root, rng = tmp_path_factory.mktemp("mixture"), np.random.default_rng(0)
    groups: dict[str, list[tuple[list[str], list[str]]]] = {}

    def draw(most: int) -> list[str]:
        return [str(name) for name in rng.choice(WORDS, rng.integers(0, most + 1), replace=False)]

    mirror, lines = [], []
    for number in range(60):
        data = encode(random_image(number))
        tags, negatives = draw(4), draw(2)
        groups[str(number)] = [(tags, [])]
        if number < 20:
            path = root / "mirror" / "original" / f"{number % 1000:04d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            mirror.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": " ".join(tags)})
        elif number < 50:
            write_folder(root / "folder", {str(number): ", ".join([*tags, *(f"-{name}" for name in negatives)])})
            groups[str(number)] = [(tags, negatives)]
        if number % 3 == 0 or number >= 50:  # the same file again, or a new one
            tags, negatives = draw(2), draw(2)
            (root / "corrections").mkdir(exist_ok=True)
            (root / "corrections" / f"{number}.png").write_bytes(data)
            lines.append(json.dumps({"path": f"{number}.png", "tags": tags, "negatives": negatives}))
            groups[str(number)] = [*groups[str(number)] * (number < 50), (tags, negatives)]
    (root / "corrections" / "list.jsonl").write_text("\n".join(lines))
    write_mirror(
        root / "mirror",
        posts=mirror,
        tag_aliases=[relation(*pair) for pair in ALIASES.items()],
        tag_implications=[relation("kitten", "cat"), relation("cat", "animal"), relation("dog", "animal")],
    )
    corrections = str(root / "corrections" / "list.jsonl")
    values = {
        "output": str(root / "out"),
        "sources": [
            {"name": "mirror", "kind": "danbooru2021", "path": str(root / "mirror")},
            {"name": "folder", "kind": "sidecar", "path": str(root / "folder"), "negatives": True},
            {"name": "corrections", "kind": "jsonl", "path": corrections, "exhaustive": False},
        ],
        "longest_side": 64,
        "tags": {"min_count": 2, "min_tags": 1},
        "validation": {"images": 10, "min_per_tag": 1},
    }
    config = BuildSettings.model_validate(values)
    build(config)
    return config, groups


def contents(output: Path) -> dict[str, tuple[set[str], set[str]]]:
    """The tags and the rejected tags of each image of a dataset, by the stem of the original file."""
    names = Dataset.open(output).tags.names
    rows = [row for split in SPLITS for row in pq.read_table(output / f"{split}.parquet").to_pylist()]
    for row in rows:
        assert row["tags"] == sorted(set(row["tags"]))
        assert row["negatives"] == sorted(set(row["negatives"]))
    return {
        Path(row["path"]).stem: ({names[i] for i in row["tags"]}, {names[i] for i in row["negatives"]}) for row in rows
    }


def test_a_build_keeps_rejected_tags_and_they_outweigh_given_ones(mixture):
    config, groups = mixture
    images, refused = recount(list(groups.values()))
    vocabulary = set(Dataset.open(Path(config.output)).tags.names)
    assert vocabulary == {ALIASES.get(word, word) for word in WORDS}
    expected = {
        stem: (tags & vocabulary, negatives & vocabulary)
        for stem, (tags, negatives) in zip(groups, images, strict=True)
        if tags or (negatives and int(stem) >= 50)
    }
    assert contents(Path(config.output)) == expected
    assert any(not tags for tags, _ in expected.values()), "of a source that is not exhaustive, rejections are enough"
    description = read_description(Path(config.output))
    assert description["refused"] == dict(sorted(refused.items(), key=lambda item: (-item[1], item[0])))
    assert sum(refused.values()) > 10
    assert description["exhaustive"] == Dataset.open(Path(config.output)).exhaustive == [True, True, False]


def test_refused_tags_are_counted_and_named(tmp_path, capsys):
    folder = write_folder(tmp_path / "images", {"1": "cat, -cat", "2": "cat, dog, -dog", "3": "dog, cat", "4": "-dog"})
    values = {
        "output": str(tmp_path / "out"),
        "sources": [{"name": "a", "kind": "sidecar", "path": str(folder), "negatives": True}],
        "tags": {"min_count": 1, "min_tags": 1},
        "validation": {"images": 1, "min_per_tag": 0},
    }
    build(BuildSettings.model_validate(values))
    assert "2 labels: both given and rejected, which counts: cat (1), dog (1)\n" in capsys.readouterr().out
    assert contents(tmp_path / "out") == {"2": ({"cat"}, {"dog"}), "3": ({"cat", "dog"}, set())}


def test_the_number_of_workers_and_of_parts_changes_nothing(mixture, tmp_path, monkeypatch):
    config, _ = mixture
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(sidecar, "PART", 4)
    other = build(config.model_copy(update={"output": str(tmp_path / "out")}))
    for name in ("train.parquet", "validation.parquet", "tags.parquet", "rejected.parquet", "top_tags.txt"):
        assert (other / name).read_bytes() == (Path(config.output) / name).read_bytes(), name


def test_a_dataset_with_rejected_tags_can_be_a_source(mixture, tmp_path):
    config, _ = mixture
    values = config.model_dump() | {
        "output": str(tmp_path / "again"),
        "sources": [{"name": "again", "kind": "parquet", "path": config.output, "exhaustive": False}],
        "tags": {"min_count": 1, "min_tags": 1},
    }
    again = build(BuildSettings.model_validate(values))
    hashes = {row["hash"]: Path(row["path"]).stem for s in SPLITS for row in read_rows(Path(config.output), s)}
    names = {sha256.hex(): stem for sha256, stem in hashes.items()}
    assert {names[name]: tags for name, tags in contents(again).items()} == contents(Path(config.output))


def read_rows(output: Path, split: str) -> list[dict]:
    return pq.read_table(output / f"{split}.parquet").to_pylist()


def test_sources_without_the_new_settings_are_recorded_as_before(tmp_path):
    """So datasets that older versions built are up to date."""
    source = Source(name="a", kind="sidecar", path="x", negatives=False, exhaustive=True)
    keys = ["name", "kind", "path", "images", "separator", "transparent", "family", "min_tags"]
    assert list(source.model_dump()) == keys
    changed = source.model_copy(update={"negatives": True, "exhaustive": False})
    assert changed.model_dump() == source.model_dump() | {"negatives": True, "exhaustive": False}

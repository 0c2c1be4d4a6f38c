"""Families are the connected components of what ties posts; the share of relatives is that of a random draw."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror import encode, md5, random_image, write_mirror

from data_prep import families
from data_prep.build import build
from data_prep.config import BuildSettings
from data_prep.sources import posts
from data_prep.split import giants
from joytag.data.dataset import SPLITS

NUMBERS = st.one_of(st.none(), st.integers(1, 12))
ROWS = st.lists(st.tuples(st.integers(0, 1), NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=30)


def partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, other in enumerate(labels) if other == label) for label in labels}


@given(ROWS, st.sets(st.tuples(st.integers(0, 1), st.integers(1, 12))), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_families_equal_a_search_over_sets(rows, listed, rng: random.Random):
    """Posts may be listed or not, and lack their id; parents are of the same source, works of any."""
    source_of, post_of = (np.array([pair[i] for pair in sorted(listed)], np.int64) for i in (0, 1))
    alike = np.array([rng.randrange(8) for _ in listed], np.int64)
    keeper = np.array([rng.choice([-1, row, rng.randrange(len(listed))]) for row in range(len(listed))], np.int64)
    tied = [
        np.array([[-1 if n is None else n for n in row[1:]] for row in rows if row[0] == source], np.int64)
        .reshape(-1, 4)
        .T
        for source in (0, 1)
    ]
    ties: list[set[object]] = []
    for source, post, parent, work, name in rows:
        nodes = [("post", source, post), ("post", source, parent), ("work", work), ("name", source, name)]
        ties.append({node for node in nodes if node[-1] is not None})
    for row, (its_source, post_id) in enumerate(zip(source_of.tolist(), post_of.tolist(), strict=True)):
        ties.append({("post", its_source, post_id), ("image", row), ("alike", int(alike[row]))})
        ties.append({("image", row), ("image", int(keeper[row]) if keeper[row] >= 0 else row)})
    merged: list[set[object]] = []
    for tie in ties:
        touching = [nodes for nodes in merged if nodes & tie]
        merged = [nodes for nodes in merged if nodes not in touching] + [tie.union(*touching)]
    expected = [next(i for i, nodes in enumerate(merged) if ("image", row) in nodes) for row in range(len(listed))]
    found = families.join(source_of, post_of, alike, keeper, tied)
    assert partition(found.tolist()) == partition(expected)
    least = {number: min(alike[found == number]) for number in set(found.tolist())}
    assert sorted(least, key=lambda number: least[number]) == sorted(least), "families have the order of look-alikes"


def test_only_ties_that_count_are_read(tmp_path):
    rows = [
        posts.Post(1, "a", tags="x", parent_id=2, pixiv_id=3, family=4),
        posts.Post(5, "b", tags="x", family=6),
        posts.Post(7, "c", tags="x"),
        posts.Post(None, reason="bad row", pixiv_id=8),
    ]
    pq.write_table(posts.table(rows), tmp_path / "0.parquet")
    files = [tmp_path / "0.parquet"] * 2
    assert families.read(files, families.TIES).T.tolist() == [[1, 2, 3, 4], [5, -1, -1, 6], [-1, -1, 8, -1]] * 2
    assert families.read(files, ["pixiv_id", "look_alikes"]).T.tolist() == [[1, -1, 3, -1], [-1, -1, 8, -1]] * 2
    assert families.read([], families.TIES).shape == (4, 0)


@pytest.mark.parametrize(("sizes", "images"), [([1, 2, 3], 2), ([2, 2, 4], 3), ([5, 1], 5), ([1, 1, 1], 1), ([3], 3)])
def test_the_share_of_relatives_is_that_of_all_draws(sizes, images):
    family = [number for number, size in enumerate(sizes) for _ in range(size)]
    has_relative, held = np.zeros(len(sizes)), np.zeros(len(sizes))
    for drawn in itertools.combinations(range(len(family)), images):
        training = {family[i] for i in range(len(family)) if i not in drawn}
        for i in drawn:
            held[family[i]] += 1
            has_relative[family[i]] += family[i] in training
    assert families.with_relatives(np.array(sizes), images) == pytest.approx(has_relative / held)


def test_a_giant_is_larger_than_a_hundredth_of_validation_and_than_most_families():
    assert giants(np.array([328, *[1] * 40_000]), 32_768).nonzero()[0].tolist() == [0]
    assert not giants(np.array([327, *[1] * 40_000]), 32_768).any()
    assert not giants(np.array([10, *[1] * 400]), 50).any(), "small datasets have no giants"
    assert giants(np.array([11, *[1] * 400]), 50).nonzero()[0].tolist() == [0]
    assert not giants(np.full(20, 500), 1000).any(), "twenty videos"


# Builds of small sources


def built_sides(tmp_path: Path, source: dict[str, str], **validation: object) -> dict[str, str]:
    """The split of each path."""
    values = {
        "output": str(tmp_path / "out"),
        "sources": [{"name": "a"} | source],
        "tags": {"min_count": 2, "min_tags": 1},
        "validation": {"images": 0.5, "min_per_tag": 1} | validation,
    }
    output = build(BuildSettings.model_validate(values))
    return {row["path"]: split for split in SPLITS for row in pq.read_table(output / f"{split}.parquet").to_pylist()}


def names_on_one_side(side: dict[str, str], names: dict[str, str]) -> bool:
    """Whether all images of a name are on one side, and both sides have images."""
    by_name: dict[str, set[str]] = {}
    for path, name in names.items():
        by_name.setdefault(name, set()).add(side[path])
    assert {split for its in by_name.values() for split in its} == set(SPLITS)
    return all(len(its) == 1 for its in by_name.values())


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        random_image(number).save(folder / name)


NAMES = [f"{work}_p{page}.png" for work in (3, 14, 15, 92) for page in range(4)]
WORK_OF = {name: name.partition("_")[0] for name in NAMES}


@pytest.mark.parametrize("pattern", [r"^(\d+)_p\d", r"^\d+", r"(x)?^(\d+)"])
def test_a_pattern_over_file_names_ties_the_images_of_a_folder(tmp_path, pattern):
    write_images(tmp_path / "images", NAMES)
    for name in NAMES:
        (tmp_path / "images" / name).with_suffix(".txt").write_text("cat, dog")
    source = {"kind": "sidecar", "path": str(tmp_path / "images"), "family": pattern}
    assert names_on_one_side(built_sides(tmp_path, source), WORK_OF)


@pytest.mark.parametrize("pattern", [r"nothing", r"_p()", None])
def test_images_that_a_pattern_does_not_name_are_tied_to_nothing(tmp_path, pattern):
    write_images(tmp_path / "images", NAMES)
    for name in NAMES:
        (tmp_path / "images" / name).with_suffix(".txt").write_text("cat, dog")
    built_sides(
        tmp_path, {"kind": "sidecar", "path": str(tmp_path / "images")} | ({"family": pattern} if pattern else {})
    )
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["families"]["several"] == 0


@pytest.mark.parametrize("as_number", [False, True])
def test_a_column_ties_the_images_of_json_lines_and_parquet(tmp_path, as_number):
    write_images(tmp_path / "images", NAMES)
    lines = [
        {"path": name, "tags": "cat, dog", "scene": int(WORK_OF[name]) if as_number else WORK_OF[name]}
        for name in NAMES
    ]
    (tmp_path / "images" / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "jsonl", "path": str(tmp_path / "images" / "list.jsonl"), "family": "scene"}
    side = built_sides(tmp_path, source)
    assert names_on_one_side(side, WORK_OF)

    for split in SPLITS:  # the same column in a dataset that is a source of another
        table = pq.read_table(tmp_path / "out" / f"{split}.parquet")
        scenes = pa.array([WORK_OF[path] for path in table["path"].to_pylist()])
        pq.write_table(table.append_column("scene", scenes.cast(pa.int64()) if as_number else scenes), tmp_path / split)
        (tmp_path / split).replace(tmp_path / "out" / f"{split}.parquet")
    (tmp_path / "again").mkdir()
    source = {"kind": "parquet", "path": str(tmp_path / "out"), "family": "scene"}
    hashes = {path.stem: path for path in (tmp_path / "out" / "images").rglob("*.jpg")}
    assert len(hashes) == len(NAMES)
    again = built_sides(tmp_path / "again", source, seed=1)
    original = {}
    for split in SPLITS:
        for row in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist():
            digest = row["hash"].hex()
            original[f"images/{digest[:2]}/{digest[2:4]}/{digest}.jpg"] = str(row["scene"])
    assert names_on_one_side(again, original)


def test_empty_names_of_a_column_tie_nothing(tmp_path):
    write_images(tmp_path / "images", NAMES)
    scenes: list[object] = [None, "", [], {}, True, 1.5, False, "absent"]
    lines = [{"path": name, "tags": "cat", "scene": scenes[i // 2]} for i, name in enumerate(NAMES)]
    lines = [{key: value for key, value in line.items() if value != "absent"} for line in lines]
    (tmp_path / "images" / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "jsonl", "path": str(tmp_path / "images" / "list.jsonl"), "family": "scene"}
    built_sides(tmp_path, source)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["families"]["several"] == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "sidecar", "path": "images", "family": "("}, r"images: family: '\(' is not a regular expression"),
        ({"kind": "jsonl", "path": "images/list.jsonl", "family": "tags"}, "family: the column tags has another"),
        ({"kind": "parquet", "path": "dataset", "family": "scene"}, r"train\.parquet: scene: column missing"),
        ({"kind": "parquet", "path": "dataset", "family": "phash"}, r"train\.parquet: phash: .* never double"),
    ],
)
def test_a_family_that_cannot_be_read_is_refused(tmp_path, source, message):
    write_images(tmp_path / "images", NAMES[:2])
    (tmp_path / "images" / "list.jsonl").write_text('{"path": "3_p0.png", "tags": "cat"}\n')
    (tmp_path / "dataset").mkdir()
    table = pa.table({"post_id": [1], "tags": pa.array([[0]], pa.list_(pa.int16())), "hash": [b"x"], "phash": [0.5]})
    for split in SPLITS:
        pq.write_table(table, tmp_path / "dataset" / f"{split}.parquet")
    (tmp_path / "dataset" / "top_tags.txt").write_text("cat")
    with pytest.raises(ValueError, match=message):
        built_sides(tmp_path, source | {"path": str(tmp_path / source["path"])})


def mirror_of(folder: Path, ties: dict[int, dict[str, object]]) -> dict[str, str]:
    """Write a mirror of images that look different, with the fields of each id; return the source."""
    rows = []
    for number, fields in ties.items():
        path = folder / "original" / f"{number:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(data := encode(random_image(number)))
        row = {"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": "cat dog"} | fields
        rows.append({name: value for name, value in row.items() if value != "absent"})
    write_mirror(folder, posts=rows)
    return {"kind": "danbooru2021", "path": str(folder)}


@pytest.mark.parametrize(
    "fields",
    [{"pixiv_id": value} for value in ("0", 0, "", None, "none", -3, [7], {"a": 1}, True, 1.5, "9" * 30)]
    + [{"parent_id": value} for value in ("0", 0, "", None, "none", "-1", [7], "9" * 5000)],
)
def test_what_is_no_number_ties_nothing_and_refuses_no_post(tmp_path, fields):
    source = mirror_of(tmp_path / "mirror", dict.fromkeys(range(1, 9), fields))
    assert len(built_sides(tmp_path, source)) == 8
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["families"]["several"] == 0


def test_parents_and_works_tie_posts_over_refused_and_missing_ones(tmp_path):
    """Older dumps lack the columns; numbers may be texts or numbers; a parent may be its own."""
    ties: dict[int, dict[str, object]] = {
        1: {},
        2: {"parent_id": "1"},
        3: {"parent_id": 90},  # a post that is not in the dump
        4: {"parent_id": "90"},
        5: {"parent_id": "6"},
        6: {"parent_id": "7", "file_ext": "mp4"},  # refused
        7: {"parent_id": "7"},
        8: {"pixiv_id": "123"},
        9: {"pixiv_id": 123, "is_deleted": True},
        10: {"pixiv_id": "124", "parent_id": "91"},
        11: {"pixiv_id": "124", "parent_id": "92", "md5": "absent", "is_banned": True},
        12: {"parent_id": "92"},
        13: {"pixiv_id": "125", "parent_id": "92", "id": "absent", "md5": "absent", "is_banned": True},
        14: {"pixiv_id": "125"},
        15: {"parent_id": "15"},
        16: {},
        17: {},
        18: {},
    }
    source = mirror_of(tmp_path / "mirror", ties)
    side = {int(Path(path).stem): split for path, split in built_sides(tmp_path, source).items()}
    assert set(side) == set(ties) - {6, 11, 13}
    for family in ([1, 2], [3, 4], [5, 7], [8, 9], [10, 12, 14]):
        assert len({side[post] for post in family}) == 1, family
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["families"]
    assert (counts["families"], counts["several"], counts["images"], counts["largest"]) == (9, 5, 11, 3)


def test_a_wider_radius_ties_look_alikes_without_making_copies_of_them(tmp_path):
    (folder := tmp_path / "images").mkdir()
    for number in range(24):
        image = random_image(number // 2)
        if number % 2:  # a white line changes some bits
            image.paste((255, 255, 255), (0, 47, 60, 48))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("cat, dog")
    source = {"kind": "sidecar", "path": str(folder)}
    pairs = {f"{number}.png": str(number // 2) for number in range(24)}
    (tmp_path / "equal").mkdir()
    assert not names_on_one_side(built_sides(tmp_path / "equal", source), pairs)
    side = built_sides(tmp_path, source, radius=8)
    assert len(side) == 24
    phash = {
        row["path"]: row["phash"]
        for split in SPLITS
        for row in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()
    }
    near = [(a, b) for a, b in itertools.combinations(side, 2) if 0 < (phash[a] ^ phash[b]).bit_count() <= 8]
    assert len(near) >= 6
    assert all(side[a] == side[b] for a, b in near)

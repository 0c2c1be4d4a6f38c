"""Raw sources become a dataset whose tags, copies and split are what a slow and simple recount says."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import duckdb
import imagehash
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import danbooru2021, dedup, openmoji, scan, sidecar, tags
from data_prep.build import BuildSettings, Source, build, read_sources
from data_prep.split import choose_validation
from joytag import records
from joytag.settings import load

NAME = st.sampled_from("abcdefg")
PAIRS = st.lists(st.tuples(NAME, NAME), max_size=12)


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """A smooth random picture, whose pHash no other seed shares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_mirror(folder: Path, **tables: list[dict | str]) -> Path:
    """A mirror's metadata; `posts`, `tags`, `tag_aliases` and `tag_implications` hold JSON lines."""
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    for name in ("posts", "tags", "tag_aliases", "tag_implications"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in tables.get(name, [])]
        (folder / "metadata" / f"{name}000000000000.json").write_text("".join(f"{line}\n" for line in lines))
    return folder


def relation(antecedent: str, consequent: str, status: str = "active") -> dict[str, str]:
    return {"antecedent_name": antecedent, "consequent_name": consequent, "status": status}


def read(folder: Path, kind: str = "danbooru2021", images: str = "original") -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    read_sources(db, [Source(name="x", kind=kind, path=str(folder), images=images)])
    return db


def rows(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple]:
    return db.execute(query).fetchall()


def policy(
    posts: dict[int, list[str]], aliases: tuple = (), implications: tuple = (), blacklist: tuple[str, ...] = ()
) -> tuple[duckdb.DuckDBPyConnection, dict[int, set[str]]]:
    """A database with the posts' final tags, and those tags by post."""
    db = duckdb.connect()
    read_sources(db, [])
    for post, names in posts.items():
        db.execute("INSERT INTO posts VALUES (0, ?, 'p', NULL, ?)", [post, names])
    for table, pairs in (("aliases", aliases), ("implications", implications)):
        for pair in pairs:
            db.execute(f"INSERT INTO {table} VALUES (?, ?)", pair)
    tags.canonicalise(db, blacklist)
    final: dict[int, set[str]] = {post: set() for post in posts}
    for post, tag in rows(db, "SELECT post_id, tag FROM post_tags"):
        assert tag not in final[post]
        final[post].add(tag)
    return db, final


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
@settings(deadline=None)
def test_aliases_end_where_following_them_for_long_ends(pairs):
    def end(name: str) -> str:
        orbit = [name]
        for _ in range(20):
            following = [c for a, c in pairs if a == orbit[-1] != c]
            orbit.append(min(following, default=orbit[-1]))
        return min(orbit[-8:])  # a cycle has at most seven members

    assert tags.resolve_aliases(pairs) == {name: end(name) for name in "abcdefg" if end(name) != name}


@given(PAIRS, PAIRS)
@settings(deadline=None)
def test_implications_are_closed_as_reachability_is(pairs, alias_pairs):
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


def test_final_tags_are_dealiased_then_implied_and_each_once():
    _, final = policy(
        {1: ["kitty", "cat", "sofa", "sofa"], 2: ["animal"], 3: [""], 4: ["12"]},
        aliases=(("kitty", "kitten"), ("kitten", "cat"), ("beast", "animal")),
        implications=(("kitten", "mammal"), ("mammal", "beast"), ("animal", "mammal")),
    )
    assert final == {1: {"cat", "sofa", "mammal", "animal"}, 2: {"animal", "mammal"}, 3: set(), 4: {"12"}}


def test_blacklisted_tags_vanish_before_aliasing_and_after():
    _, final = policy(
        {1: ["old", "x"], 2: ["raw", "x"], 3: ["cat"], 4: ["new"]},
        aliases=(("old", "bad"), ("raw", "new")),
        implications=(("cat", "hidden"), ("hidden", "animal")),
        blacklist=("bad", "raw", "hidden"),
    )
    assert final == {1: {"x"}, 2: {"x"}, 3: {"cat", "animal"}, 4: {"new"}}


def test_tags_without_any_policy_stay_as_they_are():
    _, final = policy({1: ["a", "b"], 2: ["3"]})
    assert final == {1: {"a", "b"}, 2: {"3"}}


def test_vocabulary_counts_only_pictures_with_enough_tags():
    db, _ = policy({1: ["a", "b", "c"], 2: ["a", "b"], 3: ["a"], 4: ["d"], 5: ["d"], 6: ["e", "f"]})
    db.execute("INSERT INTO categories VALUES ('a', 4), ('a', 1), ('c', 3), ('f', NULL)")
    tags.choose_vocabulary(db, min_count=1, min_tags=2)
    expected = [("a", 1, 2), ("b", 0, 2), ("c", 3, 1), ("e", 0, 1), ("f", 0, 1)]
    assert rows(db, "SELECT tag, category, count FROM vocabulary ORDER BY tag") == expected
    assert rows(db, "SELECT post_id FROM kept ORDER BY post_id") == [(1,), (2,), (6,)]
    tags.choose_vocabulary(db, min_count=2, min_tags=1)
    assert rows(db, "SELECT tag, count FROM vocabulary ORDER BY tag") == [("a", 3), ("b", 2), ("d", 2)]
    tags.choose_vocabulary(db, min_count=3, min_tags=1, keep=["f", "unused", "a"])
    expected = [("a", 1, 3), ("f", 0, 1), ("unused", 0, 0)]
    assert rows(db, "SELECT tag, category, count FROM vocabulary ORDER BY tag") == expected


# Sources


def test_both_generations_of_danbooru_metadata_are_read(tmp_path):
    new = {"id": "1", "md5": "AB", "file_ext": "JPG", "tag_string": " cat  1girl cat ", "is_banned": False}
    old = {"id": "12003", "md5": "cd", "file_ext": "png", "tags": [{"id": "7", "name": "cat", "category": "0"}] * 2}
    bare = {"id": "4", "md5": "ef", "file_ext": "png"}
    left_out = [
        {"md5": "x", "file_ext": "png", "tag_string": "no_id"},
        {"id": "5", "file_ext": "png", "tag_string": "no_md5"},
        {"id": "6", "md5": "x", "tag_string": "no_ext"},
        {"id": "7", "md5": "x", "file_ext": "../../x", "tag_string": "no_such_ext"},
    ]
    db = read(write_mirror(tmp_path, posts=[new, *left_out, old, bare]))
    posts = rows(db, "SELECT source, post_id, path, md5, list_sort(list_distinct(tags)) FROM posts ORDER BY post_id")
    folder = tmp_path / "original"
    assert posts == [
        (0, 1, str(folder / "0001" / "1.jpg"), "ab", ["1girl", "cat"]),
        (0, 4, str(folder / "0004" / "4.png"), "ef", []),
        (0, 12003, str(folder / "0003" / "12003.png"), "cd", ["cat"]),
    ]


def test_a_tag_twice_in_a_row_counts_once(tmp_path):
    old = {"id": "1", "md5": "x", "file_ext": "png", "tags": [{"name": "cat"}, {"name": "cat"}]}
    db = read(write_mirror(tmp_path, posts=[old, old | {"id": "2", "tag_string": "cat cat"}]))
    tags.canonicalise(db, [])
    assert rows(db, "SELECT post_id, tag FROM post_tags ORDER BY ALL") == [(1, "cat"), (2, "cat")]


def test_the_512px_set_is_always_jpg_and_has_no_md5(tmp_path):
    post = {"id": "1234", "md5": "x", "file_ext": "png", "tag_string": "cat"}
    db = read(write_mirror(tmp_path, posts=[post]), images="512px")
    assert rows(db, "SELECT path, md5 FROM posts") == [(str(tmp_path / "512px" / "0234" / "1234.jpg"), None)]


def test_all_files_of_a_mirror_are_read(tmp_path):
    post = {"id": "1", "md5": "x", "file_ext": "png", "tag_string": "cat"}
    write_mirror(tmp_path, posts=[post])
    (tmp_path / "metadata" / "posts000000000001.json").write_text(json.dumps(post | {"id": "2"}))
    assert len(rows(read(tmp_path), "SELECT * FROM posts")) == 2


def test_only_active_relations_count(tmp_path):
    write_mirror(
        tmp_path,
        posts=[],
        tags=[{"id": "1", "name": "cat", "category": "0"}, {"name": "hero", "category": "4"}, {"name": "odd"}],
        tag_aliases=[relation("a", "b"), relation("a", "b"), relation("c", "d", "deleted"), {"antecedent_name": "e"}],
        tag_implications=[relation("x", "y"), relation("v", "w", "pending"), relation("y", "z", "retired")],
    )
    db = read(tmp_path)
    assert rows(db, "SELECT * FROM categories ORDER BY name") == [("cat", 0), ("hero", 4)]
    assert rows(db, "SELECT * FROM aliases") == [("a", "b")]
    assert rows(db, "SELECT * FROM implications") == [("x", "y")]


def test_a_mirror_without_metadata_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metadata/posts\*\.json: no such file"):
        danbooru2021.read_posts(duckdb.connect(), tmp_path, "original", 0)
    with pytest.raises(ValueError, match=r"sources\.0\.path: .*nowhere: no such folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ['{"id": "5", "md5', "not json", "[1]", '{"id": "1", "md5": "x", "tags": "cat"}'])
def test_damaged_metadata_is_refused_in_one_line_with_the_file(tmp_path, line):
    with pytest.raises(ValueError) as caught:
        read(write_mirror(tmp_path, posts=[line]))
    assert "posts000000000000.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_mirror_may_lie_in_a_folder_of_any_name(tmp_path):
    post = {"id": "1", "md5": "x", "file_ext": "png", "tag_string": "cat"}
    db = read(write_mirror(tmp_path / "it's [2021] *", posts=[post]))
    assert rows(db, "SELECT post_id FROM posts") == [(1,)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"1girl, long hair ,Solo", ["1girl", "long_hair", "solo"]),
        (b"1girl\nlong  hair\r\n\r\nsolo\n", ["1girl", "long_hair", "solo"]),
        (b"a,,a, b,", ["a", "b"]),
        (b"\xef\xbb\xbfcat, dog", ["cat", "dog"]),
        (rb"saber \(fate\), \o/, :\)", ["saber_(fate)", r"\o/", ":)"]),
        ("ÉTÉ, 猫".encode(), ["été", "猫"]),
        (b"", []),
    ],
)
def test_sidecars_are_read_as_people_write_them(tmp_path, text, names):
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    assert sidecar.read_tags(path) == names


def test_a_sidecar_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8"):
        sidecar.read_tags(path)


def test_pictures_with_a_sidecar_are_posts_whose_ids_survive_additions(tmp_path):
    for name in ("b.png", "sub/a.JPG", "alone.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("cat")
    with pytest.raises(ValueError, match=r"no pictures with \.txt sidecars"):
        read(tmp_path / "sub", "sidecar")
    before = dict(rows(read(tmp_path, "sidecar"), "SELECT path, post_id FROM posts"))
    (tmp_path / "sub" / "a.txt").write_text("dog")
    after = dict(rows(read(tmp_path, "sidecar"), "SELECT path, post_id FROM posts"))
    assert set(before) == {str(tmp_path / "b.png")} and set(after) - set(before) == {str(tmp_path / "sub" / "a.JPG")}
    assert after[str(tmp_path / "b.png")] == before[str(tmp_path / "b.png")] >= 0


# Scan


def scan_bytes(tmp_path: Path, data: bytes, expected_md5: str | None = None, longest: int = 32) -> scan.Scan:
    path = tmp_path / "picture"
    path.write_bytes(data)
    return scan.scan((str(path), expected_md5), tmp_path / "out", longest)


def test_a_good_picture_is_measured_and_stored(tmp_path):
    data = encode(picture(0, 60, 48))
    found = scan_bytes(tmp_path, data, md5(data))
    assert (found.verdict, found.width, found.height) == ("ok", 60, 48)
    assert found.sha256 == hashlib.sha256(data).digest()
    with Image.open(records.image_path(tmp_path / "out", found.sha256, "jpg")) as stored:
        assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (32, 26))
    assert not list((tmp_path / "out").rglob("*.part"))
    white = np.asarray(found.thumbnail)[[0, -1]]
    assert found.thumbnail.shape == (16, 16, 3) and white.min() > 250


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (encode(picture(0), save_all=True, append_images=[picture(1)]), "animated"),
        (encode(Image.new("RGBA", (40, 40), (0, 0, 0, 9))), "transparent"),
        (encode(picture(0), "JPEG")[:300], "cannot be decoded"),
        (b"hello", "not a picture"),
        (b"", "not a picture"),
    ],
)
def test_a_picture_that_cannot_be_used_is_not_stored_and_says_why(tmp_path, data, verdict):
    assert scan_bytes(tmp_path, data).verdict.startswith(verdict)
    assert not (tmp_path / "out").exists()


def test_a_picture_with_another_md5_is_refused(tmp_path):
    assert scan_bytes(tmp_path, encode(picture(0)), md5(b"else")).verdict == "md5 differs from the metadata"


def test_a_picture_that_is_not_there_is_a_verdict(tmp_path):
    assert scan.scan((str(tmp_path / "nowhere.png"), None), tmp_path, 32).verdict.startswith("cannot be read")


@pytest.mark.parametrize("seed", range(5))
def test_phash_is_imagehashs_read_as_bits(seed):
    image = picture(seed)
    bits = imagehash.phash(image).hash.flatten()
    assert scan.phash(image) == int("".join(str(int(bit)) for bit in bits), 2)


@pytest.mark.parametrize("colour", ["white", "black", "#808080"])
def test_phash_of_a_flat_picture_counts_as_flat(colour):
    assert dedup.is_flat(scan.phash(Image.new("RGB", (40, 40), colour)))
    assert not dedup.is_flat(scan.phash(picture(0)))


# Copies


def keepers(*pictures: tuple[str, int, int, int]) -> list[int]:
    """Keepers of pictures given as (file, pHash, grey level, area)."""
    files, phash, level, area = zip(*pictures, strict=True)
    thumbnails = np.stack([np.full((16, 16, 3), value, np.uint8) for value in level])
    found = dedup.keepers([f.encode() for f in files], np.array(phash, np.uint64), thumbnails, np.array(area))
    return found.tolist()


def test_the_same_file_is_a_copy_whatever_its_hash():
    assert keepers(("a", 0, 9, 5), ("b", 0, 9, 5), ("a", 0, 9, 5)) == [0, 1, 0]


def test_equal_phash_and_the_same_colours_are_a_copy():
    limit = dedup.MAX_DIFFERENCE
    assert keepers(("a", 255, 100, 5), ("b", 255, 100 + limit, 4)) == [0, 0]
    assert keepers(("a", 255, 100, 5), ("b", 255, 101 + limit, 4)) == [0, 1]
    assert keepers(("a", 255, 0, 5), ("b", 255, 255, 4)) == [0, 1]
    assert keepers(("a", 255, 100, 5), ("b", 254, 100, 4)) == [0, 1]


def test_flat_pictures_are_copies_only_as_the_same_file():
    for phash in (0, 1 << 63):
        assert keepers(("a", phash, 9, 5), ("b", phash, 9, 5)) == [0, 1]


def test_the_largest_copy_stays_then_the_first():
    assert keepers(("a", 255, 9, 4), ("b", 255, 9, 6), ("c", 255, 9, 5)) == [1, 1, 1]
    assert keepers(("a", 255, 9, 4), ("b", 255, 9, 4)) == [0, 0]


def test_a_copy_of_a_copy_belongs_to_the_picture_that_stays():
    assert keepers(("a", 255, 9, 4), ("a", 255, 9, 4), ("b", 255, 9, 6)) == [2, 2, 2]


def test_one_differing_pixel_of_the_thumbnail_tells_pictures_apart():
    thumbnails = np.full((2, 16, 16, 3), 200, np.uint8)
    thumbnails[1, 8, 8, 2] = 100
    found = dedup.keepers([b"a", b"b"], np.array([255, 255], np.uint64), thumbnails, np.array([5, 5]))
    assert found.tolist() == [0, 1]


@given(st.data())
@settings(deadline=None)
def test_copies_do_not_depend_on_the_order_of_pictures(data):
    files = data.draw(st.lists(st.tuples(st.sampled_from([0, 7, 255]), st.sampled_from([0, 3, 6, 90])), min_size=1))
    chosen = data.draw(st.lists(st.integers(0, len(files) - 1), min_size=1, max_size=20))

    def keeping_file(order: list[int]) -> dict[int, int]:
        found = keepers(*((f"file {i}", *files[i], 100 + i) for i in order))
        for row, keeper in enumerate(found):
            assert found[keeper] == keeper and order[keeper] >= order[row]
            same_look = files[order[row]][0] == files[order[keeper]][0] and files[order[row]][0] != 0
            assert order[row] == order[keeper] or same_look
        return {file: order[keeper] for file, keeper in zip(order, found, strict=True)}

    assert keeping_file(chosen) == keeping_file(data.draw(st.permutations(chosen)))


# Split


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_validation_holds_every_tag_and_no_look_alike_of_a_training_picture(data):
    n_tags = 4
    pictures = data.draw(st.lists(st.tuples(st.integers(0, 12), st.sets(st.integers(0, n_tags - 1))), min_size=2))
    groups = np.array([group for group, _ in pictures], np.uint64) + np.uint64(2**63)
    labels = [np.array(sorted(names), np.int64) for _, names in pictures]
    wanted, least, seed = data.draw(st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 99)))
    totals = np.bincount(np.concatenate(labels), minlength=n_tags)
    try:
        mask = choose_validation(groups, labels, wanted, np.full(n_tags, least), seed)
    except ValueError as error:
        assert str(error).startswith("validation.")
        largest = max(Counter(groups.tolist()).values())
        assert totals.min() < least or max(wanted, least * n_tags * largest) + largest > len(groups)
        return
    assert mask.dtype == bool and mask.shape == groups.shape
    assert not mask.all()
    assert mask.sum() >= wanted
    assert (np.bincount(np.concatenate([labels[row] for row in np.flatnonzero(mask)]), minlength=n_tags) >= least).all()
    assert not set(groups[mask].tolist()) & set(groups[~mask].tolist())
    if least == 0:
        assert mask.sum() - max(Counter(groups[mask].tolist()).values()) < wanted
    np.testing.assert_array_equal(mask, choose_validation(groups, labels, wanted, np.full(n_tags, least), seed))


def test_another_seed_chooses_other_pictures():
    groups, labels = np.arange(200, dtype=np.uint64), [np.array([0])] * 200
    first, second = (choose_validation(groups, labels, 20, np.array([5]), seed) for seed in (0, 1))
    assert first.sum() == second.sum() == 20 and (first != second).any()
    assert first[:100].any() and first[100:].any()


def test_a_tag_that_is_too_rare_is_refused():
    with pytest.raises(ValueError, match=r"validation\.min_per_tag: .* occurs 2 times"):
        choose_validation(
            np.arange(9, dtype=np.uint64), [np.array([0])] * 2 + [np.array([], int)] * 7, 3, np.array([3]), 0
        )


@pytest.mark.parametrize(
    ("groups", "labels", "wanted", "least"),
    [(range(5), [0] * 5, 5, 0), (range(5), [0] * 5, 9, 0), ([7] * 5, [0] * 5, 1, 0), (range(5), [0] * 5, 1, 5)],
)
def test_a_split_that_leaves_nothing_to_train_on_is_refused(groups, labels, wanted, least):
    with pytest.raises(ValueError, match=r"^validation\."):
        choose_validation(
            np.array(groups, np.uint64), [np.array([tag]) for tag in labels], wanted, np.array([least]), 0
        )


# The whole build

ALIASES = {"feline": "cat"}
IMPLICATIONS = {"cat": "animal", "animal": "living"}
WORDS = ["feline", "cat", "animal", "house", "red", "blue", "rare", "commentary", "hero"]


def final_tags(raw: list[str]) -> set[str]:
    found = {ALIASES.get(name, name) for name in raw} - {"commentary"}
    for _ in IMPLICATIONS:
        found |= {IMPLICATIONS[name] for name in found if name in IMPLICATIONS}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[BuildSettings, dict[tuple[int, int], set[str]]]:
    """A config that has been built, and the tags that each (source, post) should have ended up with."""
    root = tmp_path_factory.mktemp("build")
    rng = np.random.default_rng(0)
    expected: dict[tuple[int, int], set[str]] = {}
    lines: list[dict | str] = []

    def draw() -> list[str]:
        return [str(name) for name in rng.choice(WORDS[:6] + WORDS[7:], rng.integers(3, 6), replace=False)]

    def post(number: int, data: bytes, raw: list[str], **changes: str) -> None:
        path = root / "mirror" / "original" / f"{number % 1000:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        lines.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": " ".join(raw)} | changes)

    def with_sidecar(name: str, data: bytes, raw: list[str]) -> int:
        path = root / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(", ".join(raw))
        return sidecar.path_id(Path(name))

    for number in range(1, 41):
        raw = draw()
        post(1000 * number + number, encode(picture(number)), raw)
        expected[0, 1000 * number + number] = final_tags(raw)
    for number in range(41, 56):
        raw = draw()
        expected[1, with_sidecar(f"{number}.png", encode(picture(number)), raw)] = final_tags(raw)

    # A larger copy in the other source stays and takes over the tags of the smaller one.
    large = with_sidecar("large.png", encode(picture(1, 240, 192)), ["house", "red", "rare"])
    expected[1, large] = final_tags(["house", "red", "rare"]) | expected.pop((0, 1001))
    # The same file again gives its tags to the first.
    post(50_002, encode(picture(2)), ["hero", "blue"])
    expected[0, 2002] |= {"hero", "blue"}
    # Look-alikes in other colours stay, on one side.
    darker = encode(picture(3).point(lambda value: value * 0.7))
    post(50_003, darker, ["red", "house"])
    expected[0, 50_003] = {"red", "house"}
    # None of these may appear.
    post(60_001, encode(picture(61)), ["red", "house"], md5="0" * 32)
    post(60_002, encode(picture(62), save_all=True, append_images=[picture(63)]), ["red", "house"])
    post(60_003, b"hello", ["red", "house"])
    post(60_004, encode(picture(64)), ["commentary", "red"])
    lines.append({"id": "60005", "md5": "x", "file_ext": "png", "tag_string": "red house"})

    write_mirror(
        root / "mirror",
        posts=lines,
        tags=[{"name": name, "category": "4" if name == "hero" else "0"} for name in WORDS],
        tag_aliases=[relation(*pair) for pair in ALIASES.items()],
        tag_implications=[relation(*pair) for pair in IMPLICATIONS.items()],
    )
    config = BuildSettings.model_validate(
        {
            "output": str(root / "dataset"),
            "sources": [
                {"name": "mirror", "kind": "danbooru2021", "path": str(root / "mirror")},
                {"name": "folder", "kind": "sidecar", "path": str(root / "folder")},
            ],
            "longest_side": 64,
            "tags": {"min_count": 3, "min_tags": 2, "blacklist": ["commentary"]},
            "validation": {"pictures": 12, "min_per_tag": 2},
        }
    )
    assert build(config) == root / "dataset"
    return config, {post: names for post, names in expected.items() if len(names) >= 2}


def contents(config: BuildSettings) -> dict[str, list[dict]]:
    return {split: pq.read_table(Path(config.output) / f"{split}.parquet").to_pylist() for split in records.SPLITS}


def test_a_built_dataset_holds_the_expected_pictures_with_the_expected_tags(built):
    config, expected = built
    names = records.Dataset.open(Path(config.output)).tags.names
    found = {
        (row["source"], row["post_id"]): {names[i] for i in row["tags"]}
        for split in contents(config).values()
        for row in split
    }
    assert {post: tags_ - {"rare"} for post, tags_ in expected.items()} == found
    for split in contents(config).values():
        assert all(row["tags"] == sorted(set(row["tags"])) for row in split)


def test_a_built_dataset_lists_its_tags_as_a_recount_does(built):
    config, _ = built
    splits = contents(config)
    table = pq.read_table(Path(config.output) / "tags.parquet").to_pylist()
    counts = {split: Counter(i for row in splits[split] for i in row["tags"]) for split in records.SPLITS}
    sources = Counter((row["source"], i) for split in splits.values() for row in split for i in row["tags"])
    for row in table:
        i = row["index"]
        assert row["count_train"] == counts["train"][i]
        assert row["count_validation"] == counts["validation"][i] >= config.validation.min_per_tag
        assert row["count"] == row["count_train"] + row["count_validation"] >= config.tags.min_count
        assert row["count_by_source"] == [sources[0, i], sources[1, i]]
        assert row["category"] == (4 if row["name"] == "hero" else 0)
    assert {row["name"] for row in table} == {"cat", "animal", "living", "house", "red", "blue", "hero"}
    assert table == sorted(table, key=lambda row: (-row["count_train"], row["name"]))


def test_a_folder_keeps_the_vocabulary_of_a_release_and_holds_out_a_share(tmp_path):
    """The shipped configuration on 30 pictures: a tag of 10, one of 4, and a release's three."""
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        names = ["known"] + ["new_(thing)"] * (number < 10) + ["rare"] * (number < 4)
        text = ", ".join(names).replace("(", r"\(").replace(")", r"\)")
        (tmp_path / f"{number}.txt").write_text(text)
    (tmp_path / "top_tags.txt").write_text("known\nunused\nrare")
    config = Path(__file__).parents[1] / "configs" / "data" / "folder.yaml"
    base = load(BuildSettings, config, [f"output={tmp_path / 'dataset'}"])
    source = base.sources[0].model_copy(update={"path": str(tmp_path)})
    kept = base.tags.model_copy(update={"keep": str(tmp_path / "top_tags.txt")})
    dataset = records.Dataset.open(build(base.model_copy(update={"sources": [source], "tags": kept})))
    assert sorted(dataset.tags.names) == ["known", "new_(thing)", "rare", "unused"]
    totals = dict(zip(dataset.tags.names, dataset.tags.totals.tolist(), strict=True))
    assert totals == {"known": 30, "new_(thing)": 10, "rare": 4, "unused": 0}
    validation = dataset.posts("validation")
    assert len(validation) == 3 and len(dataset.posts("train")) == 27
    assert validation.labels(np.arange(3), 4)[:, dataset.tags.names.index("new_(thing)")].any()


def test_a_list_of_tags_to_keep_that_is_missing_is_named(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    values = {"output": str(tmp_path / "out"), "sources": [{"name": "a", "kind": "sidecar", "path": str(tmp_path)}]}
    with pytest.raises(ValueError, match=r"tags\.keep: .*gone\.txt"):
        build(BuildSettings.model_validate(values | {"tags": {"keep": str(tmp_path / "gone.txt")}}))


def test_no_validation_picture_looks_like_a_training_picture(built):
    config, expected = built
    splits = contents(config)
    phashes = {split: {row["phash"] for row in splits[split]} for split in records.SPLITS}
    assert len(splits["validation"]) >= config.validation.pictures
    assert not phashes["train"] & phashes["validation"]
    assert sum(map(len, phashes.values())) == len(expected) - 1, "the two look-alikes should share a pHash"


def test_every_picture_of_a_built_dataset_is_there_and_small(built):
    config, _ = built
    dataset = records.Dataset.open(Path(config.output))
    assert dataset.sources == ["mirror", "folder"]
    for split in records.SPLITS:
        for row in dataset.posts(split).hashes:
            with Image.open(dataset.image_path(row.tobytes())) as image:
                assert max(image.size) <= config.longest_side


def test_a_second_build_changes_nothing(built, capsys):
    config, _ = built
    state = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    assert build(config) == Path(config.output)
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == state


def test_a_dataset_of_another_config_is_not_overwritten(built):
    config, _ = built
    state = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    with pytest.raises(ValueError, match="dataset: holds a dataset of another config"):
        build(config.model_copy(update={"longest_side": 48}))
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == state


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("tags", {"min_count": 1000}, r"tags\.min_count: no tag is used 1000 times"),
        ("validation", {"pictures": 500}, r"validation\.pictures: 500 and"),
    ],
)
def test_a_build_that_cannot_succeed_leaves_no_dataset(built, tmp_path, section, changes, message):
    config, _ = built
    values = config.model_dump() | {"output": str(tmp_path), section: config.model_dump()[section] | changes}
    with pytest.raises(ValueError, match=message):
        build(BuildSettings.model_validate(values))
    assert not (tmp_path / "dataset.json").exists()


def test_two_sources_of_one_name_are_refused(built):
    config, _ = built
    source = config.sources[1]
    with pytest.raises(ValueError, match="two have the same name"):
        read_sources(duckdb.connect(), [source, source])


# The embedded corpora


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
    for subgroup, found in groups.items():
        if len(found) == 1 and subgroup not in names:
            assert {implied[subgroup]} == found
        else:
            assert subgroup not in implied
    assert implied["animal-bird"] == "animals-nature" and len(implied) == 110


def test_openmoji_tags_can_be_joined_by_spaces_and_commas(emoji):
    names = {tag for row in emoji.values() for tag in human_tags(row, emoji)}
    assert not [name for name in names if not name or any(c.isspace() or c == "," for c in name)]
    assert names >= set(openmoji.ALIASES)


@pytest.mark.parametrize("name", ["1f44b-1f3fb.svg", "1F44B-1F3FB", "00a9-fe0f", "2764-FE0F-200D-1F525"])
def test_both_projects_spell_a_code_point_alike(name):
    assert openmoji.code_point(Path(name).stem) in ("1F44B-1F3FB", "A9", "2764-200D-1F525")

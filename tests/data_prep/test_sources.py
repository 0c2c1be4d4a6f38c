"""Sources of every kind are read as posts; bad rows are reported one by one."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mirror import relation, write_mirror

from data_prep import inputs
from data_prep.config import Source
from data_prep.sources import danbooru2021, json_reader, posts
from data_prep.sources.danbooru2021 import Images
from data_prep.sources.registry import KINDS, SourceKind
from joytag.data.dataset import SPLITS, Dataset
from joytag.tagging.captions import Captions, CaptionStyle
from joytag.tagging.table import Table

MD5 = "0123456789abcdef0123456789abcdef"


def read(path: Path, kind: str = "danbooru2021", images: Images = "original", **changes: Any) -> list[dict]:
    """All rows of a source, usable or refused."""
    source = Source(name="x", kind=kind, path=str(path), images=images, **changes)
    inputs.check([source], path.parent / "elsewhere")
    return [row for part in inputs.parts(source) for row in inputs.read(part).to_pylist()]


def good(rows: list[dict]) -> list[dict]:
    return sorted((row for row in rows if row["reason"] is None), key=lambda row: row["post_id"])


def reasons(rows: list[dict]) -> list[str]:
    return [row["reason"] for row in rows if row["reason"] is not None]


def post(number: int | str, **changes: object) -> dict:
    return {"id": str(number), "md5": MD5, "file_ext": "png", "tag_string": "cat"} | changes


# Danbooru


def test_both_generations_of_danbooru_metadata_are_read(tmp_path):
    new = post(1, md5=MD5.upper(), file_ext="JPG", tag_string=" cat  1girl cat ", is_banned=False)
    old = {"id": "12003", "md5": MD5, "file_ext": "png", "tags": [{"id": "7", "name": "cat", "category": "0"}] * 2}
    bare = {"id": 4, "md5": MD5, "file_ext": "png"}
    rows = good(read(write_mirror(tmp_path, posts=[new, old, bare])))
    assert [(row["post_id"], row["path"], row["md5"], row["tags"]) for row in rows] == [
        (1, "original/0001/1.jpg", MD5, ["cat", "1girl", "cat"]),
        (4, "original/0004/4.png", MD5, []),
        (12003, "original/0003/12003.png", MD5, ["cat", "cat"]),
    ]


HOSTILE: list[tuple[str, dict | str]] = [
    ("without id or md5", {"md5": MD5, "file_ext": "png", "tag_string": "no_id"}),
    ("without id or md5", {"id": "5", "file_ext": "png", "tag_string": "no_md5"}),
    ("bad row", post(6, file_ext="")),
    ("bad row", post(7, file_ext="../../x")),
    ("bad row", post(8, md5="../../../etc/passwd")),
    ("bad row", post("../../etc/passwd")),
    ("bad row", post("-1")),
    ("bad row", post("9" * 30)),
    ("bad row", post(9, tag_string=["a"])),
    ("bad row", '{"id": "5", "md5'),
    ("bad row", "not json"),
    ("bad row", "[1]"),
    ("bad row", "[" * 100_000),
    ("not an image", post(10, file_ext="mp4")),
]


def test_bad_rows_are_refused_one_by_one(tmp_path):
    """Whatever the size of the parts in which the file is read."""
    write_mirror(tmp_path, posts=[row for i, (_, bad) in enumerate(HOSTILE) for row in (bad, post(100 + i))])
    path = tmp_path / "metadata" / "posts000000000000.json"
    lines = path.read_bytes().splitlines(keepends=True)
    for size in (path.stat().st_size, 1000, 61):
        rows = [
            r
            for p in json_reader.parts(path, size)
            for r in danbooru2021.read(danbooru2021.Part(p, "original")).to_pylist()
        ]
        assert reasons(rows) == [reason for reason, _ in HOSTILE]
        assert [row["post_id"] for row in good(rows)] == [100 + i for i in range(len(HOSTILE))]
        numbers = json_reader.line_numbers(path, [row["offset"] for row in rows])
        assert numbers == list(range(1, len(lines) + 1))


def test_an_endless_line_and_binary_ones_are_refused_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, "MAX_LINE", 1000)
    write_mirror(tmp_path, posts=[post(1)])
    path = tmp_path / "metadata" / "posts000000000000.json"
    good_line = path.read_bytes()
    path.write_bytes(good_line + b"x" * 12_345 + b"\n" + good_line + b"\xff\xfe\0\n\r\n" + good_line + b"y" * 5000)
    for size in (1 << 20, 700, 4000):
        result = [line for part in json_reader.parts(path, size) for line in json_reader.read(part, danbooru2021._Post)]
        assert [line.row is not None for line in result] == [True, False, True, False, True, False]
        assert json_reader.line_numbers(path, [line.offset for line in result]) == [1, 2, 3, 4, 6, 7]


def test_the_512px_set_is_always_jpg_and_has_no_md5(tmp_path):
    row = good(read(write_mirror(tmp_path, posts=[post(1234)]), images="512px"))[0]
    assert (row["path"], row["md5"]) == ("512px/0234/1234.jpg", None)


def test_all_files_of_a_mirror_are_read(tmp_path):
    write_mirror(tmp_path, posts=[post(1)])
    (tmp_path / "metadata" / "posts000000000001.json").write_text(json.dumps(post(2)))
    (tmp_path / "metadata" / "posts.json").write_text(json.dumps(post(3)))
    assert [row["post_id"] for row in good(read(tmp_path))] == [1, 2, 3]


def test_metadata_of_older_dumps_is_found(tmp_path):
    """Of a post in several dumps, the row of the latest counts; folders and other tables are not posts."""
    metadata = tmp_path / "metadata"
    for folder in ("2017", "2018", "2020000000000000"):
        (metadata / folder).mkdir(parents=True)
    files = {
        "2017/2017000000000000.json": [post(1, tag_string="old"), post(2)],
        "2017/2017000000000001.json": [{"id": "3", "md5": MD5, "file_ext": "png", "tags": [{"name": "dog"}]}],
        "2018/2018000000000000": [post(1, tag_string="newer"), post(4)],
        "2019000000000000": [post(1, tag_string="newest"), post(5)],
        "2019000000000000.txt": [post(6)],
        "posts_old.json": [post(7)],
        "2017/tag_aliases000000000000": [relation("a", "b")],
        "tag_implications.json": [relation("x", "y")],
        "2018/tags000000000000.json": [{"name": "cat", "category": "4"}],
    }
    for name, rows in files.items():
        (metadata / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = read(tmp_path)
    assert {row["post_id"] for row in good(rows)} == {1, 2, 3, 4, 5}
    assert [row["tags"] for row in rows if row["post_id"] == 1] == [["newest"], ["newer"], ["old"]]
    relations, _ = inputs.relations([Source(name="x", kind="danbooru2021", path=str(tmp_path))])
    assert (relations.aliases, relations.implications) == ([("a", "b")], [("x", "y")])
    assert relations.categories == {"cat": 4}
    (metadata / "posts000000000000.json").write_text(json.dumps(post(1, tag_string="current")))
    assert next(row["tags"] for row in read(tmp_path) if row["post_id"] == 1) == ["current"]


def test_only_active_relations_count(tmp_path):
    write_mirror(
        tmp_path,
        posts=[],
        tags=[
            {"id": "1", "name": "cat", "category": "0"},
            {"name": "hero", "category": 4},
            {"name": "odd"},
            "no json",
            {"name": "old", "category": "0", "is_deprecated": True},
        ],
        tag_aliases=[relation("a", "b"), relation("a", "b"), relation("c", "d", "deleted"), {"antecedent_name": "e"}],
        tag_implications=[relation("x", "y"), relation("v", "w", "pending"), relation("y", "z", "retired")],
    )
    relations, unreadable = inputs.relations([Source(name="x", kind="danbooru2021", path=str(tmp_path))])
    assert relations.categories == {"cat": 0, "hero": 4, "old": 0}
    assert relations.deprecated == {"old"}
    assert relations.aliases == [("a", "b")] * 2
    assert relations.implications == [("x", "y")]
    assert [[row.file.name for row in rows] for rows in unreadable] == [["tags000000000000.json"]]


def test_categories_are_read_from_posts_if_there_is_no_table_of_tags(tmp_path):
    tags = [{"id": "7", "name": "hero", "category": "4"}, {"id": "8", "name": "cat", "category": "0"}]
    write_mirror(tmp_path, posts=[{"id": "1", "md5": MD5, "file_ext": "png", "tags": tags}, "no json"])
    for kind in ("tags", "tag_aliases", "tag_implications"):
        (tmp_path / "metadata" / f"{kind}000000000000.json").unlink()
    assert danbooru2021.read_relations(tmp_path).categories == {"hero": 4, "cat": 0}


def test_a_mirror_without_metadata_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metadata/posts\*\.json: no such file"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"sources\.0\.path: .*nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"sources\.0\.path: .* no such file"):
        read(tmp_path, "jsonl")


# Sidecars


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
def test_sidecars_in_common_styles_are_read(tmp_path, text, names):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_bytes(text)
    assert read(tmp_path, "sidecar")[0]["tags"] == names


def test_bad_sidecars_are_refused_one_by_one(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "a.txt").write_bytes(b"\x81\xff, cat")
    (tmp_path / "b.txt").write_text("x" * (10 << 20))
    (tmp_path / "c.txt").write_text("cat, dog")
    (tmp_path / "e.txt").write_text("cat, " + "d\0g, ")
    rows = sorted(read(tmp_path, "sidecar", min_tags=2), key=lambda row: row["path"])
    assert [row["reason"] for row in rows] == ["bad sidecar", "bad sidecar", None, "without sidecar", None]
    assert {row["path"]: row["reason"] for row in read(tmp_path, "sidecar", min_tags=3)}["c.png"] == (
        "fewer than 3 tags in the source"
    )


def test_links_out_of_the_folder_are_refused(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    for name in ("a.png", "a.txt", "b.png"):
        (outside / name).write_text("secret")
    (inside / "a.png").symlink_to(outside / "a.png")
    (inside / "a.txt").write_text("cat")
    (inside / "b.png").touch()
    (inside / "b.txt").symlink_to(outside / "a.txt")
    (inside / "c.png").touch()
    (inside / "c.txt").symlink_to(inside / "a.txt")
    result = {row["path"]: row["reason"] for row in read(inside, "sidecar")}
    assert result == {"a.png": "link out of the folder", "b.png": "link out of the folder", "c.png": None}
    (inside / "list.jsonl").write_text('{"path": "a.png", "tags": "cat"}')
    assert reasons(read(inside / "list.jsonl", "jsonl")) == ["link out of the folder"]


def test_file_names_that_cannot_be_stored_are_refused(tmp_path):
    for name in (b"a\n.png", b"b\xff.png", "\u202e[red] \u202f\u3000👩\u200d👧.png".encode()):
        (tmp_path / os.fsdecode(name)).touch()
        (tmp_path / os.fsdecode(name)).with_suffix(".txt").write_text("cat")
    table = read(tmp_path, "sidecar")
    assert sorted(reasons(table)) == ["bad name", "bad name"]
    assert [row["path"] for row in good(table)] == ["\u202e[red] \u202f\u3000👩\u200d👧.png"]


def test_what_is_passed_over_in_a_folder_is_refused_with_its_reason(tmp_path):
    for name in ("a.png", "a.txt", "b.jxl", "b.txt", "Thumbs.db", ".git/c.png", "outside.txt"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).touch()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    rows = {row["path"]: row["reason"] for row in read(tmp_path / "folder", "sidecar")}
    assert rows == {"a.png": None, "b.jxl": ".jxl cannot be read", "link": "link to a folder"}


def test_ids_of_images_with_sidecars_do_not_change_when_images_are_added(tmp_path):
    for name in ("b.png", "sub/a.JPG", "alone.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("cat")
    with pytest.raises(ValueError, match=r"no images with \.txt, \.tags, \.caption sidecars"):
        read(tmp_path / "sub", "sidecar")
    before = {row["path"]: row["post_id"] for row in good(read(tmp_path, "sidecar"))}
    (tmp_path / "sub" / "a.txt").write_text("dog")
    after = {row["path"]: row["post_id"] for row in good(read(tmp_path, "sidecar"))}
    assert set(before) == {"b.png"}
    assert set(after) - set(before) == {"sub/a.JPG"}
    assert after["b.png"] == before["b.png"] >= 0


# JSON lines and datasets


def test_a_byte_order_mark_blank_lines_and_crlf_are_no_part_of_json_lines(tmp_path):
    lines = ['{"path": "a.png", "tags": "cat"}', "", "  ", '{"path": "b.png", "tags": ["dog"]}']
    (tmp_path / "list.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert [(row["path"], row["tags"]) for row in read(tmp_path / "list.jsonl", "jsonl")] == [
        ("a.png", ["cat"]),
        ("b.png", ["dog"]),
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(ValueError, match=r"list\.jsonl: UTF-16 text; save it as UTF-8"):
        read(tmp_path / "list.jsonl", "jsonl")


def test_a_table_of_predicted_tags_is_read(tmp_path):
    captions = Captions(CaptionStyle(separator="; ", underscores="space", escape=True), [])
    table = Table(tmp_path / "tags.jsonl")
    with table.opened():
        for name in ("a.png", "b.png"):
            table.write(tmp_path / name, {r"saber \(fate\)": 0.9, "^_^": 0.8}, captions)
    rows = read(tmp_path / "tags.jsonl", "jsonl")
    assert [(row["path"], row["tags"]) for row in rows] == [
        (name, ["saber_(fate)", "^_^"]) for name in ("a.png", "b.png")
    ]


def test_json_lines_name_images_below_their_folder(tmp_path):
    lines = [
        {"path": "a/b.jpg", "tags": ["Long Hair", "1girl", "long_hair", r"saber \(fate\)", ""]},
        {"path": "c.png", "tags": "cat, big dog"},
        {"path": "../x.png", "tags": "cat"},
        {"path": "/etc/passwd", "tags": "cat"},
        {"path": "a/../../x.png", "tags": "cat"},
        {"path": "a\0b.png", "tags": "cat"},
        {"path": "a.png"},
        {"path": "a.png", "tags": [1]},
        {"path": "", "tags": "cat"},
        {"file_name": "d.png", "text": "1girl long_hair solo"},
        {"path": "e.png", "tags": "A photo of a cat sitting on a mat."},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read(tmp_path / "list.jsonl", "jsonl")
    assert reasons(rows) == ["bad row"] * 7 + ["sentences instead of tags"]
    assert {row["path"]: row["tags"] for row in good(rows)} == {
        "a/b.jpg": ["long_hair", "1girl", "saber_(fate)"],
        "c.png": ["cat", "big_dog"],
        "d.png": ["1girl", "long_hair", "solo"],
    }
    rows = good(read(tmp_path / "list.jsonl", "jsonl", separator="space"))
    assert [row["tags"] for row in rows if row["path"] == "c.png"] == [["cat,", "big", "dog"]]


def test_a_dataset_can_be_a_source(dataset_directory):
    dataset = Dataset.open(dataset_directory)
    table = read(dataset_directory, "parquet")
    assert not reasons(table)
    assert len(table) == sum(len(dataset.posts(split)) for split in SPLITS)
    labels = {
        dataset.posts(s).hashes[i].tobytes().hex(): dataset.posts(s).labels(np.array([i]), 6)[0]
        for s in SPLITS
        for i in range(len(dataset.posts(s)))
    }
    for row in table:
        assert (dataset_directory / row["path"]).is_file()
        expected = {f"tag_{i}" for i in np.flatnonzero(labels[Path(row["path"]).stem])}
        assert set(row["tags"]) == expected


def test_the_categories_of_a_dataset_that_is_a_source_are_kept(dataset_directory, tmp_path):
    source = Source(name="x", kind="parquet", path=str(dataset_directory))
    relations, _ = inputs.relations([source])
    assert relations.categories == {f"tag_{i}": 0 for i in range(6)}
    pq.write_table(pa.table({"name": ["cat", "hero"], "category": [0, 4]}), tmp_path / "tags.parquet")
    relations, _ = inputs.relations([source.model_copy(update={"path": str(tmp_path)}), source])
    assert relations.categories["hero"] == 4


def test_a_dataset_of_the_original_build_can_be_a_source(tmp_path):
    digest = hashlib.sha256(b"x").digest()
    rows = {"post_id": [7, 8, 9], "tags": [[0, 2], [1], [5]], "hash": [digest, digest, b"short"]}
    schema = pa.schema({"post_id": pa.int64(), "tags": pa.list_(pa.int16()), "hash": pa.binary()})
    for split in SPLITS:
        pq.write_table(pa.table(rows, schema), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"top_tags\.txt: missing; it names the tags"):
        read(tmp_path, "parquet")
    (tmp_path / "top_tags.txt").write_text("cat\ndog\n🦊")
    table = read(tmp_path, "parquet")
    name = digest.hex()
    assert [(r["post_id"], r["path"], r["tags"]) for r in good(table)] == sorted(
        [(7, f"{name[:2]}/{name[2:4]}/{name}.webp", ["cat", "🦊"]), (8, f"{name[:2]}/{name[2:4]}/{name}.webp", ["dog"])]
        * 2
    )
    assert reasons(table) == ["bad row"] * 2


@pytest.mark.parametrize(("column", "values"), [("tags", ["a"]), ("post_id", ["a"]), ("hash", [1])])
def test_a_dataset_whose_columns_are_of_another_type_is_refused(tmp_path, column, values):
    (tmp_path / "top_tags.txt").write_text("cat")
    rows = {"post_id": [7], "tags": [[0]], "hash": [b"x" * 32]} | {column: values}
    for split in SPLITS:
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=rf"train\.parquet: {column}: this column of a dataset is never"):
        read(tmp_path, "parquet")


def test_a_source_without_posts_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no posts"):
        read(tmp_path / "empty.jsonl", "jsonl")


@pytest.mark.parametrize("output", ["", "a/b", "link/../images"])
def test_an_output_inside_a_source_is_refused(tmp_path, output):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").mkdir()
    source = Source(name="x", kind="sidecar", path=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"output: .* inside the source"):
        inputs.check([source], tmp_path / ("images" if output[:1] != "l" else "") / output)


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b", "a\0", "a\\..\\b", "."])
def test_paths_that_leave_their_folder_are_recognized(path):
    assert not posts.is_inside(path)


def test_a_new_kind_needs_only_a_row_of_the_registry(tmp_path, monkeypatch):
    (tmp_path / "list").write_text("cat.png dog.png")

    def read_part(part: str) -> pa.Table:
        return posts.table([posts.Post(posts.path_id(part), part, tags=Path(part).stem)])

    listed = SourceKind(lambda path: path.read_text().split(), read_part, lambda path: [path], path_is_file=True)
    monkeypatch.setitem(KINDS, "list", listed)
    assert [(row["path"], row["tags"]) for row in read(tmp_path / "list", "list")] == [
        ("cat.png", ["cat"]),
        ("dog.png", ["dog"]),
    ]
    source = Source(name="x", kind="list", path=str(tmp_path / "list"))
    assert inputs.folder(source) == tmp_path
    assert inputs.content_hashes(source) == {"list": hashlib.sha256(b"cat.png dog.png").hexdigest()}
    assert inputs.relations([source]) == (posts.Relations(), [[]])


def test_an_unknown_kind_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match="'sidecars' is unknown; did you mean sidecar"):
        Source(name="x", kind="sidecars", path=str(tmp_path))

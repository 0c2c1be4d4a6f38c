"""Writing, reading and checking of a dataset directory."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from joytag.data.dataset import (
    NEGATIVES,
    POSTS_SCHEMA,
    TAGS_SCHEMA,
    VERSION,
    Dataset,
    DatasetError,
    DatasetMissing,
    read_description,
    write_description,
)
from joytag.data.tables import write_table

POSTS = {
    "post_id": [1, 2**62, 3],
    "tags": [[0, 2], [], [1]],
    "hash": [bytes([i]) * 32 for i in range(3)],
    "source": [0, 1, 1],
    "phash": [0, 2**64 - 1, 7],
}
TAGS = {
    "index": [0, 1, 2],
    "name": ["1girl", "solo", "ö_(artist)"],
    "category": [0, 0, 1],
    "count": [5, 4, 3],
    "count_train": [3, 2, 2],
    "count_validation": [2, 2, 1],
    "count_by_source": [[3, 2], [4, 0], [0, 3]],
}


def table(columns: dict, schema: pa.Schema) -> pa.Table:
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    return pa.table(arrays)


def write_posts(directory: Path, **changes: list) -> None:
    write_table(table(POSTS | changes, POSTS_SCHEMA), POSTS_SCHEMA, directory / "train.parquet")


def write_negatives(directory: Path, negatives: list[list[int]]) -> None:
    schema = POSTS_SCHEMA.append(NEGATIVES)
    write_table(table(POSTS | {NEGATIVES.name: negatives}, schema), schema, directory / "train.parquet")


def write_tags(directory: Path, **changes: list) -> None:
    write_table(table(TAGS | changes, TAGS_SCHEMA), TAGS_SCHEMA, directory / "tags.parquet")


@pytest.fixture
def directory(tmp_path) -> Path:
    write_posts(tmp_path)
    write_tags(tmp_path)
    write_description(tmp_path, {"sources": ["drawn", "photo"], "extension": "jpg"})
    return tmp_path


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def damage(directory: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        Dataset.open(directory).posts("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_posts_and_tags_survive_writing_and_reading(directory):
    dataset = Dataset.open(directory)
    assert (dataset.directory, dataset.sources, dataset.extension) == (directory, ["drawn", "photo"], "jpg")
    assert dataset.tags.names == TAGS["name"]
    assert len(dataset.tags) == 3
    np.testing.assert_array_equal(dataset.tags.categories, TAGS["category"])
    np.testing.assert_array_equal(dataset.tags.counts, TAGS["count_train"])
    np.testing.assert_array_equal(dataset.tags.totals, TAGS["count"])
    posts = dataset.posts("train")
    assert len(posts) == 3
    np.testing.assert_array_equal(posts.ids, POSTS["post_id"])
    np.testing.assert_array_equal(posts.sources, POSTS["source"])
    assert [row.tobytes() for row in posts.hashes] == POSTS["hash"]
    assert posts.tags.dtype == np.int16


def test_labels_are_in_the_order_of_the_requested_rows(directory):
    labels = Dataset.open(directory).posts("train").labels(np.array([2, 0, 1, 2]), 3)
    np.testing.assert_array_equal(labels, [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert labels.dtype == bool


@given(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=20))
@settings(max_examples=20)
def test_labels_survive_the_file(tmp_path_factory, tags):
    directory = tmp_path_factory.mktemp("dataset")
    write_tags(directory)
    write_description(directory, {"sources": ["drawn"], "extension": "jpg"})
    count = len(tags)
    zeros = [0] * count
    labels = [sorted(of_image) for of_image in tags]
    write_posts(directory, post_id=list(range(count)), tags=labels, hash=[bytes(32)] * count, source=zeros, phash=zeros)
    result = Dataset.open(directory).posts("train").labels(np.arange(count), 3)
    assert [set(np.flatnonzero(row)) for row in result] == tags


@given(st.lists(st.dictionaries(st.integers(0, 2), st.booleans()), min_size=1, max_size=20), st.integers(1, 3))
@example(answers=[{0: False}], every=2)
@settings(max_examples=40, deadline=None)
def test_signed_labels_survive_the_file(tmp_path_factory, answers, every):
    directory = tmp_path_factory.mktemp("dataset")
    write_tags(directory)
    write_description(directory, {"sources": ["drawn", "photo"], "extension": "jpg", "exhaustive": [False, True]})
    zeros, sources = [0] * len(answers), [int(row % every == every - 1) for row in range(len(answers))]
    columns = {"post_id": zeros, "hash": [bytes(32)] * len(answers), "source": sources, "phash": zeros}
    columns["tags"], columns["negatives"] = (
        [sorted(t for t in a if a[t] is yes) for a in answers] for yes in (True, False)
    )
    schema = POSTS_SCHEMA.append(NEGATIVES)
    write_table(table(columns, schema), schema, directory / "train.parquet")
    dataset = Dataset.open(directory)
    posts, rows = dataset.posts("train"), np.arange(len(answers))[::-1]
    signed = posts.signed_labels(rows, 3)
    assert signed.dtype == np.int8
    expected = [[0 if tag not in answers[row] else 1 if answers[row][tag] else -1 for tag in range(3)] for row in rows]
    assert signed.tolist() == expected
    assert np.array_equal(posts.labels(rows, 3), signed > 0)
    assert dataset.tags_without_negatives(posts).tolist() == [
        all(answer.get(tag, not exhaustive) for answer, exhaustive in zip(answers, sources, strict=True))
        for tag in range(3)
    ]


def test_a_dataset_of_an_older_build_has_no_rejected_tags_and_the_same_hash(directory):
    dataset = Dataset.open(directory)
    posts = dataset.posts("train")
    assert dataset.exhaustive == [True, True]
    assert posts.negatives is None
    before = "bba131a84387970def1eed4c02941d08a2c1d36734462ef39df507e129352dc4"
    assert dataset.content_hash(posts) == before
    write_negatives(directory, [[], [], []])
    write_description(directory, {"sources": ["drawn", "photo"], "extension": "jpg", "exhaustive": [True, True]})
    assert Dataset.open(directory).content_hash(Dataset.open(directory).posts("train")) == before


def test_rejected_tags_and_what_is_exhaustive_are_content(directory):
    hashes = []
    for rejected, exhaustive in (([], [True, True]), ([1], [True, True]), ([], [True, False])):
        write_negatives(directory, [[], list(rejected), []])
        write_description(directory, {"sources": ["drawn", "photo"], "extension": "jpg", "exhaustive": exhaustive})
        dataset = Dataset.open(directory)
        assert dataset.exhaustive == exhaustive
        hashes.append(dataset.content_hash(dataset.posts("train")))
    assert len(set(hashes)) == 3


def test_schema_begins_with_the_columns_of_the_original_build(directory):
    schema = pq.read_schema(directory / "train.parquet")
    assert schema.names[:3] == ["post_id", "tags", "hash"]
    assert (schema.field("post_id").type, schema.field("tags").type.value_type) == (pa.int64(), pa.int16())


def test_images_are_stored_by_their_hash(directory):
    path = Dataset.open(directory).image_path(bytes.fromhex("abcdef") + bytes(29))
    assert path == directory / "images" / "ab" / "cd" / f"abcdef{'0' * 58}.jpg"


def test_a_failed_write_leaves_the_old_file(directory):
    with pytest.raises((ValueError, pa.ArrowException)):
        write_posts(directory, post_id=[1, 2, None])
    assert len(Dataset.open(directory).posts("train")) == 3


def test_a_missing_dataset_is_a_typed_error_with_its_directory(tmp_path):
    with pytest.raises(DatasetMissing, match=r"no dataset here .*; build it$") as caught:
        Dataset.open(tmp_path / "nowhere")
    assert str(caught.value).startswith(f"{tmp_path / 'nowhere'}: ")
    assert caught.value.directory == tmp_path / "nowhere"


def test_the_dataset_inside_a_run_is_suggested(directory):
    run = directory.parent / "run"
    run.mkdir(exist_ok=True)
    (run / "dataset").symlink_to(directory)
    with pytest.raises(DatasetError, match=f"no dataset here .*; use {run / 'dataset'}$"):
        Dataset.open(run)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[]", "version: not 1"),
        ("{}", "version: not 1"),
        ('{"version": 2, "sources": [], "extension": "jpg"}', "version: not 1"),
        ('{"version": 1, "extension": "jpg"}', "sources: not a list of names"),
        ('{"version": 1, "sources": [1], "extension": "jpg"}', "sources: not a list of names"),
        ('{"version": 1, "sources": ["a"]}', "extension: None is not jpg, webp, png or none"),
        ('{"version": 1, "sources": ["a"], "extension": "exe"}', "extension: 'exe' is not jpg, webp, png or none"),
        (
            '{"version": 1, "sources": ["a"], "extension": "jpg", "exhaustive": [1]}',
            "exhaustive: not true or false for",
        ),
        ('{"version": 1, "sources": ["a"], "extension": "jpg", "exhaustive": []}', "exhaustive: not true or false for"),
    ],
)
def test_a_wrong_description_is_refused(directory, text, problem):
    path = directory / "dataset.json"
    path.write_text(text, encoding="latin-1")
    assert damage(directory).startswith(f"{path}: {problem}")


def test_a_dataset_of_an_older_build_has_no_paths(directory):
    dataset = Dataset.open(directory)
    assert dataset.original_paths("train", dataset.posts("train").hashes) == [""] * 3
    assert dataset.original_paths("validation", dataset.posts("train").hashes) == [""] * 3  # there is no such file
    assert dataset.originals("train") is None
    assert dataset.originals("validation") is None


@pytest.mark.parametrize("file", ["tags.parquet", "train.parquet"])
def test_a_missing_or_truncated_file_is_named(directory, file):
    path = directory / file
    data = path.read_bytes()
    for part in (data[: len(data) // 2], data[:-1], b""):
        path.write_bytes(part)
        assert damage(directory).startswith(f"{path}: cannot be read")
    path.unlink()
    assert damage(directory).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("file", "column"),
    [("train.parquet", name) for name in POSTS_SCHEMA.names] + [("tags.parquet", name) for name in TAGS_SCHEMA.names],
)
def test_a_missing_column_is_named(directory, file, column):
    rewrite(directory / file, lambda t: t.drop_columns([column]))
    assert damage(directory).startswith(f"{directory / file}: {column}: column missing")


@pytest.mark.parametrize(("column", "values"), [("post_id", [1, None, 2]), ("tags", [[1], None, [2]])])
def test_nulls_are_refused(directory, column, values):
    def with_nulls(t: pa.Table) -> pa.Table:
        kind = pa.list_(pa.int16()) if column == "tags" else pa.int64()
        return t.set_column(t.column_names.index(column), column, pa.array(values, kind))

    rewrite(directory / "train.parquet", with_nulls)
    assert damage(directory).startswith(f"{directory / 'train.parquet'}: {column}: holds nulls")


@pytest.mark.parametrize(("column", "values"), [("hash", [b"short"] * 3), ("phash", ["x", "y", "z"])])
def test_a_column_of_another_type_is_refused(directory, column, values):
    rewrite(directory / "train.parquet", lambda t: t.drop_columns([column]).append_column(column, pa.array(values)))
    assert damage(directory).startswith(f"{directory / 'train.parquet'}: ")


@pytest.mark.parametrize(
    ("column", "values", "limit"),
    [("tags", [[0], [3], [1]], 2), ("tags", [[0], [-1], [1]], 2), ("source", [0, 2, 0], 1), ("source", [0, -1, 0], 1)],
)
def test_an_index_out_of_range_is_refused(directory, column, values, limit):
    write_posts(directory, **{column: values})
    assert damage(directory).startswith(f"{directory / 'train.parquet'}: {column}: values outside 0 to {limit}")


@pytest.mark.parametrize("tag", [3, -1])
def test_a_rejected_tag_out_of_range_is_refused(directory, tag):
    write_negatives(directory, [[], [tag], []])
    assert damage(directory).startswith(f"{directory / 'train.parquet'}: negatives: values outside 0 to 2")


@pytest.mark.parametrize("index", [[1, 2, 3], [0, 2, 1], [0, 0, 1]])
def test_a_tag_table_out_of_order_is_refused(directory, index):
    write_tags(directory, index=index)
    assert damage(directory).startswith(f"{directory / 'tags.parquet'}: index: must count up from 0")


def test_a_tag_that_occurs_twice_is_refused(directory):
    write_tags(directory, name=["1girl", "solo", "1girl"])
    assert damage(directory).startswith(f"{directory / 'tags.parquet'}: name: a tag occurs twice")


def test_an_empty_split_is_refused(directory):
    write_posts(directory, **{name: [] for name in POSTS})
    assert re.search("train.parquet: holds no images", damage(directory))


def test_the_description_keeps_additional_facts(directory):
    write_description(directory, {"sources": [], "extension": "png", "config": {"seed": 3}})
    assert read_description(directory)["config"] == {"seed": 3}
    assert json.loads((directory / "dataset.json").read_text())["version"] == VERSION

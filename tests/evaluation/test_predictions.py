"""The predictions directory: complete, or refused if damaged or forged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array
from small_predictions import BAD, FACTS, POSTS, ROWS, SCORES, TAGS, damage, vocabulary, write_finished

from joytag.core import files
from joytag.data import dataset
from joytag.evaluation import predictions
from joytag.evaluation.predictions import Predictions, PredictionsError, label_matrix

pytestmark = pytest.mark.filterwarnings("ignore:.* are left out")


@pytest.fixture
def directory(tmp_path) -> Path:
    """Finished predictions of POSTS with SCORES."""
    return write_finished(tmp_path / "predictions")


def test_predictions_are_read_back_without_undecodable_images(directory):
    opened, kept = Predictions.open(directory), [row for row in range(ROWS) if row not in dict(BAD)]
    np.testing.assert_array_equal(opened.scores, SCORES[kept])
    assert opened.scores.dtype == np.float16
    assert not opened.scores.flags.writeable
    np.testing.assert_array_equal(opened.ids, POSTS.ids[kept])
    np.testing.assert_array_equal(opened.hashes, POSTS.hashes[kept])
    np.testing.assert_array_equal(opened.sources, POSTS.sources[kept])
    np.testing.assert_array_equal(opened.families, np.array(kept) // 2)
    np.testing.assert_array_equal(opened.labels.toarray(), POSTS.labels(np.array(kept), TAGS))
    assert opened.labels.dtype == bool
    assert opened.labels.format == "csc"
    assert opened.source_names == FACTS["sources"]
    assert opened.tags.names == vocabulary().names
    for ours, theirs in zip(vars(opened.tags).values(), vars(vocabulary()).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert FACTS.items() <= opened.provenance.items()
    assert [(entry["id"], entry["reason"]) for entry in opened.provenance["undecodable"]] == [
        (row * 3, reason) for row, reason in BAD
    ]
    assert opened.provenance["undecodable"][0]["hash"] == POSTS.hashes[2].tobytes().hex()
    assert not (directory / "work").exists()


def test_of_older_datasets_and_in_older_predictions_every_image_is_its_own_family(directory, tmp_path):
    opened = Predictions.open(write_finished(tmp_path / "older", posts=replace(POSTS, families=None)))
    assert len(set(opened.families)) == len(opened)
    (directory / predictions.FAMILIES).unlink()
    path = directory / predictions.PROVENANCE
    provenance = json.loads(path.read_text())
    del provenance["sha256"][predictions.FAMILIES]
    path.write_text(json.dumps(provenance))
    np.testing.assert_array_equal(Predictions.open(directory).families, np.arange(ROWS - len(BAD)))


@given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=9))
@settings(max_examples=30)
def test_labels_match_the_split(tags):
    rows = np.arange(len(tags))
    flat = np.array([tag for of_one in tags for tag in of_one], dtype=np.int16)
    hashes = np.zeros((len(tags), 32), dtype=np.uint8)
    posts = dataset.Posts(rows, np.cumsum([0, *map(len, tags)]), flat, hashes, rows)
    expected = np.array([[tag in of_one for tag in range(7)] for of_one in tags])
    np.testing.assert_array_equal(label_matrix(posts, 7).toarray(), expected)
    np.testing.assert_array_equal(label_matrix(posts, 7).toarray(), posts.labels(rows, 7))


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "longer", "flipped"])
@pytest.mark.parametrize("name", predictions.FILES)
def test_a_damaged_file_is_refused_in_one_line(directory, name, kind):
    damage(directory / name, kind)
    with pytest.raises(PredictionsError) as error:
        Predictions.open(directory)
    line = str(error.value)
    assert line.startswith(f"{directory / name}: ")
    assert line.endswith(f"remove {directory} and evaluate again")
    assert ("missing" if kind == "missing" else "damaged") in line
    assert "\n" not in line


class Evil:
    """An object whose unpickling creates a file."""

    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def save(name: str):
    return lambda path, value: np.save(path / f"{name}.npy", value, allow_pickle=True)


def labels(path: Path, value: dict) -> None:
    np.savez(path / "labels.npz", **value)


def csc(**changes) -> dict:
    good = {
        "format": b"csc",
        "shape": [9, 5],
        "data": np.ones(3, bool),
        "indices": np.array([0, 8, 2]),
        "indptr": np.array([0, 1, 2, 3, 3, 3]),
    }
    return {**good, **changes}


def tags(path: Path, value: dict) -> None:
    columns = {"index": range(5), "name": list("abcde"), "category": [0] * 5, "count": [0] * 5, "count_train": [0] * 5}
    pq.write_table(pa.table({**columns, **value}), path / "tags.parquet")


HOSTILE = [
    (save("scores"), np.full((9, 5), np.nan, np.float16), "not between 0 and 1"),
    (save("scores"), np.full((9, 5), 1.5, np.float16), "not between 0 and 1"),
    (save("scores"), np.zeros((9, 5), np.float32), "float32"),
    (save("scores"), np.zeros((9, 4), np.float16), "9 images and 5 tags"),
    (save("scores"), np.zeros((9, 5), np.float16, order="F"), "scores.npy: holds"),
    (save("scores"), np.zeros(9, np.float16), "scores.npy: holds"),
    (save("scores"), np.array([[Evil()]]), "scores.npy: damaged"),
    (save("ids"), np.array([Evil()]), "ids.npy: damaged"),
    (save("ids"), np.zeros(0, np.int64), "0 images"),
    (save("hashes"), np.zeros((9, 31), np.uint8), "hashes.npy"),
    (save("families"), np.arange(8), "families.npy are not of 9 images"),
    (save("sources"), np.full(9, 2), "sources.npy: numbers outside 0 to 1"),
    (save("sources"), np.full(9, -1), "sources.npy: numbers outside"),
    (labels, {"a": np.zeros(3)}, "labels.npz: damaged"),
    (labels, csc(data=np.array([Evil()] * 3)), "labels.npz: damaged"),
    (labels, csc(indices=np.array([0, 9, 2])), "labels.npz: damaged"),
    (labels, csc(indptr=np.array([0, 99, 2, 3, 3, 3])), "labels.npz: damaged"),
    (labels, csc(shape=[10**12, 5]), "9 images and 5 tags"),
    (labels, csc(data=np.ones(3)), "labels.npz: holds float64"),
    (labels, csc(data=np.zeros(3, bool)), "labels.npz: holds bool or explicit zeros"),
    (tags, {"name": list("abcda")}, "tags.parquet: name: a tag occurs twice"),
    (tags, {"name": ["a", None, "c", "d", "e"]}, "tags.parquet: name: holds nulls"),
    (tags, {"count": ["many"] * 5}, "tags.parquet: Failed to parse"),
    (tags, {"index": [4, 3, 2, 1, 0]}, "tags.parquet: index: must count up from 0"),
]


@pytest.mark.parametrize(("put", "value", "message"), HOSTILE, ids=[message for *_, message in HOSTILE])
def test_invalid_files_with_a_valid_hash_are_refused_in_one_line(directory, put, value, message):
    put(directory, value)
    path = directory / predictions.PROVENANCE
    provenance = json.loads(path.read_text())
    provenance["sha256"] = {name: files.file_hash(directory / name) for name in predictions.FILES}
    path.write_text(json.dumps(provenance))
    with pytest.raises(PredictionsError) as error:
        Predictions.open(directory)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)
    assert not Path("evil").exists()


HEAD = '{"version": 1, "sources": ["a"]'
DAMAGED = [
    "",
    "[]",
    "{",
    "[" * 100_000,
    '{"version": 2}',
    '{"version": 1, "sources": "a"}',
    HEAD + "}",
    HEAD + ', "sha256": []}',
    HEAD + ', "sha256": {}}',
]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:50])
def test_a_damaged_provenance_is_refused_in_one_line(directory, text):
    (directory / predictions.PROVENANCE).write_text(text)
    with pytest.raises(PredictionsError, match=rf"^{directory}"):
        Predictions.open(directory)


def test_a_directory_without_predictions_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(PredictionsError, match=rf"^{path}: no predictions here .*evaluate a model first"):
            Predictions.open(path)


def test_files_can_be_read_without_this_project(directory):
    """With numpy, scipy and pyarrow alone."""
    scores, labels = np.load(directory / "scores.npy", mmap_mode="r"), scipy.sparse.load_npz(directory / "labels.npz")
    assert isinstance(labels, csc_array)
    assert scores.shape == labels.shape == (9, 5)
    assert pq.read_table(directory / "tags.parquet")["name"].to_pylist() == vocabulary().names

"""The predictions directory: complete or refused, whatever was killed, damaged or forged."""

import functools
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from joytag.core import files
from joytag.data import dataset
from joytag.evaluation import predictions, predictions_writer
from joytag.evaluation.predictions import Predictions, PredictionsError, label_matrix
from joytag.evaluation.predictions_writer import PredictionsWriter

pytestmark = pytest.mark.filterwarnings("ignore:.* are left out")

ROWS, TAGS, BATCH = 11, 5, 4
FACTS = {
    "model_files": {"model.safetensors": "ab"},
    "dtype": "float32",
    "batch": BATCH,
    "device": "cpu",
    "sources": ["drawn", "photo"],
    "date": "today",
}
BAD = [(2, "b.jpg: gone"), (8, "h.jpg: cut off")]


def vocabulary(n_tags: int = TAGS) -> dataset.TagTable:
    return dataset.TagTable(
        [f"tag_{i}" for i in range(n_tags)], np.arange(n_tags, dtype=np.int8), np.arange(n_tags), np.arange(n_tags) + 1
    )


@pytest.fixture
def posts() -> dataset.Posts:
    rng = np.random.default_rng(0)
    tags = [np.flatnonzero(rng.random(TAGS) < 0.4) for _ in range(ROWS)]
    return dataset.Posts(
        ids=np.arange(ROWS) * 3,
        offsets=np.cumsum([0, *map(len, tags)]).astype(np.int32),
        tags=np.concatenate(tags).astype(np.int16),
        hashes=rng.integers(0, 256, (ROWS, 32), dtype=np.uint8),
        sources=np.arange(ROWS, dtype=np.int16) % 2,
    )


@pytest.fixture
def scores() -> np.ndarray:
    values = np.random.default_rng(1).random((ROWS, TAGS)).astype(np.float16)
    values[0, :2] = 0, 1
    return values


def do_block(work: PredictionsWriter, block: int, scores: np.ndarray, bad: list = BAD, writer: int = 0) -> None:
    rows = np.array([row for row in range(block * BATCH, min((block + 1) * BATCH, ROWS)) if row not in dict(bad)])
    own = [entry for entry in bad if entry[0] // BATCH == block]
    work.write(block, rows.astype(np.int64), scores[rows.astype(np.int64)], own, writer)


def finished(directory: Path, posts: dataset.Posts, scores: np.ndarray, bad: list = BAD) -> Path:
    work = PredictionsWriter(directory, ROWS, TAGS, BATCH)
    work.begin(FACTS)
    for block in (2, 0, 1):
        do_block(work, block, scores, bad, writer=block % 2)
    work.finish(posts, label_matrix(posts, TAGS), vocabulary())
    return directory


@pytest.fixture
def directory(tmp_path, posts, scores) -> Path:
    return finished(tmp_path / "predictions", posts, scores)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_predictions_are_read_back_without_undecodable_images(directory, posts, scores):
    found, kept = Predictions.open(directory), [row for row in range(ROWS) if row not in dict(BAD)]
    np.testing.assert_array_equal(found.scores, scores[kept])
    assert found.scores.dtype == np.float16
    assert not found.scores.flags.writeable
    np.testing.assert_array_equal(found.ids, posts.ids[kept])
    np.testing.assert_array_equal(found.hashes, posts.hashes[kept])
    np.testing.assert_array_equal(found.sources, posts.sources[kept])
    np.testing.assert_array_equal(found.labels.toarray(), posts.labels(np.array(kept), TAGS))
    assert found.labels.dtype == bool
    assert found.labels.format == "csc"
    assert found.source_names == FACTS["sources"]
    assert found.tags.names == vocabulary().names
    for ours, theirs in zip(vars(found.tags).values(), vars(vocabulary()).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert FACTS.items() <= found.provenance.items()
    assert [(entry["id"], entry["reason"]) for entry in found.provenance["undecodable"]] == [
        (row * 3, reason) for row, reason in BAD
    ]
    assert found.provenance["undecodable"][0]["hash"] == posts.hashes[2].tobytes().hex()
    assert not (directory / "work").exists()


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


STEPS = [
    "files.write_text",
    "tables.write_table",
    "files.file_hash",
    "_save_rows",
    "files.sync",
    "scipy.sparse.save_npz",
    "shutil.rmtree",
]


@contextmanager
def dying(monkeypatch, number: int, after: bool) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt before or after the n-th step; yields the steps taken."""
    taken: list[str] = []
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for step in STEPS:
            *path, name = step.split(".")
            owner = functools.reduce(getattr, path, predictions_writer)
            original = getattr(owner, name)

            def take(*arguments, step=step, function=original, **options):
                taken.append(step)
                if len(taken) == number and not after:
                    raise KeyboardInterrupt
                result = function(*arguments, **options)
                if len(taken) == number:
                    raise KeyboardInterrupt
                return result

            patch.setattr(owner, name, take)
        yield taken


def test_predictions_killed_at_any_step_resume_to_the_same_bytes(tmp_path, posts, scores, directory, monkeypatch):
    with dying(monkeypatch, 0, False) as steps:
        finished(tmp_path / "whole", posts, scores)
    assert set(steps) == set(STEPS)
    assert len(steps) > 20
    for number, after in itertools.product(range(1, len(steps) + 1), (False, True)):
        work = PredictionsWriter(tmp_path / f"{number} {after}", ROWS, TAGS, BATCH)
        with dying(monkeypatch, number, after):
            finished(work.directory, posts, scores)
        if not predictions_writer.is_finished(work.directory, FACTS):
            with pytest.raises(PredictionsError, match=r"unfinished; run|no predictions here"):
                Predictions.open(work.directory)
            for block in {0, 1, 2} - work.begin(FACTS):
                do_block(work, block, scores)
            work.finish(posts, label_matrix(posts, TAGS), vocabulary())
        assert content(work.directory) == content(directory), (steps[number - 1], after)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_block_is_done_only_when_its_scores_and_journal_line_are_complete(tmp_path_factory, data):
    """Whatever part of them is lost in a crash."""
    work = PredictionsWriter(tmp_path_factory.mktemp("work") / "predictions", ROWS, TAGS, BATCH)
    scores = np.random.default_rng(2).random((ROWS, TAGS)).astype(np.float16)
    work.begin(FACTS)
    for block in (0, 1, 2):
        do_block(work, block, scores, [])
    assert work.begin(FACTS) == {0, 1, 2}
    journal, stored = work.directory / "work" / "done.0.jsonl", work.directory / "work" / "scores.npy"
    text = journal.read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    journal.write_bytes(text[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0", b"\xff{"])))
    lines = text[:cut].count(b"}\n") + text[:cut].endswith(b"}")
    flipped, content = data.draw(st.none() | st.integers(0, 2)), bytearray(stored.read_bytes())
    if flipped is not None:
        content[len(content) - 2 * ROWS * TAGS + 2 * flipped * BATCH * TAGS] ^= 1
        stored.write_bytes(content)
    done = work.begin(FACTS)
    assert set(range(max(0, lines - 1))) - {flipped} <= done <= set(range(lines)) - {flipped}
    for block in {0, 1, 2} - done:
        do_block(work, block, scores, [])
    assert work.begin(FACTS) == {0, 1, 2}, "a line after one that was cut off is read"
    np.testing.assert_array_equal(np.load(stored), scores)


def test_blocks_with_undecodable_images_are_repeated(tmp_path, posts, scores):
    """A disk may have been missing."""
    work = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    assert work.begin(FACTS) == set()
    do_block(work, 1, scores)
    do_block(work, 2, scores)
    assert work.begin(FACTS) == {1}
    do_block(work, 0, scores, [])
    do_block(work, 2, scores, [])
    work.finish(posts, label_matrix(posts, TAGS), vocabulary())
    np.testing.assert_array_equal(Predictions.open(work.directory).scores, scores)


def test_a_missing_block_prevents_finishing(tmp_path, posts, scores):
    work = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    work.begin(FACTS)
    for block in (0, 2):
        do_block(work, block, scores)
    with pytest.raises(PredictionsError, match="1 blocks changed after they were written; evaluate again"):
        work.finish(posts, label_matrix(posts, TAGS), vocabulary())


def test_predictions_without_any_image_are_refused_in_one_line(tmp_path, posts, scores):
    gone = [(row, f"{row}.jpg: gone") for row in range(ROWS)]
    with pytest.raises(
        PredictionsError, match=r"^0\.jpg: gone, and 10 other images failed, too; is the disk mounted\?$"
    ):
        finished(tmp_path / "predictions", posts, scores, gone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, -0.0, 1.001])
def test_invalid_scores_are_refused(tmp_path, scores, value):
    work = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    work.begin(FACTS)
    scores[5, 2] = value
    do_block(work, 0, scores)
    with pytest.raises(PredictionsError, match=r"row 5: the model's scores are not numbers.*try another precision"):
        do_block(work, 1, scores)
    assert work.begin(FACTS) == set()
    assert work.done().keys() == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_files": {"model.safetensors": "cd"}}, "another model;"),
        ({"dtype": "float16"}, r"another precision \(float32 there, float16 now\);"),
        ({"split_sha256": "12"}, "another dataset"),
    ],
)
def test_predictions_with_other_facts_are_neither_reused_nor_resumed(directory, tmp_path, change, message):
    assert predictions_writer.is_finished(directory, FACTS)
    with pytest.raises(PredictionsError, match=rf"{message}.*remove it, or choose another output directory$"):
        predictions_writer.is_finished(directory, FACTS | change)
    work = PredictionsWriter(tmp_path / "begun", ROWS, TAGS, BATCH)
    work.begin(FACTS)
    with pytest.raises(PredictionsError, match=message):
        work.begin(FACTS | change)


def test_rounding_differences_do_not_invalidate_finished_predictions(directory, tmp_path):
    moved = FACTS | {"date": "tomorrow", "dataset": "elsewhere"}
    assert predictions_writer.is_finished(directory, moved | {"batch": 8, "device": "cuda"})
    work = PredictionsWriter(tmp_path / "begun", ROWS, TAGS, BATCH)
    work.begin(FACTS)
    work.begin(moved)
    with pytest.raises(PredictionsError, match=r"another batch \(4 there, 8 now\)"):
        work.begin(moved | {"batch": 8})


def test_a_directory_with_other_content_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PredictionsError, match="holds something other than predictions; choose another output"):
        PredictionsWriter(tmp_path, ROWS, TAGS, BATCH).begin(FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_disk_that_is_too_small_is_reported_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    work = PredictionsWriter(tmp_path / "predictions", 500_000, 5_813, 64)
    with pytest.raises(PredictionsError, match=r"needs 11,626 MB, but the disk has 2,000 MB free; free some space"):
        work.begin(FACTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * 10**9))
    work.begin(FACTS)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "empty": b"",
                "cut off": data[:-3],
                "longer": data + b"\n\n\n",
                "flipped": data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :],
            }[kind]
        )


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


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off"])
def test_damaged_work_is_refused_in_one_line(tmp_path, scores, kind):
    work = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    work.begin(FACTS)
    do_block(work, 0, scores)
    damage(work.directory / "work" / "scores.npy", kind)
    with pytest.raises(PredictionsError, match=r"scores\.npy: damaged.*; remove .* and evaluate again$"):
        work.begin(FACTS)


def test_files_can_be_read_without_this_project(directory, posts):
    """With numpy, scipy and pyarrow alone."""
    scores, labels = np.load(directory / "scores.npy", mmap_mode="r"), scipy.sparse.load_npz(directory / "labels.npz")
    assert isinstance(labels, csc_array)
    assert scores.shape == labels.shape == (9, 5)
    assert pq.read_table(directory / "tags.parquet")["name"].to_pylist() == vocabulary().names

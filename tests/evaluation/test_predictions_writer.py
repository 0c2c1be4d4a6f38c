"""Predictions written block by block: killed at any step, resumed, on a full disk, beside other files."""

import functools
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_predictions import (
    BATCH,
    FACTS,
    ROWS,
    SCORES,
    TAGS,
    content,
    damage,
    finish,
    write_block,
    write_finished,
)

from joytag.evaluation import predictions_writer
from joytag.evaluation.predictions import Predictions, PredictionsError
from joytag.evaluation.predictions_writer import PredictionsWriter

pytestmark = pytest.mark.filterwarnings("ignore:.* are left out")


@pytest.fixture
def directory(tmp_path) -> Path:
    """Finished predictions of POSTS with SCORES."""
    return write_finished(tmp_path / "predictions")


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


def test_predictions_killed_at_any_step_resume_to_the_same_bytes(tmp_path, directory, monkeypatch):
    with dying(monkeypatch, 0, False) as steps:
        write_finished(tmp_path / "whole")
    assert set(steps) == set(STEPS)
    assert len(steps) > 20
    for number, after in itertools.product(range(1, len(steps) + 1), (False, True)):
        writer = PredictionsWriter(tmp_path / f"{number} {after}", ROWS, TAGS, BATCH)
        with dying(monkeypatch, number, after):
            write_finished(writer.directory)
        if not predictions_writer.is_finished(writer.directory, FACTS):
            with pytest.raises(PredictionsError, match=r"unfinished; run|no predictions here"):
                Predictions.open(writer.directory)
            for block in {0, 1, 2} - writer.begin(FACTS):
                write_block(writer, block, SCORES)
            finish(writer)
        assert content(writer.directory) == content(directory), (steps[number - 1], after)


@given(st.data())
@settings(max_examples=60)
def test_a_block_is_done_only_when_its_scores_and_journal_line_are_complete(tmp_path_factory, data):
    """Whatever part of them is lost in a crash."""
    writer = PredictionsWriter(tmp_path_factory.mktemp("work") / "predictions", ROWS, TAGS, BATCH)
    scores = np.random.default_rng(2).random((ROWS, TAGS)).astype(np.float16)
    writer.begin(FACTS)
    for block in (0, 1, 2):
        write_block(writer, block, scores, [])
    assert writer.begin(FACTS) == {0, 1, 2}
    journal, stored = writer.directory / "work" / "done.0.jsonl", writer.directory / "work" / "scores.npy"
    text = journal.read_bytes()
    cut = data.draw(st.integers(0, len(text)))
    journal.write_bytes(text[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0", b"\xff{"])))
    lines = text[:cut].count(b"}\n") + text[:cut].endswith(b"}")
    flipped, content = data.draw(st.none() | st.integers(0, 2)), bytearray(stored.read_bytes())
    if flipped is not None:
        content[len(content) - 2 * ROWS * TAGS + 2 * flipped * BATCH * TAGS] ^= 1
        stored.write_bytes(content)
    done = writer.begin(FACTS)
    assert set(range(max(0, lines - 1))) - {flipped} <= done <= set(range(lines)) - {flipped}
    for block in {0, 1, 2} - done:
        write_block(writer, block, scores, [])
    assert writer.begin(FACTS) == {0, 1, 2}, "a line after one that was cut off is read"
    np.testing.assert_array_equal(np.load(stored), scores)


def test_blocks_with_undecodable_images_are_repeated(tmp_path):
    """A disk may have been missing."""
    writer = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    assert writer.begin(FACTS) == set()
    write_block(writer, 1, SCORES)
    write_block(writer, 2, SCORES)
    assert writer.begin(FACTS) == {1}
    write_block(writer, 0, SCORES, [])
    write_block(writer, 2, SCORES, [])
    finish(writer)
    np.testing.assert_array_equal(Predictions.open(writer.directory).scores, SCORES)


def test_a_missing_block_prevents_finishing(tmp_path):
    writer = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    for block in (0, 2):
        write_block(writer, block, SCORES)
    with pytest.raises(PredictionsError, match="1 blocks changed after they were written; evaluate again"):
        finish(writer)


def test_predictions_without_any_image_are_refused_in_one_line(tmp_path):
    gone = [(row, f"{row}.jpg: gone") for row in range(ROWS)]
    with pytest.raises(
        PredictionsError, match=r"^0\.jpg: gone, and 10 other images failed, too; is the disk mounted\?$"
    ):
        write_finished(tmp_path / "predictions", gone)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, -0.0, 1.001])
def test_invalid_scores_are_refused(tmp_path, value):
    writer = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    scores = SCORES.copy()
    scores[5, 2] = value
    write_block(writer, 0, scores)
    with pytest.raises(PredictionsError, match=r"row 5: the model's scores are not numbers.*try another precision"):
        write_block(writer, 1, scores)
    assert writer.begin(FACTS) == set()
    assert writer.done().keys() == {0}


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
    writer = PredictionsWriter(tmp_path / "begun", ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    with pytest.raises(PredictionsError, match=message):
        writer.begin(FACTS | change)


def test_rounding_differences_do_not_invalidate_finished_predictions(directory, tmp_path):
    moved = FACTS | {"date": "tomorrow", "dataset": "elsewhere"}
    assert predictions_writer.is_finished(directory, moved | {"batch": 8, "device": "cuda"})
    writer = PredictionsWriter(tmp_path / "begun", ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    writer.begin(moved)
    with pytest.raises(PredictionsError, match=r"another batch \(4 there, 8 now\)"):
        writer.begin(moved | {"batch": 8})


def test_a_directory_with_other_content_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PredictionsError, match="holds something other than predictions; choose another output"):
        PredictionsWriter(tmp_path, ROWS, TAGS, BATCH).begin(FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_of_another_program_with_the_name_of_the_unfinished_work_is_left_alone(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of work")
    with pytest.raises(PredictionsError, match="holds something other than predictions"):
        PredictionsWriter(tmp_path, ROWS, TAGS, BATCH).begin(FACTS)
    (tmp_path / "work" / "thesis.txt").rename(tmp_path / "work" / "scores.npy")
    PredictionsWriter(tmp_path, ROWS, TAGS, BATCH).begin(FACTS)  # of a process that was killed at the start


def test_a_disk_that_is_too_small_is_reported_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    writer = PredictionsWriter(tmp_path / "predictions", 500_000, 5_813, 64)
    with pytest.raises(PredictionsError, match=r"needs 11,626.0 MB, but the disk has 2,000.0 MB free; free some space"):
        writer.begin(FACTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * 10**9))
    writer.begin(FACTS)


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off"])
def test_damaged_work_is_refused_in_one_line(tmp_path, kind):
    writer = PredictionsWriter(tmp_path / "predictions", ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    write_block(writer, 0, SCORES)
    damage(writer.directory / "work" / "scores.npy", kind)
    with pytest.raises(PredictionsError, match=r"scores\.npy: damaged.*; remove .* and evaluate again$"):
        writer.begin(FACTS)

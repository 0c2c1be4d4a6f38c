import multiprocessing
from pathlib import Path

import pytest
from requirements import needs_unix

from joytag.core import files


def write_repeatedly(path: Path, letter: str) -> None:
    for _ in range(100):
        files.write_text(path, letter * 100_000)


@needs_unix
def test_processes_that_write_the_same_file_never_mix_their_content(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "a" * 100_000)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_repeatedly, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_each_write_has_a_partial_name_of_its_own(tmp_path):
    path = tmp_path / ("x" * 250)  # a longer name than this plus a suffix is impossible
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail():
        with files.replacing(path) as partial:
            partial.write_text("incomplete")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_partial_files_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in (".tags.jsonl.part", "0123456789abcdef.part", ".hidden", "file.part")]
    for path in kept:
        path.touch()
    with files.replacing(tmp_path / "file.txt") as partial:
        left = partial.with_name(partial.name)
        partial.write_text("content")
    left.write_text("left by a killed process")
    files.remove_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "file.txt"])

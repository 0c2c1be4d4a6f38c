import errno
import multiprocessing
import os
from contextlib import nullcontext
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


@pytest.mark.parametrize("refusals", [0, 3, 4])
def test_a_rename_waits_for_a_program_that_has_the_file_open(tmp_path, monkeypatch, refusals):
    (tmp_path / "from").write_text("content")
    attempts, replace = iter(range(9)), Path.replace

    def refuse(self, target):
        if next(attempts) < refusals:
            raise PermissionError(13, "is being used by another process")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(PermissionError) if refusals == 4 else nullcontext():
        files.rename(tmp_path / "from", tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["from" if refusals == 4 else "to"]


def test_a_directory_is_not_flushed_where_none_can_be_opened(tmp_path, monkeypatch):
    """Windows opens no directories, and flushes only files that are opened for writing."""
    opened, before = [], os.open

    def record(path, flags):
        opened.append((path, flags))
        return before(path, flags)

    (tmp_path / "file").touch()
    if hasattr(os, "O_DIRECTORY"):
        monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", record)
    files.sync(tmp_path / "file")
    files.sync(tmp_path)
    assert opened == [(tmp_path / "file", os.O_RDWR)]


def test_an_error_without_a_file_names_the_file_that_was_written(tmp_path):
    full = pytest.raises(OSError, match=r"No space left on device: '.*file\.txt'")
    with full, files.replacing(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError, match="'gone'"), files.replacing(tmp_path / "file.txt"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "gone")

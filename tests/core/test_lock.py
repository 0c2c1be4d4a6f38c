import errno
import multiprocessing
import os
import re
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from joytag.core import files, lock
from joytag.core.lock import Exists, InUse, sole_creator, sole_editor, sole_writer, unfinished

fcntl = pytest.importorskip("fcntl")  # Unix has it
CONTEXT = multiprocessing.get_context("fork")


def hold(directory: Path, pipe: Connection) -> None:
    with sole_writer(directory):
        pipe.send("held")
        pipe.recv()


@pytest.fixture
def owner(tmp_path):
    """A process that holds the lock of `tmp_path/out`, and the end of a pipe that ends it."""
    ours, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path / "out", its))
    process.start()
    assert ours.recv() == "held"
    yield process, ours
    process.kill()
    process.join()


def test_a_second_writer_learns_which_process_writes_since_when_and_what_to_do(owner, tmp_path):
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(InUse) as error, sole_writer(tmp_path / "out"):
        pytest.fail("two processes have the lock")
    assert re.search(
        rf"^{tmp_path}/out: \S.* \(process {owner[0].pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S*\) writes "
        "there; wait until it ends, or choose another output directory$",
        str(error.value),
    )
    assert sorted((tmp_path / "out").iterdir()) == before


def test_the_next_writer_may_begin_when_the_owner_has_ended(owner, tmp_path):
    process, pipe = owner
    pipe.send("end")
    process.join()
    with sole_writer(tmp_path / "out"):
        pass


def test_an_owner_may_remove_the_directory_before_the_next_writer_has_the_lock(tmp_path, monkeypatch):
    directory, system_open = tmp_path / "out", os.open

    def open_late(*arguments, **options):
        monkeypatch.undo()
        directory.rmdir()
        return system_open(*arguments, **options)

    monkeypatch.setattr(os, "open", open_late)
    with sole_writer(directory):
        assert (directory / lock.OWNER).exists()


def test_a_killed_owner_does_not_block_the_next(owner, tmp_path):
    process, _ = owner
    left = tmp_path / "out" / f".{'0' * 16}.part"
    left.touch()
    process.kill()
    process.join()
    assert (tmp_path / "out" / lock.OWNER).exists()
    with sole_writer(tmp_path / "out"):
        assert str(os.getpid()) in (tmp_path / "out" / lock.OWNER).read_text()
        assert not left.exists()


def test_children_of_a_killed_owner_do_not_keep_its_lock(tmp_path):
    def run(pipe: Connection) -> None:
        with sole_writer(tmp_path / "out"):
            child = CONTEXT.Process(target=time.sleep, args=(60,))
            child.start()
            pipe.send(child.pid)
            time.sleep(60)

    ours, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=run, args=(its,))
    process.start()
    child = ours.recv()
    process.kill()
    process.join()
    try:
        with sole_writer(tmp_path / "out"):
            os.kill(child, 0)  # still alive
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("owner_file", [None, "", "\x1b[31mred", b"\xff"])
def test_the_second_writer_gets_a_line_whatever_the_owner_has_written(tmp_path, owner_file):
    with sole_writer(tmp_path):
        if owner_file is None:
            (tmp_path / lock.OWNER).unlink()
        else:
            content = owner_file if isinstance(owner_file, bytes) else owner_file.encode()
            (tmp_path / lock.OWNER).write_bytes(content)
        with pytest.raises(InUse, match="another process writes there"), sole_writer(tmp_path):
            pass


def contend(directory: Path) -> None:
    for _ in range(30):
        try:
            with sole_writer(directory):
                descriptor = os.open(directory / "owned", os.O_CREAT | os.O_EXCL)  # fails when another has the lock
                time.sleep(0.001)
                (directory / "owned").unlink()
                os.close(descriptor)
        except InUse:
            pass


def test_three_processes_never_have_the_lock_at_once(tmp_path):
    (tmp_path / "kept").touch()
    processes = [CONTEXT.Process(target=contend, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_nothing_is_left_behind(tmp_path):
    with sole_writer(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="failed"), sole_writer(tmp_path / "empty"):
        raise ValueError("failed")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    with sole_writer(tmp_path / "run"):
        files.write_text(tmp_path / "run" / "result", "content")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_a_directory_that_cannot_be_locked_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="cannot be locked: No locks available") as error, sole_writer(tmp_path / "out"):
        pass
    assert error.value.filename == str(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_locks_gets_one_by_the_presence_of_the_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path):
        with pytest.raises(InUse), sole_writer(tmp_path):
            pass
        assert (tmp_path / lock.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_second_editor_of_a_file_learns_which_process_writes_it(tmp_path):
    file = tmp_path / "tags.csv"
    with sole_editor(file) as folder:
        assert folder == unfinished(file)
        with (
            pytest.raises(InUse, match=rf"tags\.csv: .* \(process {os.getpid()} on .* writes it; wait"),
            sole_editor(file),
        ):
            pytest.fail("two editors have the file")
    assert not list(tmp_path.iterdir())


def test_unfinished_work_of_an_editor_stays(tmp_path):
    with sole_editor(tmp_path / "tags.csv") as folder:
        (folder / "rows").touch()
    with sole_editor(tmp_path / "tags.csv") as folder:
        assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["rows"]


def test_a_directory_is_created_whole_even_where_an_empty_one_is(tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    abandoned = unfinished(directory) / "new" / "old.txt"
    abandoned.parent.mkdir(parents=True)
    abandoned.write_text("of a killed process")
    with sole_creator(directory) as new:
        (new / "folder").mkdir()
        (new / "folder/file.txt").write_text("x")
        assert not list(directory.iterdir())
    assert [path.relative_to(directory).as_posix() for path in directory.rglob("*.txt")] == ["folder/file.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_creates_no_directory_and_names_it_unless_another_file_caused_it(tmp_path):
    directory, source = tmp_path / "out", tmp_path / "source.txt"

    def create(file: Path | None) -> None:
        with sole_creator(directory) as new:
            (new / "file.txt").write_text("x")
            raise OSError(errno.ENOSPC, "full", None if file is None else str(file))

    for file, named in ((None, directory), (unfinished(directory) / "new/file.txt", directory), (source, source)):
        with pytest.raises(OSError, match="full") as error:
            create(file)
        assert error.value.filename == str(named)
        assert not list(tmp_path.iterdir())


def test_what_exists_is_never_replaced(tmp_path):
    directory = tmp_path / "out"

    def create() -> None:
        with sole_creator(directory) as new:
            (new / "ours.txt").write_text("x")
            directory.mkdir()
            (directory / "theirs.txt").write_text("x")  # by another program, meanwhile

    with pytest.raises(Exists, match="out: exists already"):
        create()
    assert [path.name for path in directory.iterdir()] == ["theirs.txt"]
    with pytest.raises(Exists, match="out: exists already"), sole_creator(directory):
        pytest.fail("its content would be lost")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with sole_creator(tmp_path / "new"), pytest.raises(InUse, match="new: "), sole_creator(tmp_path / "new"):
        pytest.fail("two processes create it")

"""One writer for each directory: a lock that ends with its process, and its owner's name for those who wait."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import filelock

from joytag.core import files

LOCK = ".lock"
OWNER = ".lock-owner"  # a file of its own: on Windows nobody else can read a locked file
FILES = (OWNER, LOCK)
REMEDY = "wait until it ends, or choose another output directory"
PATIENCE = 0.3  # seconds; an owner that ends or has just begun is not reported


class InUse(ValueError):
    """Raised when another process writes to a directory; one line with the process, its start and the remedy."""


@contextmanager
def sole_writer(directory: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Create a directory if it is missing, and be the only process that writes to it within a `with` block.

    The lock belongs to the process: the system frees it when the process ends, even when it is killed. What a killed
    process left of a file that it was writing is removed. Raises InUse when another process has the lock, before
    anything is written, and OSError when the directory cannot be written or its file system has no locks.
    """
    is_new = not directory.exists()
    lock = _acquire(directory, remedy)
    try:
        files.remove_partials(directory)
        files.write_text(directory / OWNER, _description())
        yield
    finally:
        for name in FILES:  # removed while the lock is held: filelock takes no lock on a removed file
            with suppress(OSError):  # on Windows filelock itself removes the lock's file
                (directory / name).unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # it has content
                directory.rmdir()


def _acquire(directory: Path, remedy: str, attempts: int = 3) -> filelock.BaseFileLock:
    """Create a directory if it is missing, and take its lock. Raises as `sole_writer` does."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        raise InUse(f"{directory}: {_owner(directory)} writes there; {remedy}") from None
    except OSError as error:
        if attempts > 1 and not directory.exists():  # its owner has ended just now and removed it
            return _acquire(directory, remedy, attempts - 1)
        raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(directory)) from None
    return lock


@contextmanager
def sole_editor(file: Path) -> Iterator[Path]:
    """Be the only process that changes a file within a `with` block; yield `unfinished(file)`, which now exists.

    The folder is removed if it is empty afterwards. Raises InUse and OSError as `sole_writer` does.
    """
    folder = unfinished(file)
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(sole_writer(folder))
            except InUse:
                raise InUse(f"{file}: {_owner(folder)} writes it; wait until it ends") from None
            yield folder
    finally:
        with suppress(OSError):  # it has content, or another process has begun
            folder.rmdir()


class Exists(ValueError):
    """Raised for a directory that is to be created but holds something; nothing in it is changed."""


@contextmanager
def sole_creator(directory: Path) -> Iterator[Path]:
    """Create a directory atomically: yield a hidden one, which gets its name when the `with` block succeeds.

    Everything in it is then on the disk. Raises Exists, also after the block, if there is a file of that name or a
    directory that is not empty, InUse if another process creates it, and OSError that names it.
    """
    directory = directory.resolve()
    _check_free(directory)
    with sole_editor(directory) as folder:
        new = folder / "new"
        shutil.rmtree(new, ignore_errors=True)  # what a killed process left
        try:
            new.mkdir()
            yield new
            for path in [*new.rglob("*"), new]:
                files.sync(path)
            _check_free(directory)
            if directory.exists():
                directory.rmdir()
            files.rename(new, directory)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError) and str(folder) in str(error.filename2 or error.filename or folder):
                error.filename, error.filename2 = str(directory), None  # of its files only hidden names are known
            raise
    files.sync(directory.parent)


def _check_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and next(directory.iterdir(), None) is None):
        raise Exists(f"{directory}: exists already; remove it, or choose another output directory")


def unfinished(file: Path) -> Path:
    """Return the hidden folder beside a file for what belongs into it."""
    return file.with_name(f".{file.name}.unfinished")


def _description() -> str:
    """Return this process's command, number and host, and the time, in one line."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    command = " ".join([name, *(argument for argument in sys.argv[1:2] if not argument.startswith("-"))])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return f"{command} (process {os.getpid()} on {socket.gethostname()}, since {since})"


def _owner(directory: Path) -> str:
    """Return the owner's description of itself."""
    try:
        text = (directory / OWNER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    return text if text and text.isprintable() else "another process"

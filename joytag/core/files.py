"""Atomic writing, hashes, and flushing to disk."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".part"  # suffix of files that are being written
ABANDONED = 3600  # seconds after which no process still writes a file, where others may write at the same time


def file_hash(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path, alias: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError of a `with` block that names no file, as writing raises it, or names `alias`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(alias)):
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a hidden name beside it, and rename that to `path` when the block succeeds.

    The name is different for every call, so that processes that write the same file do not mix their content. Raises
    OSError that names `path`.
    """
    # Of fixed length: the file's own name plus a suffix may be longer than the file system allows.
    partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
    try:
        with naming(path, partial):
            yield partial
            rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory; a file at `target` is replaced.

    Waits a second at most while another program, such as a virus scanner, has one of them open, which Windows refuses.
    """
    for patience in (0.05, 0.2, 0.75):
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(patience)
        else:
            return
    source.replace(target)


def remove_partials(directory: Path, age: float = 0) -> None:
    """Remove the incomplete files of killed processes that are at least `age` seconds old.

    Without an age, call it only while no other process writes there.
    """
    for path in directory.glob(f".{'[0-9a-f]' * 16}{PARTIAL}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with its parent directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Flush a file to disk, or a directory where the system can open one: Windows cannot."""
    is_directory = path.is_dir()
    if is_directory and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)  # Windows flushes no file opened to read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

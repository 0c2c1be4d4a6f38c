"""How a command ended, and a check of one-line errors."""

from collections.abc import Callable
from dataclasses import dataclass

HANG = 240  # seconds after which a test fails instead of waiting for a process; a slow machine needs part of them


@dataclass
class Done:
    """A command's exit code and output."""

    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]  # takes a command's name and its arguments


def assert_one_line(done: Done, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def succeeded(done: Done) -> Done:
    """Return a command that ended well."""
    assert done.returncode == 0, done.stderr
    return done

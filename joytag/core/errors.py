"""The error that ends a program, and the exit codes of all programs."""

from __future__ import annotations

import errno
import os
import re
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """A program's exit code; documented for users in docs/long-runs.md."""

    DONE = 0
    FAILED = 1  # a process died or hangs
    USER_ERROR = 2  # a setting, a file or the dataset is wrong
    DIVERGED = 3  # gradients or weights are no longer finite
    REQUEUE = 75  # stopped by SIGTERM or SIGUSR1, state saved; "try again later" in sysexits.h
    INTERRUPTED = 130  # stopped by Ctrl-C; shells use the same code


FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = {  # for errors of the operating system
    errno.EACCES: "check its owner and permissions",
    errno.EDQUOT: "free some of your quota there, or choose another disk",
    errno.EIO: "check the disk and its connection",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer workers",
    errno.ENOSPC: "free some space there, or choose another disk",
    errno.EPERM: "check its owner and permissions",
    errno.EROFS: "choose a directory that can be written",
}


def describe(error: OSError) -> str:
    """Return the file of an error, the reason and, if one is known, the remedy."""
    # Of a copy, the system names the source as well as the file that it cannot write.
    file = error.filename2 if error.filename2 and error.errno in FULL_DISK else error.filename
    reason = f"{file}: {error.strerror}" if file else str(error)
    return "; ".join([reason, *([REMEDIES[error.errno]] if error.errno in REMEDIES else [])])


def first_line(error: Exception) -> str:
    """Return the first line of another library's message, at most 500 characters, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


def system_error(error: Exception, path: Path) -> OSError:
    """Return the OSError for a file that another library has raised as an error of its own, with errno in its text."""
    found = re.search(r'(?:os error |"errno":")(\d+)', str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else OSError(f"{path}: {error}")


class Exit(Exception):
    """End a program with an exit code, for a reason in one line.

    Among several processes, FAILED concerns one process. Any other code concerns all, and only rank 0 prints the
    reason.
    """

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exit):
    """Raised when a signal asks the program to stop; its work is saved and can be resumed."""


class ProcessLost(Exit):
    """Raised when another process died or does not answer; the message names it."""


class Diverged(Exit):
    """Raised when training fails: gradients or weights are no longer finite."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.DIVERGED)


class WeightsDiverged(Diverged):
    """Raised when weights are no longer finite; only earlier checkpoints are left."""


class GradientsDiverged(Diverged):
    """Raised after too many steps in a row without finite gradients; the weights before them are saved."""

"""Errors that end a program, and the exit codes of all programs."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a program's exit code means; README and docs/long-runs.md explain them."""

    DONE = 0
    FAILED = 1  # a process died or hangs
    USER_ERROR = 2  # a setting, a file or the dataset is wrong
    DIVERGED = 3  # gradients or weights are no longer finite
    REQUEUE = 75  # stopped by SIGTERM or SIGUSR1, saved; sysexits.h's "try again later"
    INTERRUPTED = 130  # stopped by Ctrl-C; the shell's code for it


class Exit(Exception):
    """The end of a program, for a reason in one line, with its exit code.

    Among several processes FAILED concerns one process; any other code concerns all, and rank 0 alone gives the reason.
    """

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code

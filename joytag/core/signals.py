"""Requests to stop, by signal, kept until a step is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from joytag.core.errors import ExitCode

CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.REQUEUE,
    signal.SIGUSR1: ExitCode.REQUEUE,
}


class Interrupts:
    """In a `with` block, notes SIGINT, SIGTERM and SIGUSR1 (which Slurm sends before its limit) in `code`.

    `code` is the exit code that is due, 0 while none is. After the first Ctrl-C the next one ends the process at once,
    and so does any signal when it is `hopeless` to wait for the end of a step. When the block ends with an exception,
    which ends the process, too, signals do not get in the way of that.
    """

    def __init__(self, hopeless: Callable[[], bool] = lambda: False) -> None:
        self.code, self.hopeless = 0, hopeless

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in CODES}
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.code = max(self.code, CODES[signal.Signals(number)])
        if self.hopeless():
            os._exit(self.code)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

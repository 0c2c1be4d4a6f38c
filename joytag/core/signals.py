"""Signals that ask to stop, recorded until the current step is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

from joytag.core.errors import ExitCode

CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.REQUEUE}
if hasattr(signal, "SIGUSR1"):  # Slurm sends it before a job's time limit; Windows has none
    CODES[signal.SIGUSR1] = ExitCode.REQUEUE


class Interrupts:
    """Record the signals of CODES within a `with` block: `code` is the exit code that they ask for, 0 without any.

    After a first Ctrl-C, a second one ends the process at once. So does any signal while `hopeless()` is true, when no
    step can finish. After an exception the handlers stay, so that no signal disturbs the end of the process.
    """

    def __init__(self, hopeless: Callable[[], bool] = lambda: False) -> None:
        self.code, self.hopeless = 0, hopeless

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._record) for number in CODES}
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.code = max(self.code, CODES[signal.Signals(number)])
        if self.hopeless():
            os._exit(self.code)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

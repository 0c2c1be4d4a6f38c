"""Signals that ask to stop, recorded until the current step is done."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from joytag.core.errors import ExitCode

CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.REQUEUE}
if hasattr(signal, "SIGUSR1"):  # Slurm sends it before a job's time limit; Windows has none
    CODES[signal.SIGUSR1] = ExitCode.REQUEUE

LIFELINE = "JOYTAG_LIFELINE"  # in the environment: this process ends with the one that started it
# Linux' call that sets what happens to this process; found here, since after a fork no library may be loaded.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if hasattr(signal, "SIGKILL") else None


def die_with_parent(parent: int | None = None) -> bool:
    """Have the system kill this process as soon as the thread that started it ends; returns whether it can (Linux).

    If `parent`, the number of the process that started it, has ended already, this process ends here.
    """
    obeys = _PRCTL is not None and _PRCTL(1, signal.SIGKILL) == 0  # 1: PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(ExitCode.FAILED)
    return obeys


def obey_lifeline() -> None:
    """End this process with the one that started it, if LIFELINE is set; without `die_with_parent`, when stdin ends."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(ExitCode.FAILED)

    if LIFELINE in os.environ and not die_with_parent():
        threading.Thread(target=watch, daemon=True).start()


class Interrupts:
    """Record the signals of CODES within a `with` block: `code` is the exit code that they ask for, 0 without any.

    After a first Ctrl-C, a second one ends the process at once. So does any signal while `hopeless()` is true, when no
    step can finish. A Ctrl-C raises KeyboardInterrupt while `idle()` is true, when there is nothing to save. After an
    exception the handlers stay, so that no signal disturbs the end of the process.
    """

    def __init__(self, hopeless: Callable[[], bool] = lambda: False, idle: Callable[[], bool] = lambda: False) -> None:
        self.code, self.hopeless, self.idle = 0, hopeless, idle

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
            if self.idle():
                raise KeyboardInterrupt


@contextmanager
def starting_processes() -> Iterator[None]:
    """Ignore Ctrl-C in a `with` block and, on Unix, in the processes that it starts until they end.

    A terminal sends Ctrl-C to all processes; those that still import their modules would print tracebacks.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

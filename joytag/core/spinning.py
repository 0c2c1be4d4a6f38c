"""Let the threads of an operation sleep while other programs want the cores, instead of spin.

torch's threads wait for each other several hundred times in a training step. GNU's OpenMP library, which torch has on
Linux, lets them spin for a millisecond first: on idle cores that is fastest, but beside another program they spin on
the core that the missing thread needs. The library stops spinning by itself while a process has more threads than there
are cores. So while the machine is busy, a second team of threads is kept, which does nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from joytag.core import devices

INTERVAL = 1.0  # seconds between two looks at the machine
BUSY, IDLE = 0.3, 0.1  # cores that other programs use, beyond those that this process leaves them
GRAIN = 1 << 15  # elements that torch gives a thread at least
LIBRARIES = ctypes.CDLL(None) if sys.platform == "linux" else None  # the functions of all that this process has loaded


@contextmanager
def sleeping_when_busy() -> Iterator[None]:
    """Context in which waiting threads sleep while other programs want this process's cores; on Linux, else nothing.

    It changes no result, since an operation is divided among as many threads as before.
    """
    if torch.get_num_threads() == 1 or not hasattr(LIBRARIES, "omp_set_num_threads"):
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(ended: threading.Event) -> None:
    """Keep a second team of threads while other programs use cores, until an event, or if /proc/stat can't be read."""
    spare, is_kept = devices.cores() - torch.get_num_threads(), False
    with suppress(OSError, ValueError), ExitStack() as team:
        before = Usage.now()
        while not ended.wait(INTERVAL):
            now = Usage.now()
            others, before = now.of_others(before) - spare, now
            if is_kept and others <= IDLE:
                team.close()
            elif not is_kept and others > BUSY:
                team.enter_context(second_team())
            is_kept = others > (IDLE if is_kept else BUSY)


class Usage(NamedTuple):
    """Clocks in seconds: the time, and the processor time of this process and of all processes on its cores."""

    time: float
    own: float
    total: float

    @classmethod
    def now(cls) -> Usage:
        """Read the clocks, the last one from /proc/stat."""
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        rows = [line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines()]
        ticks = sum(int(row[i]) for row in rows if row[0] in cores for i in (1, 2, 3, 6, 7))  # neither idle nor waiting
        return cls(time.monotonic(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK"))

    def of_others(self, before: Usage) -> float:
        """Return how many cores other processes have used since, on average."""
        return (self.total - before.total - (self.own - before.own)) / (self.time - before.time)


@contextmanager
def second_team() -> Iterator[None]:
    """Context in which this process has threads of OpenMP that do nothing, one more than there are cores."""
    begun, ended = threading.Event(), threading.Event()

    def keep() -> None:
        assert LIBRARIES is not None
        LIBRARIES.omp_set_num_threads(devices.cores() + 1)  # of the operations of this thread of Python
        torch.zeros((devices.cores() + 1) * GRAIN).add_(1)
        begun.set()
        ended.wait()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()

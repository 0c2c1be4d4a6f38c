"""Decoding processes: how many, what they share, and what happens when one dies or hangs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from joytag.core import devices, distributed, signals
from joytag.core.errors import Exit, ExitCode, first_line
from joytag.data.dataset import DatasetError

MOST = 4 if sys.platform == "win32" else 16  # Windows reserves gigabytes for each process that loads torch with CUDA
SHARED = Path("/dev/shm")  # Linux's file system for memory that processes share


class WorkerLost(Exit):
    """Raised when a decoding process dies or hangs; one line that names it."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise RuntimeError after some seconds (0: never). DataLoader's own timeout misses workers that hang half-way.

    Windows has no alarms: there the decoding processes are killed, after which DataLoader raises the error.
    """

    def ring(*_: object) -> None:
        raise RuntimeError(f"DataLoader timed out after {seconds} seconds")

    if not seconds:
        yield
        return
    if not hasattr(signal, "SIGALRM"):
        timer = threading.Timer(seconds, lambda: _kill(active_children()))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start(_: int) -> None:
    """Keep a terminal's Ctrl-C from the process, by a group of its own: the parent alone finishes its step.

    On Linux it ends at once with a parent that is killed; elsewhere torch notices within seconds.
    """
    signals.die_with_parent()
    parent = parent_process()
    if parent is not None and not parent.is_alive():  # it was killed before the call
        os._exit(ExitCode.FAILED)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices.keep_memory()


@contextmanager
def worker_errors() -> Iterator[None]:
    """Translate torch's errors about decoding processes, raised anywhere in the `with` block, to WorkerLost."""
    try:
        yield
    except RuntimeError as error:
        if not any(name in str(error) for name in ("DataLoader", "Pin memory thread")):
            raise
        left = active_children()
        processes = ", ".join(str(process.pid) for process in left)
        _kill(left)
        raise WorkerLost(
            f"{first_line(error)} (other decoding processes: {processes or 'none'}); "
            "usually memory ran out, or a disk does not answer; lower data.workers, or set it to 0 to see the cause"
        ) from None


def _kill(processes: Sequence[BaseProcess]) -> None:
    """Kill processes, without the error that torch's signal handler would raise for each of them."""
    has_handler = hasattr(signal, "SIGCHLD")
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if has_handler else None
    for process in processes:
        process.kill()
    for process in processes:
        process.join(1)
    if has_handler:
        signal.signal(signal.SIGCHLD, before)


def default_workers(device: torch.device) -> int:
    """Return 0 on a CPU, which training keeps busy; else this process's share of the cores, at most MOST."""
    return 0 if device.type == "cpu" else max(1, min(MOST, devices.cores() // distributed.local_size()))


def check_shared_memory(batches: int, images: int, size: int, n_tags: int) -> None:
    """Raise DatasetError when batches of this many images, with their labels, do not fit in the shared memory."""
    require_shared_memory(batches * images * (3 * size**2 + n_tags))


def require_shared_memory(need: int) -> None:
    """Raise DatasetError when less than `need` bytes are free: a process that then writes is killed (SIGBUS)."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else need
    if free < need:
        raise DatasetError(
            f"{SHARED}: loading needs {need / 1e6:,.1f} MB of shared memory, but has {free / 1e6:,.1f} MB; give the "
            f"container more (docker run --shm-size {-(-2 * need // 10**9)}g), or lower data.workers (0 needs none)"
        )

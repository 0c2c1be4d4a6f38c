"""A progress bar on stderr, on rank 0 and only where a person watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from joytag.core import distributed


@contextmanager
def progress(title: str, total: int, done: int) -> Iterator[Callable[[int], int]]:
    """A bar, on rank 0 and if people watch, to be advanced by some images; that tells how many there are by now."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
    )
    start, now, silent = time.perf_counter(), done, distributed.rank() > 0 or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=silent) as bar:
        task = bar.add_task(title, total=total, completed=done, rate=0.0)

        def advance(images: int) -> int:
            nonlocal now
            now = min(now + images, total)
            bar.update(task, completed=now, rate=(now - done) / (time.perf_counter() - start))
            return now

        yield advance

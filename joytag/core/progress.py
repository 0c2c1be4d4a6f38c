"""The progress bar of all commands: on stderr, only on a terminal, only in the first process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


@contextmanager
def bar(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], int]]:
    """Show a bar of `total` units (`images`, `steps`), `done` of which were finished by an earlier run.

    Yields a function that advances the bar by some units and returns how many are finished, at most `total`. Lines
    printed meanwhile appear above the bar. The rate and the time left refer to this run alone.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
    )
    # torchrun sets RANK. It is read here without torch, which the workers of data preparation do not load.
    hidden = done >= total or int(os.environ.get("RANK") or 0) > 0 or not sys.stderr.isatty()
    start, finished = time.perf_counter(), done
    progress = Progress(
        *columns,
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # rich would print to stderr what belongs in a file or a pipe
        disable=hidden,
    )
    with progress:
        task = progress.add_task(title, total=total, completed=done, rate=0.0, unit=unit)

        def advance(units: int) -> int:
            nonlocal finished
            finished = min(finished + units, total)
            progress.update(task, completed=finished, rate=(finished - done) / (time.perf_counter() - start))
            return finished

        yield advance


@contextmanager
def live() -> Iterator[Callable[[RenderableType], None]]:
    """Show a table that changes, on stderr, only on a terminal; yields a function that shows a new one.

    Lines printed meanwhile appear above it.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda table: None
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()) as shown:
        yield lambda table: shown.update(table, refresh=True)


def track(items: Iterable[Item], title: str, total: int, unit: str) -> Iterator[Item]:
    """Yield the items under a bar, which counts an item when the next one is requested."""
    with bar(title, total, unit) as advance:
        for item in items:
            yield item
            advance(1)

"""A generator in its own process, so that two timed programs share no memory, threads or caches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection


class Remote:
    """Runs `function(*arguments)`, a generator, in another process; each call gets its next value into `results`.

    Raises ValueError from a call when the process has died.
    """

    def __init__(self, function: Callable[..., Iterator[float]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, remote_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote_end, function, arguments), daemon=True)
        self.results: list[float] = []

    def __enter__(self) -> Remote:
        self.process.start()
        return self

    def __call__(self) -> None:
        """Wait for the next value."""
        try:
            self.pipe.send(True)
            self.results.append(self.pipe.recv())
        except (EOFError, BrokenPipeError):
            raise ValueError("a benchmark's process has died; see its message above") from None

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, function: Callable[..., Iterator[float]], arguments: tuple[object, ...]) -> None:
    values = function(*arguments)
    while pipe.recv():
        pipe.send(next(values))

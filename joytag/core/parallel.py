"""Ordered work on threads, a bounded number of items ahead; batches of an iterable."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def read_ahead(
    read: Callable[[Item], Value],
    items: Iterable[Item],
    workers: int,
    depth: int,
    initializer: Callable[[], None] | None = None,
) -> Generator[Value]:
    """Yield `map(read, items)`, computed on `workers` threads, in order, with at most `depth` values waiting."""
    pool = ThreadPoolExecutor(workers, initializer=initializer)
    try:
        waiting: deque[Future[Value]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

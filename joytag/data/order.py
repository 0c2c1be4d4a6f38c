"""Order of the images: which rows make up each batch, as a function of the position alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from joytag.core.rng import Purpose, generator

Key = tuple[int, int]  # epoch, row of the split


def permutation(seed: int, stage: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """Return the order of the rows in an epoch, int64 [rows]."""
    return generator(Purpose.ORDER, seed, stage, epoch).permutation(rows)


def training_keys(
    seed: int, stage: int, rows: int, start: int, global_batch: int, micro_batch: int, rank: int, world: int
) -> Iterator[list[Key]]:
    """Yield the micro-batches of (epoch, row) keys of one process, from position `start` of a stage, without end.

    Position n is row `permutation(n // rows)[n % rows]` of epoch n // rows; global batches cross the ends of epochs.
    Each process takes a contiguous share of every global batch, so the global batches are the same for any number of
    processes and any micro-batch.
    """
    share = global_batch // world
    current, order = -1, np.empty(0, dtype=np.int64)
    for first in count(start, global_batch):
        for position in range(first + rank * share, first + (rank + 1) * share, micro_batch):
            keys = []
            for n in range(position, position + micro_batch):
                epoch, index = divmod(n, rows)
                if epoch != current:
                    current, order = epoch, permutation(seed, stage, epoch, rows)
                keys.append((epoch, int(order[index])))
            yield keys


def evaluation_keys(
    rows: int, batch: int, rank: int = 0, world: int = 1, done: Collection[int] = ()
) -> list[list[Key]]:
    """Return the blocks of `batch` consecutive rows that one process evaluates, without the `done` block numbers.

    Processes take blocks in turn, equally many each, so the last block of some may be empty. A row's block is the same
    for any number of processes, since the rounding of its scores depends on it.
    """
    blocks = [range(first, min(first + batch, rows)) for first in range(0, rows, batch) if first // batch not in done]
    blocks += [range(0)] * (-len(blocks) % world)
    return [[(0, row) for row in block] for block in blocks[rank::world]]

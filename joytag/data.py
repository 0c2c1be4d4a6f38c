"""A dataset directory to batches, in an order that is a function of the position alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from joytag import augment, image, records

Key = tuple[int, int]  # epoch, row of the split


@dataclass(frozen=True)
class Batch:
    """Pictures uint8 [B, 3, S, S], labels bool [B, N], sources int64 [B], rows int64 [B] of the split."""

    images: Tensor
    labels: Tensor
    sources: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory (called by torch's DataLoader)."""
        return Batch(*(getattr(self, name).pin_memory() for name in ("images", "labels", "sources", "rows")))


class Pictures(Dataset[Batch]):
    """The pictures of a split at one size; asked for many (epoch, row) keys at once, it gives a Batch.

    With `augmentation`, (seed, stage), a picture is augmented as drawn from (seed, stage, epoch, row).
    """

    def __init__(
        self, dataset: records.Dataset, split: str, size: int, augmentation: tuple[int, int] | None = None
    ) -> None:
        self.dataset, self.size, self.augmentation = dataset, size, augmentation
        self.posts = dataset.posts(split)

    def __len__(self) -> int:
        return len(self.posts)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | records.DatasetError:
        # An error is returned, not raised, since torch would wrap it in a worker's whole traceback.
        try:
            pictures = [self._read(row) for _, row in keys]
        except image.ImageError as error:
            return records.DatasetError(f"{error}; build the dataset again")
        except records.DatasetError as error:
            return error
        images = torch.from_numpy(np.stack(pictures))
        if self.augmentation is not None:
            draws = augment.draw([(*self.augmentation, epoch, row) for epoch, row in keys])
            images = augment.trivial_augment(images, draws)
        rows = np.array([row for _, row in keys])
        return Batch(
            images,
            torch.from_numpy(self.posts.labels(rows, len(self.dataset.tags))),
            torch.from_numpy(self.posts.sources[rows].astype(np.int64)),
            torch.from_numpy(rows),
        )

    def _read(self, row: int) -> np.ndarray:
        picture = image.decode(self.dataset.image_path(self.posts.hashes[row].tobytes()))
        return image.to_array(image.square(picture, self.size))


def permutation(seed: int, stage: int, epoch: int, rows: int) -> np.ndarray:
    """The order of the rows in an epoch, int64 [rows]."""
    return np.random.default_rng((seed, stage, epoch)).permutation(rows)


def training_keys(
    seed: int, stage: int, rows: int, start: int, stop: int, global_batch: int, micro_batch: int, rank: int, world: int
) -> Iterator[list[Key]]:
    """This process's micro-batches of (epoch, row) keys, for positions `start` to `stop` of a stage.

    Position n is row `permutation(n // rows)[n % rows]` of epoch n // rows; global batches run across
    epochs' ends. Each process takes a contiguous share of every global batch, so that the global
    batches are the same for any number of processes and any micro-batch.
    """
    share = global_batch // world
    current, order = -1, np.empty(0, dtype=np.int64)
    for first in range(start, stop, global_batch):
        for position in range(first + rank * share, first + (rank + 1) * share, micro_batch):
            keys = []
            for n in range(position, position + micro_batch):
                epoch, index = divmod(n, rows)
                if epoch != current:
                    current, order = epoch, permutation(seed, stage, epoch, rows)
                keys.append((epoch, int(order[index])))
            yield keys


def evaluation_keys(rows: int, batch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """This process's batches of all rows, each once, in order."""
    mine = range(rank, rows, world)
    return [[(0, row) for row in mine[i : i + batch]] for i in range(0, len(mine), batch)]


def batches(pictures: Pictures, keys: Iterable[list[Key]], workers: int, pin: bool) -> Iterator[Batch]:
    """Load batches in order, ahead of their use. Raises DatasetError at a picture that cannot be decoded."""
    loader = DataLoader(
        pictures,
        batch_sampler=_Once(keys),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # it draws a seed when it starts, and must not take it from the model's
    )
    for batch in loader:
        if isinstance(batch, records.DatasetError):
            raise batch
        yield batch


def default_workers(device: torch.device, processes: int) -> int:
    """None on a CPU, which training keeps busy itself; else this process's share of the cores, 16 at most."""
    return 0 if device.type == "cpu" else max(1, min(16, (os.cpu_count() or 1) // processes))


class _Once:
    """A batch sampler over an iterator of key lists."""

    def __init__(self, keys: Iterable[list[Key]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


def _as_it_is(batch: Any) -> Any:
    return batch

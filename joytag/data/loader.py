"""Loading of batches: images and labels from a dataset directory, decoded ahead of their use."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from joytag.core.rng import Purpose, generator
from joytag.data import augment, decoders
from joytag.data import dataset as records
from joytag.data.images import ImageError
from joytag.data.order import Key
from joytag.data.preprocessing import read_square

MAX_SUBSTITUTES = 100  # undecodable images in a row before loading fails
PREFETCH = 2  # batches that each decoding process prepares ahead
KEPT = 1 << 30  # bytes of images that training in its own process keeps, so that later epochs need not decode them
HELD = PREFETCH + 1  # batches of each decoding process in memory: one that it loads, the others wait or are in use


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, 3, S, S] (channels last), labels bool [B, N], sources int64 [B], rows int64 [B] of the split.

    Signed labels are int8 [B, N]: 1 for tags of the image, -1 for rejected ones, 0 for all others. `bad` lists
    requested rows that cannot be decoded, with the reason. `draws` is augmentation that is not yet applied.
    """

    images: Tensor
    labels: Tensor
    sources: Tensor
    rows: Tensor
    bad: list[tuple[int, str]]
    draws: list[augment.Draws] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (called by torch's DataLoader)."""
        return replace(self, **{n: getattr(self, n).pin_memory() for n in ("images", "labels", "sources", "rows")})


class ImageDataset(Dataset[Batch]):
    """The images of a split at one size, read as one Batch for many (epoch, row) keys.

    In training, `draw` is (seed, stage): the augmentation of an image, and the substitute for one that cannot be
    decoded, depend on (seed, stage, epoch, row). Without `draw` undecodable images are left out. `augmentation` is a
    key of augment.SPACES or "none"; if `deferred`, it is drawn but left to the device. With `signed` so are the labels.
    """

    def __init__(
        self,
        dataset: records.Dataset,
        split: str,
        size: int,
        draw: tuple[int, int] | None = None,
        augmentation: str = "none",
        deferred: bool = False,
        signed: bool = False,
    ) -> None:
        self.dataset, self.size, self.draw = dataset, size, draw
        self.augmentation, self.deferred, self.signed = augmentation, deferred, signed
        self.posts = dataset.posts(split)
        self._buffers: list[Tensor] = []  # of a decoding process, least recently used first
        self._kept: dict[int, Tensor] = {}  # decoded images by row

    def __len__(self) -> int:
        return len(self.posts)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | records.DatasetError:
        # Returned, not raised: torch would replace it by the worker's traceback in a RuntimeError.
        bad: list[tuple[int, str]] = []
        loaded: list[int] = []
        try:
            pixels = self._memory(len(keys))
            for key in keys:
                loaded += self._read(key, pixels[len(loaded)], bad)
        except records.DatasetError as error:
            return error
        rows = np.array(loaded, dtype=np.int64)
        images = pixels[: len(rows)].permute(0, 3, 1, 2)
        draws: list[augment.Draws] = []
        if self.augmentation != "none":
            assert self.draw is not None, "augmentation needs the draw of a training stage"
            drawn = [(*self.draw, *key) for key in keys]
            draws = augment.draw(drawn, augment.SPACES[self.augmentation], self.size)
        while draws and not self.deferred:
            augment.apply(images, draws.pop(0))
        labels = self.posts.signed_labels if self.signed else self.posts.labels
        return Batch(
            images,
            torch.from_numpy(labels(rows, len(self.dataset.tags))),
            torch.from_numpy(self.posts.sources[rows].astype(np.int64)),
            torch.from_numpy(rows),
            bad,
            draws,
        )

    def _memory(self, number: int) -> Tensor:
        """Allocate memory for images, uint8 [images, S, S, 3]; a decoding process reuses shared buffers in turn.

        New shared memory for each batch would take up to a sixth of the loading time. One batch of a process is being
        written and at most PREFETCH are waiting or in use, so the buffer after those is free again.
        """
        shape = (number, self.size, self.size, 3)
        if number == 0 or get_worker_info() is None:
            return torch.empty(shape, dtype=torch.uint8)
        buffer = self._buffers.pop(0) if len(self._buffers) == HELD else torch.empty(0)
        if len(buffer) < number:
            buffer = torch.empty(shape, dtype=torch.uint8)
            decoders.require_shared_memory(buffer.nbytes)
            buffer.share_memory_()
        self._buffers.append(buffer)
        return buffer[:number]

    def _read(self, key: Key, out: Tensor, bad: list[tuple[int, str]]) -> list[int]:
        """Read an image or its substitute into `out`; return its row, [] when it is left out. Extends `bad`.

        Raises DatasetError after MAX_SUBSTITUTES undecodable images.
        """
        row = key[1]
        for attempt in range(MAX_SUBSTITUTES):
            if row in self._kept:
                out.copy_(self._kept[row])
                return [row]
            path = self.dataset.image_path(self.posts.hashes[row].tobytes())
            try:
                self._keep(row, read_square(path, self.size, out))
                return [row]
            except ImageError as error:
                bad.append((row, str(error)))
            if self.draw is None:
                return []
            rng = generator(Purpose.SUBSTITUTE, *self.draw, *key, attempt)
            row = int(rng.integers(len(self.posts)))
        raise records.DatasetError(
            f"{bad[-1][1]}; {MAX_SUBSTITUTES - 1} other images cannot be read either; is the disk mounted?"
        )

    def _keep(self, row: int, pixels: Tensor) -> None:
        """Keep a decoded image for later epochs, where this process trains itself and KEPT allows it."""
        if self.draw is not None and get_worker_info() is None and (len(self._kept) + 1) * pixels.nbytes <= KEPT:
            self._kept[row] = pixels.clone()


def batches(
    dataset: ImageDataset, keys: Iterable[list[Key]], workers: int, pin: bool, timeout: int = 600
) -> Generator[Batch]:
    """Load batches in order and ahead of their use. A batch is valid until the next one is requested.

    Raises DatasetError when no image can be decoded, and the errors that `worker_errors` translates when a decoding
    process dies or delivers nothing for `timeout` seconds.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=decoders.start,
        generator=torch.Generator(),  # DataLoader draws a seed; it must not come from the model's generator
    )
    loaded = iter(loader)
    try:
        while (batch := _next(loaded, timeout if workers else 0)) is not None:
            if isinstance(batch, records.DatasetError):
                raise batch
            yield batch
    except RuntimeError:
        raise  # a process died or hangs; waiting for the others could take minutes, `worker_errors` kills them
    except BaseException:
        _end_workers(loaded)
        raise


def _next(loaded: Iterator[Any], timeout: int) -> Any:
    """Return the next batch, None after the last one. Raises RuntimeError when a decoding process died or hangs."""
    with decoders.alarm(timeout):
        try:
            return next(loaded, None)
        except (ConnectionError, EOFError) as error:  # the process died while it was handing over a batch
            time.sleep(1)  # meanwhile torch learns of its death and raises an error that names the process
            raise RuntimeError(f"DataLoader worker exited ({error})") from None


def _end_workers(loaded: Iterator[Any]) -> None:
    """End an iterator's processes now; torch does when it is collected, where an error would only be a warning."""
    with suppress(RuntimeError):
        getattr(loaded, "_shutdown_workers", lambda: None)()


def _unchanged(batch: Any) -> Any:
    return batch

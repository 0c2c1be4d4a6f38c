"""Loading of batches from a dataset directory, in an order that depends only on the position."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import active_children, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from joytag.core import devices, distributed, signals
from joytag.core.errors import Exit, ExitCode, first_line
from joytag.core.rng import Purpose, generator
from joytag.data import augment
from joytag.data import dataset as records
from joytag.data.images import ImageError
from joytag.data.preprocessing import read_square

Key = tuple[int, int]  # epoch, row of the split
MAX_SUBSTITUTES = 100  # undecodable images in a row before loading fails
PREFETCH = 2  # batches that each decoding process prepares ahead
KEPT = 1 << 30  # bytes of images that training in its own process keeps, so that later epochs need not decode them
HELD = PREFETCH + 1  # batches of each decoding process in memory: one that it loads, the others wait or are in use
SHARED = Path("/dev/shm")  # Linux's file system for memory that processes share


class WorkerLost(Exit):
    """Raised when a decoding process dies or hangs; one line that names it."""


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
            _require_shared_memory(buffer.nbytes)
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


def check_shared_memory(batches: int, images: int, size: int, n_tags: int) -> None:
    """Raise DatasetError when batches of this many images, with their labels, do not fit in the shared memory."""
    _require_shared_memory(batches * images * (3 * size**2 + n_tags))


def _require_shared_memory(need: int) -> None:
    """Raise DatasetError when less than `need` bytes are free: a process that then writes is killed (SIGBUS)."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else need
    if free < need:
        raise records.DatasetError(
            f"{SHARED}: loading needs {need / 1e6:,.1f} MB of shared memory, but has {free / 1e6:,.1f} MB; give the "
            f"container more (docker run --shm-size {-(-2 * need // 10**9)}g), or lower data.workers (0 needs none)"
        )


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


def batches(
    dataset: ImageDataset, keys: Iterable[list[Key]], workers: int, pin: bool, timeout: int = 600
) -> Generator[Batch]:
    """Load batches in order and ahead of their use. A batch is valid until the next one is requested.

    Raises DatasetError when no image can be decoded, and the errors that `worker_errors` translates when a decoding
    process dies or delivers nothing for `timeout` seconds.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=_KeySampler(keys),
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_start_worker,
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
    with _alarm(timeout):
        try:
            return next(loaded, None)
        except (ConnectionError, EOFError) as error:  # the process died while it was handing over a batch
            time.sleep(1)  # meanwhile torch learns of its death and raises an error that names the process
            raise RuntimeError(f"DataLoader worker exited ({error})") from None


def _end_workers(loaded: Iterator[Any]) -> None:
    """End an iterator's processes now; torch does when it is collected, where an error would only be a warning."""
    with suppress(RuntimeError):
        getattr(loaded, "_shutdown_workers", lambda: None)()


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
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


def _start_worker(_: int) -> None:
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
    """Return 0 on a CPU, which training keeps busy; else this process's share of the cores, at most 16."""
    return 0 if device.type == "cpu" else max(1, min(16, devices.cores() // distributed.local_size()))


class _KeySampler:
    """A batch sampler that yields lists of keys unchanged."""

    def __init__(self, keys: Iterable[list[Key]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


def _unchanged(batch: Any) -> Any:
    return batch

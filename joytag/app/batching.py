"""Batches across requests: images of many clients are decoded and computed together."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from joytag.data import images
from joytag.tagging.tagger import Tagger, prepare

MOST_THREADS = 16
MOST_WAITING = 1_024  # images; more are refused, since they would wait for minutes


class Busy(Exception):
    """Raised when too many images wait already, or when the service ends."""


class Scored(NamedTuple):
    """An image's scores, float32 [N], and its upright width and height in pixels, halved by decoding if it is huge."""

    scores: NDArray[np.float32]
    size: tuple[int, int]


class Batcher:
    """Threads that compute the scores of encoded images for all who ask.

    A thread takes what waits, without waiting for more: one image when there is little to do, up to the tagger's batch
    size when there is much. As in `Tagger.stream`, each thread of a CPU computes a batch by itself. Other images of a
    batch change scores by rounding differences only.
    """

    def __init__(self, tagger: Tagger) -> None:
        self._tagger, self._lock = tagger, threading.Lock()
        self._waiting: deque[tuple[bytes, Future[Scored]]] = deque()
        available = torch.get_num_threads() if tagger.device.type == "cpu" else os.cpu_count() or 1
        self._idle = workers = min(MOST_THREADS, available)
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(available // workers,))

    def submit(self, image: bytes) -> Future[Scored]:
        """Return the future scores of an encoded image; its error is ImageError if the image cannot be used.

        Raises Busy. A cancelled future costs no computation if it is still waiting.
        """
        future: Future[Scored] = Future()
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise Busy
            try:
                self._pool.submit(self._work)
            except RuntimeError:  # it is closed
                raise Busy from None
            self._waiting.append((image, future))
        return future

    def close(self) -> None:
        """Cancel what waits, finish what is being computed, and end the threads."""
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
        self._pool.shutdown()

    def _work(self) -> None:
        """Compute a fair share of what waits for one of the idle threads; nothing if others have taken it all."""
        with self._lock:
            share = min(-(-len(self._waiting) // self._idle), self._tagger.batch_size)
            taken = [self._waiting.popleft() for _ in range(share)]
            self._idle -= 1
        self._compute([job for job in taken if job[1].set_running_or_notify_cancel()])
        with self._lock:
            self._idle += 1

    def _compute(self, jobs: list[tuple[bytes, Future[Scored]]]) -> None:
        usable, inputs = [], []
        for image, future in jobs:
            try:
                pixels = images.decode_array(image)
                inputs.append(prepare(pixels, self._tagger.size))
                usable.append((future, (pixels.shape[1], pixels.shape[0])))
            except Exception as error:
                future.set_exception(error)
        try:
            scores = self._tagger.predict(np.stack(inputs)) if inputs else ()
            for (future, size), row in zip(usable, scores, strict=True):
                future.set_result(Scored(row.copy(), size))
        except Exception as error:
            for future, _ in usable:
                future.set_exception(error)

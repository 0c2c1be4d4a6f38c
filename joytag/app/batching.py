"""Batches across requests: images of many clients are decoded and computed together."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
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


class _Job(NamedTuple):
    image: bytes
    future: Future[Scored]


class Batcher:
    """Threads that compute the scores of encoded images for all who ask.

    A thread takes what waits, without waiting for more: one image when there is little to do, up to the tagger's batch
    size when there is much. As in `Tagger.stream`, each thread of a CPU computes a batch by itself. Other images of a
    batch change scores by rounding differences only.
    """

    def __init__(self, tagger: Tagger) -> None:
        self._tagger = tagger
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._idle, self._closed = 0, False
        available = torch.get_num_threads() if tagger.device.type == "cpu" else os.cpu_count() or 1
        workers = min(MOST_THREADS, available)
        limit = max(1, available // workers)
        self._threads = [threading.Thread(target=self._work, args=(limit,), daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, image: bytes) -> Future[Scored]:
        """Return the future scores of an encoded image; its error is ImageError if the image cannot be used.

        Raises Busy. A cancelled future costs no computation if it is still waiting.
        """
        job = _Job(image, Future())
        with self._changed:
            if self._closed or len(self._waiting) >= MOST_WAITING:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Cancel what waits, finish what is being computed, and end the threads."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _next(self) -> list[_Job]:
        """Wait for work and return a fair share of it for one of the idle threads; nothing when closed."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting or self._closed)
            share = -(-len(self._waiting) // self._idle)
            self._idle -= 1
            return [self._waiting.popleft() for _ in range(min(share, self._tagger.batch_size))]

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while group := self._next():
            inputs, jobs, sizes = [], [], []
            for job in group:
                if not job.future.set_running_or_notify_cancel():
                    continue
                try:
                    decoded = images.decode(job.image)
                    inputs.append(prepare(np.asarray(decoded), self._tagger.size))
                except Exception as error:
                    job.future.set_exception(error)
                else:
                    jobs.append(job)
                    sizes.append(decoded.size)
            if jobs:
                self._compute(jobs, np.stack(inputs), sizes)

    def _compute(self, jobs: list[_Job], batch: NDArray[np.uint8], sizes: list[tuple[int, int]]) -> None:
        try:
            scores = self._tagger.predict(batch)
        except Exception as error:
            for job in jobs:
                job.future.set_exception(error)
        else:
            for job, row, size in zip(jobs, scores, sizes, strict=True):
                job.future.set_result(Scored(row.copy(), size))

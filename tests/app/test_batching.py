"""Batches across requests."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from paths import TINY

from joytag.app.batching import Batcher, Busy
from joytag.data.images import ImageError
from joytag.tagging.tagger import Tagger


@pytest.fixture
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture
def batcher(tagger):
    batcher = Batcher(tagger)
    yield batcher
    batcher.close()


class Held:
    """A tagger that waits in `predict` until it is released, and notes the sizes of its batches."""

    def __init__(self, tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.entered, self.released = threading.Event(), threading.Event()
        predict = tagger.predict

        def wait(batch):
            self.entered.set()
            assert self.released.wait(60)
            self.sizes.append(len(batch))
            return predict(batch)

        monkeypatch.setattr(tagger, "predict", wait)


def test_what_waits_is_computed_together(tagger, batcher, pictures, monkeypatch):
    """One thread here: the first image is computed alone, those that came meanwhile in full batches."""
    held = Held(tagger, monkeypatch)
    tagger.batch_size = 3
    first = batcher.submit(pictures[0])
    assert held.entered.wait(60)
    others = [batcher.submit(data) for data in pictures[1:]]
    held.released.set()
    results = [future.result(60) for future in (first, *others)]
    assert held.sizes == [1, 3, 3, 1]
    for data, result in zip(pictures, results, strict=True):
        np.testing.assert_allclose(result.scores, tagger(data).scores, atol=1e-6)


def test_threads_share_what_waits(tagger, pictures):
    torch.set_num_threads(4)
    try:
        batcher = Batcher(tagger)
        results = [future.result(60) for future in [batcher.submit(data) for data in pictures * 20]]
        batcher.close()
    finally:
        torch.set_num_threads(1)
    for data, result in zip(pictures * 20, results, strict=True):
        np.testing.assert_allclose(result.scores, tagger(data).scores, atol=1e-6)


def test_an_unusable_image_fails_alone(batcher, tagger, pictures):
    futures = [batcher.submit(data) for data in (pictures[0], b"no image", pictures[1])]
    with pytest.raises(ImageError):
        futures[1].result(60)
    for future, data in ((futures[0], pictures[0]), (futures[2], pictures[1])):
        np.testing.assert_allclose(future.result(60).scores, tagger(data).scores, atol=1e-6)


def test_a_failure_of_the_model_is_that_of_its_images_alone(batcher, tagger, pictures, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tagger, "predict", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.submit(pictures[0]).result(60)
    assert batcher.submit(pictures[0]).result(60).scores.shape == (len(tagger.tags),)


def test_cancelled_images_are_not_computed(tagger, batcher, pictures, monkeypatch):
    held = Held(tagger, monkeypatch)
    first = batcher.submit(pictures[0])
    assert held.entered.wait(60)
    others = [batcher.submit(data) for data in pictures[1:]]
    assert all(future.cancel() for future in others[:-1])
    held.released.set()
    first.result(60)
    others[-1].result(60)
    assert sum(held.sizes) == 2


def test_waiting_images_are_bounded_and_closing_ends_them(tagger, pictures, monkeypatch):
    monkeypatch.setattr("joytag.app.batching.MOST_WAITING", 2)
    held, batcher = Held(tagger, monkeypatch), Batcher(tagger)
    running = batcher.submit(pictures[0])
    assert held.entered.wait(60)
    waiting = [batcher.submit(data) for data in pictures[1:3]]
    with pytest.raises(Busy):
        batcher.submit(pictures[3])
    held.released.set()
    batcher.close()
    assert running.result(0).scores.size
    for future in waiting:
        try:
            future.result(0)
        except CancelledError:
            continue
    with pytest.raises(Busy):
        batcher.submit(pictures[0])

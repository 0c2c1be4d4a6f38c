"""Decoding processes: their number, their memory, and how their end is reported."""

import gc
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import pytest
import torch
from requirements import needs_linux

from joytag.data import decoders, loader
from joytag.data.dataset import Dataset, DatasetError
from joytag.data.decoders import WorkerLost, default_workers, worker_errors


def running() -> list[BaseProcess]:
    """The decoding processes that are left; one that is terminated while it starts may take a second to end."""
    for process in active_children():
        process.join(5)
    return active_children()


def test_a_process_that_dies_while_it_delivers_a_batch_is_reported(dataset_directory, monkeypatch):
    def lost(*arguments, **options):
        raise ConnectionResetError("reset by peer")
        yield

    monkeypatch.setattr(loader, "DataLoader", lost)
    images = loader.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    with (
        pytest.raises(WorkerLost, match=r"exited \(reset by peer\).*lower data\.workers"),
        worker_errors(),
    ):
        next(loader.batches(images, [[(0, 0)]], 1, pin=False))


@pytest.fixture
def ignored_errors(monkeypatch) -> list:
    """The errors that Python can only report, such as those raised while an object is collected."""
    errors: list = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    return errors


def test_a_killed_process_is_reported_once(dataset_directory, ignored_errors):
    images = loader.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    loaded = loader.batches(images, [[(0, row)] for row in range(50)], 2, pin=False)
    next(loaded)
    active_children()[0].kill()
    with (
        pytest.raises(WorkerLost, match=r"(is killed by signal: Killed|exited unexpectedly).*lower data\.workers"),
        worker_errors(),
    ):
        time.sleep(20)
    assert not active_children()
    loaded.close()
    del loaded
    gc.collect()
    assert not ignored_errors


def test_an_error_ends_the_decoding_processes(dataset_directory):
    without_images = replace(Dataset.open(dataset_directory), extension="webp")  # its files are jpg
    loaded = loader.batches(loader.ImageDataset(without_images, "train", 16, (0, 0)), [[(0, 0)]] * 9, 2, pin=False)
    with pytest.raises(DatasetError):
        next(loaded)
    assert not running()


def test_a_loader_that_is_closed_ends_its_processes(dataset_directory):
    images = loader.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    loaded = loader.batches(images, [[(0, row)] for row in range(50)], 2, pin=False)
    next(loaded)
    loaded.close()
    assert not running()


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    monkeypatch.setattr(decoders, "MOST", 16)
    assert (default_workers(gpu), default_workers(torch.device("cpu"))) == (12, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert default_workers(gpu) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(128), raising=False)
    assert default_workers(gpu) == 16


@needs_linux
def test_too_little_shared_memory_is_reported_before_a_process_dies(dataset_directory, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000))
    monkeypatch.setattr(decoders, "SHARED", dataset_directory)
    images = loader.ImageDataset(Dataset.open(dataset_directory), "train", 48)
    with pytest.raises(DatasetError, match=r"needs 0.0 MB of shared memory, but has 0.0 MB; .*--shm-size"):
        list(loader.batches(images, [[(0, 0), (0, 1)]], 1, pin=False))
    assert len(list(loader.batches(images, [[(0, 0)]], 0, pin=False))) == 1, (
        "without processes no shared memory is needed"
    )


class Hanging(loader.ImageDataset):
    """A dataset whose second batch never comes."""

    def __getitems__(self, keys):
        if keys[0][1] == 1:
            time.sleep(60)
        return super().__getitems__(keys)


@pytest.mark.parametrize("alarms", [True, False])
def test_a_process_that_hangs_is_reported(dataset_directory, monkeypatch, alarms):
    if not alarms and hasattr(signal, "SIGALRM"):  # Windows has neither
        for name in ("SIGALRM", "SIGCHLD"):
            monkeypatch.delattr(signal, name)
    images = Hanging(Dataset.open(dataset_directory), "train", 16)
    loaded = loader.batches(images, [[(0, 0)], [(0, 1)]], 1, pin=False, timeout=2)
    with pytest.raises(WorkerLost, match=r"lower data\.workers"), worker_errors():
        list(loaded)
    assert not running()

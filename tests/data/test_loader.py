"""The order of samples, which depends only on the position; loading; decoding processes."""

import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from requirements import needs_linux

from joytag.data import augment
from joytag.data import loader as data
from joytag.data.dataset import Dataset, DatasetError
from joytag.data.preprocessing import square


def read(images: data.ImageDataset, wanted: list[data.Key]) -> data.Batch:
    """Read a batch that has no error."""
    batch = images.__getitems__(wanted)
    assert isinstance(batch, data.Batch)
    return batch


def running() -> list[BaseProcess]:
    """The decoding processes that are left; one that is terminated while it starts may take a second to end."""
    for process in active_children():
        process.join(5)
    return active_children()


def keys(rows=10, start=0, stop=48, batch=8, micro=4, rank=0, world=1, seed=0, stage=0):
    count = -(-(stop - start) // batch) * batch // world // micro
    return list(islice(data.training_keys(seed, stage, rows, start, batch, micro, rank, world), count))


def flat(batches):
    return [key for batch in batches for key in batch]


@given(rows=st.integers(1, 30), stop=st.integers(1, 12), micro=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=30)
def test_every_epoch_is_a_permutation_of_all_rows(rows, stop, micro):
    seen = flat(keys(rows=rows, stop=stop * 8, micro=micro))
    assert len(seen) == stop * 8
    for epoch in range(len(seen) // rows):
        of_epoch = seen[epoch * rows : (epoch + 1) * rows]
        assert sorted(of_epoch) == [(epoch, row) for row in range(rows)]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_global_batches_are_the_same_for_any_processes_and_micro_batches(world, micro):
    expected = keys(micro=8)
    ranks = [keys(micro=micro, rank=rank, world=world) for rank in range(world)]
    per_step = 8 // world // micro
    for step, batch in enumerate(expected):
        result = [key for rank in ranks for key in flat(rank[step * per_step : (step + 1) * per_step])]
        assert result == batch


@pytest.mark.parametrize("start", [0, 8, 16, 40])
def test_resuming_continues_the_same_sequence(start):
    assert keys(start=start) == keys()[start // 4 :]


def test_seeds_stages_and_epochs_differ():
    orders = [flat(keys(rows=100, stop=96, seed=seed, stage=stage)) for seed, stage in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(data.permutation(0, 0, 0, 100)) != list(data.permutation(0, 0, 1, 100))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_row_once(world):
    shares = [data.evaluation_keys(13, 4, rank, world) for rank in range(world)]
    assert sorted(row for share in shares for _, row in flat(share)) == list(range(13))
    assert len({len(share) for share in shares}) == 1, "processes that reduce together must do so equally often"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_requested_images_labels_and_rows(dataset_directory, workers):
    dataset = Dataset.open(dataset_directory)
    images = data.ImageDataset(dataset, "train", 16)
    wanted = [[(0, 3), (0, 1)], [(0, 7)]]
    batches = list(data.batches(images, wanted, workers, pin=False))
    assert [batch.rows.tolist() for batch in batches] == [[3, 1], [7]]
    posts = dataset.posts("train")
    for row, batch in ((3, batches[0]), (7, batches[1])):
        path = dataset.image_path(posts.hashes[row].tobytes())
        expected = np.asarray(square(Image.open(path), 16)).transpose(2, 0, 1).astype(int)
        assert np.abs(batch.images[0].numpy() - expected).max() <= 1
        assert set(torch.nonzero(batch.labels[0]).flatten().tolist()) == set(
            posts.tags[posts.offsets[row] : posts.offsets[row + 1]].tolist()
        )
        assert batch.sources[0] == posts.sources[row]


def test_augmentation_depends_on_epoch_and_row_but_not_on_the_batch(dataset_directory):
    images = data.ImageDataset(Dataset.open(dataset_directory), "train", 16, (0, 0), "trivial")
    together = read(images, [(2, row) for row in range(8)]).images
    alone = torch.cat([read(images, [(2, row)]).images for row in range(8)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, read(images, [(3, row) for row in range(8)]).images)


@pytest.mark.parametrize(("kept", "decoded"), [(data.KEPT, 4), (2 * 16 * 16 * 3, 6), (0, 8)])
def test_training_decodes_an_image_once_if_memory_allows(dataset_directory, monkeypatch, kept, decoded):
    dataset, keys = Dataset.open(dataset_directory), [[(epoch, row) for row in range(4)] for epoch in range(2)]
    expected = [read(data.ImageDataset(dataset, "train", 16, (0, 0), "trivial"), of_epoch).images for of_epoch in keys]
    calls, read_square = [], data.read_square

    def count(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return read_square(*arguments)

    monkeypatch.setattr(data, "read_square", count)
    monkeypatch.setattr(data, "KEPT", kept)
    images = data.ImageDataset(dataset, "train", 16, (0, 0), "trivial")
    for of_epoch, before in zip(keys, expected, strict=True):
        assert torch.equal(read(images, of_epoch).images, before)
    assert len(calls) == decoded


def test_deferred_augmentation_gives_the_same_images(dataset_directory):
    dataset, keys = Dataset.open(dataset_directory), [(0, row) for row in range(8)]
    now = read(data.ImageDataset(dataset, "train", 16, (0, 0), "rand"), keys)
    later = read(data.ImageDataset(dataset, "train", 16, (0, 0), "rand", deferred=True), keys)
    assert now.draws == []
    assert len(later.draws) == 2
    assert not torch.equal(later.images, now.images)
    images = later.images
    for draws in later.draws:
        images = augment.apply(images, draws)
    assert torch.equal(images, now.images)


@dataclass(frozen=True)
class Incomplete(Dataset):
    """A dataset without the files of some images, given by their sha256; decoding processes can receive it."""

    gone: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, dataset: Dataset, rows: Iterable[int]) -> Dataset:
        """A dataset without the files of some rows of its training split."""
        hashes = dataset.posts("train").hashes
        values = {field.name: getattr(dataset, field.name) for field in fields(Dataset)}
        return cls(**values, gone=frozenset(hashes[row].tobytes() for row in rows))

    def image_path(self, sha256: bytes) -> Path:
        return Path("gone.jpg") if sha256 in self.gone else super().image_path(sha256)


@pytest.fixture
def without_three(dataset_directory) -> Dataset:
    """The dataset without the files of training images 2, 3 and 5."""
    return Incomplete.of(Dataset.open(dataset_directory), (2, 3, 5))


@pytest.fixture
def without_images(dataset_directory) -> Dataset:
    """The dataset without any file of a training image."""
    return Incomplete.of(Dataset.open(dataset_directory), range(50))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_has_the_same_substitute_in_any_batch(without_three, workers):
    images = data.ImageDataset(without_three, "train", 16, (0, 0), "trivial")
    keys = [(0, row) for row in range(8)]
    [together] = data.batches(images, [keys], workers, pin=False)
    assert together.rows.tolist()[4::3] == [4, 7]
    assert not {2, 3, 5} & set(together.rows.tolist())
    assert {row for row, _ in together.bad} == {2, 3, 5}
    assert {reason for _, reason in together.bad} == {"gone.jpg: no such file"}
    alone = [read(images, [key]) for key in keys]
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]))
    assert torch.equal(together.labels, torch.cat([batch.labels for batch in alone]))
    labels = without_three.posts("train").labels(together.rows.numpy(), 6)
    assert torch.equal(together.labels, torch.from_numpy(labels)), "labels must be those of the substitutes"
    assert read(images, [(1, 2)]).rows != read(images, [(0, 2)]).rows


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_left_out_of_an_evaluation(without_three, workers):
    images = data.ImageDataset(without_three, "train", 16)
    some, none, nothing = data.batches(images, [[(0, 1), (0, 2)], [(0, 3), (0, 5)], []], workers, pin=False)
    assert len(nothing) == 0
    assert nothing.images.shape == (0, 3, 16, 16)
    assert some.rows.tolist() == [1]
    assert [row for row, _ in some.bad] == [2]
    assert len(none) == 0
    assert none.images.shape == (0, 3, 16, 16)
    assert none.labels.shape == (0, 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_a_dataset_without_its_images_fails(without_images, workers):
    with pytest.raises(DatasetError, match=r"^gone\.jpg: no such file; 99 other images cannot be read either"):
        list(data.batches(data.ImageDataset(without_images, "train", 16, (0, 0)), [[(0, 0)]], workers, pin=False))


def test_a_dataset_built_without_images_cannot_be_loaded(dataset_directory):
    dataset = replace(Dataset.open(dataset_directory), extension="none")
    with pytest.raises(DatasetError, match=r"built with `images: false`; build it with images$"):
        list(data.batches(data.ImageDataset(dataset, "train", 16), [[(0, 0)]], 0, pin=False))


def test_a_process_that_dies_while_it_delivers_a_batch_is_reported(dataset_directory, monkeypatch):
    def loader(*arguments, **options):
        raise ConnectionResetError("reset by peer")
        yield

    monkeypatch.setattr(data, "DataLoader", loader)
    images = data.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    with pytest.raises(data.WorkerLost, match=r"exited \(reset by peer\).*lower data\.workers"), data.worker_errors():
        next(data.batches(images, [[(0, 0)]], 1, pin=False))


@pytest.fixture
def ignored_errors(monkeypatch) -> list:
    """The errors that Python can only report, such as those raised while an object is collected."""
    errors: list = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    return errors


def test_a_killed_process_is_reported_once(dataset_directory, ignored_errors):
    images = data.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    loaded = data.batches(images, [[(0, row)] for row in range(50)], 2, pin=False)
    next(loaded)
    active_children()[0].kill()
    with (
        pytest.raises(data.WorkerLost, match=r"(is killed by signal: Killed|exited unexpectedly).*lower data\.workers"),
        data.worker_errors(),
    ):
        time.sleep(20)
    assert not active_children()
    loaded.close()
    del loaded
    gc.collect()
    assert not ignored_errors


def test_an_error_ends_the_decoding_processes(without_images):
    loaded = data.batches(data.ImageDataset(without_images, "train", 16, (0, 0)), [[(0, 0)]] * 9, 2, pin=False)
    with pytest.raises(DatasetError):
        next(loaded)
    assert not running()


def test_a_loader_that_is_closed_ends_its_processes(dataset_directory):
    images = data.ImageDataset(Dataset.open(dataset_directory), "train", 16)
    loaded = data.batches(images, [[(0, row)] for row in range(50)], 2, pin=False)
    next(loaded)
    loaded.close()
    assert not running()


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    assert (data.default_workers(gpu), data.default_workers(torch.device("cpu"))) == (12, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert data.default_workers(gpu) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(128), raising=False)
    assert data.default_workers(gpu) == 16


@needs_linux
def test_too_little_shared_memory_is_reported_before_a_process_dies(dataset_directory, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000))
    monkeypatch.setattr(data, "SHARED", dataset_directory)
    images = data.ImageDataset(Dataset.open(dataset_directory), "train", 48)
    with pytest.raises(DatasetError, match=r"needs 0.0 MB of shared memory, but has 0.0 MB; .*--shm-size"):
        list(data.batches(images, [[(0, 0), (0, 1)]], 1, pin=False))
    assert len(list(data.batches(images, [[(0, 0)]], 0, pin=False))) == 1, (
        "without processes no shared memory is needed"
    )


class Hanging(data.ImageDataset):
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
    loaded = data.batches(images, [[(0, 0)], [(0, 1)]], 1, pin=False, timeout=2)
    with pytest.raises(data.WorkerLost, match=r"lower data\.workers"), data.worker_errors():
        list(loaded)
    assert not running()

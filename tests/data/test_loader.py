"""Batches: images, labels and augmentation; substitutes for images that cannot be read."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from joytag.data import augment
from joytag.data import loader as data
from joytag.data.dataset import Dataset, DatasetError
from joytag.data.preprocessing import square


def read(images: data.ImageDataset, wanted: list[data.Key]) -> data.Batch:
    """Read a batch that has no error."""
    batch = images.__getitems__(wanted)
    assert isinstance(batch, data.Batch)
    return batch


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

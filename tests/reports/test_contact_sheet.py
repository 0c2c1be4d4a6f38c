"""Contact sheets: layout, and the best image of a sample."""

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from joytag.data.dataset import Dataset
from joytag.data.images import ImageError
from joytag.reports import contact_sheet


def test_images_are_in_a_grid():
    rng = np.random.default_rng(0)
    images = [Image.new("RGB", (64, 64), (i * 30, 100, 100)) for i in range(7)]
    labels, scores = rng.random((7, 30)) < 0.5, rng.random((7, 30), dtype=np.float32)
    names = [f"tag_with_a_long_name_{i}" for i in range(30)]
    sheet = contact_sheet.contact_sheet(images, labels, scores, names, 0.4, columns=4)
    assert sheet.width > sheet.height / 2
    scale, left = contact_sheet.SCALE, contact_sheet.GAP + contact_sheet.SIDE // 2
    top = contact_sheet.LEGEND + contact_sheet.GAP + contact_sheet.SIDE // 2
    step = contact_sheet.CELL + contact_sheet.GAP
    centres = [sheet.getpixel(((left + i * step) * scale, top * scale)) for i in range(4)]
    assert centres == [(i * 30, 100, 100) for i in range(4)]


@pytest.mark.parametrize("name", ["W" * 80, "кошка" * 20, "a_very_long_name_of_a_tag_(series)", "初音ミク" * 9])
def test_names_stay_in_their_columns(name):
    images = [Image.new("RGB", (64, 64), "white")] * 2
    scores = np.array([[0.98, 0.97, 0], [0, 0, 0]], dtype=np.float32)
    labels = np.array([[True, False, True], [False, False, False]])
    sheet = contact_sheet.contact_sheet(images, labels, scores, [name, f"{name}_", f"{name}_b"], 0.4)
    left = (contact_sheet.GAP + contact_sheet.CELL) * contact_sheet.SCALE
    below = (contact_sheet.LEGEND + contact_sheet.GAP + contact_sheet.SIDE + 4) * contact_sheet.SCALE
    assert np.asarray(sheet)[below:, left:].min() == 255  # nothing of the first image's tags
    assert np.asarray(sheet)[below:, :left].min() < 255


def test_rows_are_as_high_as_their_tags_need():
    images, names = [Image.new("RGB", (64, 64))] * 4, [f"tag_{i}" for i in range(30)]
    scores = np.zeros((4, 30), dtype=np.float32)
    heights = []
    for tags in (0, 5, 30):
        labels = np.zeros((4, 30), dtype=bool)
        labels[0, :tags] = True
        heights.append(contact_sheet.contact_sheet(images, labels, scores, names, 0.4, columns=2).height)
    lines = [(height - heights[0]) / (contact_sheet.LINE * contact_sheet.SCALE) for height in heights]
    assert lines == [0, 5, contact_sheet.MOST_TAGS]


def test_the_best_image_of_a_sample_has_the_highest_f1(dataset_directory):
    dataset = Dataset.open(dataset_directory)
    posts = dataset.posts("validation")
    labels = posts.labels(np.arange(len(posts)), len(dataset.tags))
    best = int(np.flatnonzero(labels.any(axis=1))[-1])
    order = np.random.default_rng(3).choice(len(posts), len(posts), replace=False)
    scores = [labels[row] if row == best else ~labels[row] for row in order]
    results = [SimpleNamespace(scores=row.astype(np.float32)) for row in scores]
    tagger: Any = SimpleNamespace(tags=dataset.tags.names, stream=lambda decoded: results[: len(decoded)])
    sample = contact_sheet.draw_validation_sample(tagger, dataset, 1000, 3, 0.4)
    assert sample.best == dataset.image_path(posts.hashes[best].tobytes())


def test_damaged_images_are_left_out_with_a_warning(dataset_directory, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(dataset_directory, copy)
    dataset = Dataset.open(copy)
    posts = dataset.posts("validation")
    files = [dataset.image_path(posts.hashes[row].tobytes()) for row in range(len(posts))]
    files[0].write_bytes(b"")
    files[1].unlink()
    scores = np.zeros(len(dataset.tags), dtype=np.float32)
    tagger: Any = SimpleNamespace(
        tags=dataset.tags.names, stream=lambda decoded: [SimpleNamespace(scores=scores) for _ in decoded]
    )
    with pytest.warns(UserWarning, match=rf"\(2 of {len(posts)} images left out\)"):
        contact_sheet.draw_validation_sample(tagger, dataset, 1000, 3, 0.4)
    for file in files[2:]:
        file.unlink()
    with pytest.raises(ImageError):
        contact_sheet.draw_validation_sample(tagger, dataset, 1000, 3, 0.4)


def test_a_dataset_with_other_tags_is_refused(dataset_directory):
    dataset = Dataset.open(dataset_directory)
    tagger: Any = SimpleNamespace(tags=dataset.tags.names[1:])
    with pytest.raises(ValueError, match="use the dataset that the model was trained on"):
        contact_sheet.draw_validation_sample(tagger, dataset, 3, 0, 0.4)

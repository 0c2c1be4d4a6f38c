"""Taggers of every kind are recognized in directories, and each predicts once."""

import shutil
from pathlib import Path

import colours
import numpy as np
import pytest
import torch
from datasets import add_originals
from taggers import IMAGES

from joytag.data.dataset import Dataset
from joytag.evaluation import contenders, intersection, predictions
from joytag.evaluation.contenders import TaggerEntryError, short_names
from joytag.evaluation.predictions import Predictions
from joytag.models import checkpoint, release
from joytag.models.vit import ViT
from joytag.models.wd_onnx import OnnxTagger


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/release", "runs/b/release"], ["a", "b"]),
        (["runs/a/checkpoints/000", "runs/a/checkpoints/001"], ["000", "001"]),
        (["runs/a/release", "runs/a/checkpoints/001"], ["release", "checkpoints/001"]),
        (["runs/a", "runs/a/old"], ["a", "old"]),
        (["a", "a"], ["a", "a"]),
        (["x/wd-vit", "runs/a/release"], ["x/wd-vit", "runs/a/release"]),
        (["a/c", "a/b/c", "b/c"], ["a", "a/b", "b"]),
    ],
)
def test_short_names_are_the_parts_in_which_paths_differ(paths, names, tmp_path):
    assert short_names([tmp_path / path for path in paths]) == names


def test_a_run_is_compared_by_its_release_or_newest_checkpoint(taggers, tmp_path):
    model = colours.train(taggers / "data", {1: tmp_path / "unused"})
    run = tmp_path / "run"
    for samples in (100, 200):
        checkpoint.save(run / "checkpoints", samples, model, colours.NAMES, "bce", {}, {}, 2, 10**9)
    assert contenders._find_tagger(run) == ("release", run / "checkpoints" / f"{200:012d}")
    (run / "release").mkdir()  # incomplete
    assert contenders._find_tagger(run)[1].name == f"{200:012d}"
    shutil.copytree(taggers / "late", run / "release", dirs_exist_ok=True)
    assert contenders._find_tagger(run) == ("release", run / "release")


def test_predictions_beside_a_release_are_used_if_they_are_of_the_dataset(taggers, predicted, tmp_path):
    model = tmp_path / "late"
    shutil.copytree(taggers / "late", model)
    shutil.copytree(predicted["late"], model / "predictions")
    dataset = Dataset.open(taggers / "data")
    (tagger, _) = contenders.open_taggers([model, taggers / "wd"], device="cpu")
    assert contenders.predict(tagger, dataset, tmp_path / "out", "cpu").directory == model / "predictions"
    other = Dataset.open(colours.write_dataset(tmp_path / "other", 20))
    prediction = contenders.predict(tagger, other, tmp_path / "out", "cpu")
    assert prediction.directory.parent == tmp_path / "out" / "predictions"
    assert len(prediction) == 20


def test_a_release_with_other_tags_can_be_compared(taggers, tmp_path):
    """Its tags are the dataset's in another order, and one that the dataset lacks."""
    order = [4, 2, 0, 3, 1]
    state_names = ["unheard_of" if i == 3 else colours.NAMES[i] for i in order]
    model, _ = release.load(taggers / "late")
    assert isinstance(model, ViT)
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order].clone())
        model.head.bias.copy_(model.head.bias[order].clone())
    colours.save(tmp_path / "shuffled", model, state_names)
    dataset = Dataset.open(taggers / "data")
    entries = contenders.open_taggers([tmp_path / "shuffled", taggers / "late"], device="cpu")
    predicted = [contenders.predict(one, dataset, tmp_path, "cpu") for one in entries]
    assert predicted[0].tags.names == state_names
    assert predicted[0].tags.categories.tolist() == [4, 0, 0, 0, 0]
    expected = predictions.label_matrix(dataset.posts("validation"), 5).toarray()[:, order]
    expected[:, 3] = False
    np.testing.assert_array_equal(predicted[0].labels.toarray(), expected)
    common = intersection.intersect(entries, predicted, dataset)
    assert common.tags.names == ["red", "green", "blue", "reddish_(hue)"]
    np.testing.assert_array_equal(common.contenders[0].scores, common.contenders[1].scores)


def test_predictions_of_an_onnx_tagger_are_its_scores(taggers, predicted):
    opened = Predictions.open(predicted["wd"])
    assert opened.tags.names == ["BLUE", "green", "scarlet", "light", "something_else"]
    dataset, tagger = Dataset.open(taggers / "data"), OnnxTagger.load(taggers / "wd")
    posts = dataset.posts("validation")
    np.testing.assert_array_equal(opened.ids, posts.ids)
    squares = np.stack([tagger.read(dataset.image_path(digest.tobytes())) for digest in posts.hashes])
    np.testing.assert_array_equal(opened.scores, tagger(squares).astype(np.float16))
    known = predictions.label_matrix(posts, 5).toarray()
    expected = np.stack(
        [known[:, 2], known[:, 1], *np.zeros((1, IMAGES), bool), known[:, 3], *np.zeros((1, IMAGES), bool)], axis=1
    )
    np.testing.assert_array_equal(opened.labels.toarray(), expected)


def test_images_that_cannot_be_decoded_are_left_out(taggers, tmp_path):
    shutil.copytree(taggers / "data", tmp_path / "data")
    add_originals(tmp_path / "data", "validation")
    dataset = Dataset.open(tmp_path / "data")
    posts = dataset.posts("validation")
    dataset.image_path(posts.hashes[5].tobytes()).write_bytes(b"no image")
    entries = contenders.open_taggers([taggers / "wd", taggers / "late"], device="cpu")
    with pytest.warns(UserWarning, match="1 of 192 images are left out"):
        predicted = [contenders.predict(one, dataset, tmp_path, "cpu") for one in entries]
    assert [len(one) for one in predicted] == [IMAGES - 1] * 2
    listed = [one.provenance["undecodable"][0] for one in predicted]
    assert [(entry["id"], entry["path"]) for entry in listed] == [(5, "originals/5.png")] * 2
    assert intersection.intersect(entries, predicted, dataset).labels.shape == (IMAGES - 1, 3)


def test_more_taggers_than_letters_are_refused():
    with pytest.raises(TaggerEntryError, match="27 taggers"):
        contenders.open_taggers([Path("a")] * 27)

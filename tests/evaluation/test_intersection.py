"""Taggers of every kind on the same images: found, predicted once, cut to what is common; and the command line."""

import json
import os
import runpy
import shutil
import signal
import sys
import warnings
from pathlib import Path

import colours
import numpy as np
import pytest
import torch
import wd
from scipy.sparse import csc_array

from joytag.data.dataset import Dataset, TagTable
from joytag.evaluation import contenders, intersection, predictions, predictions_writer
from joytag.evaluation.contenders import DatasetRequired, TaggerEntryError, short_names
from joytag.evaluation.predictions import Predictions
from joytag.models import checkpoint, release
from joytag.models.wd_onnx import OnnxTagger

ROOT = Path(__file__).parents[2]
IMAGES = 192


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """data/, checkpoints early/ and late/ of a model, a copy/ of the latter with noise of no consequence, and wd/."""
    place = tmp_path_factory.mktemp("arena")
    colours.write_dataset(place / "data")
    model = colours.train(place / "data", {2: place / "early", 150: place / "late"})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    colours.save(place / "copy", model)
    write_wd(place / "wd", ["BLUE", "green", "scarlet", "light", "something else"])
    return place


def write_wd(directory: Path, names: list[str]) -> None:
    """A tagger that knows the rules of the first four of `colours.NAMES`, in another order."""
    weights, biases = np.zeros((3, 7), dtype=np.float32), np.zeros(7, dtype=np.float32)
    weights[[0, 1, 2], [2, 3, 4]], biases[2:5] = 0.2, -150 * 0.2
    weights[:, 5], biases[5] = 0.1, -420 * 0.1
    wd.write_mean_colour(directory, names, weights, biases, size=8)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run compare.py in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["scripts/compare.py", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            try:
                runpy.run_path(str(ROOT / "scripts" / "compare.py"), run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def predicted(place) -> dict[str, Path]:
    """Directories of everyone's predictions."""
    entered = contenders.open_taggers([place / name for name in ("early", "late", "copy", "wd")], device="cpu")
    dataset = Dataset.open(place / "data")
    return {one.name: contenders.predict(one, dataset, place / "cache", "cpu").directory for one in entered}


# The command line


def test_the_right_one_wins_and_noise_is_noise(call, place, tmp_path):
    aliases = tmp_path / "aliases.yaml"
    aliases.write_text("scarlet: red\n")
    taggers = [place / name for name in ("early", "late", "copy", "wd")]
    code, out, err = call(*taggers, "--data", place / "data", "--output", tmp_path / "out", "--aliases", aliases)
    assert code == 0, err
    assert "B is better than A in macro F1, micro F1 and mAP." in out
    assert "D is better than A in macro F1, micro F1 and mAP." in out
    assert "No difference between B and C beyond noise." in out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["facts"]["images"] == IMAGES
    assert found["facts"]["tags"] == 4
    assert found["facts"]["tags_by_aliases"] == 1
    thresholds = {letter: tagger["threshold"] for letter, tagger in found["taggers"].items()}
    assert thresholds == {"A": 0.4, "B": 0.4, "C": 0.4, "D": 0.35}
    assert [tagger["name"] for tagger in found["taggers"].values()] == ["early", "late", "copy", "wd"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions", "compare.json", "compare.html", "per_tag.csv", "per_tag.parquet"
    }  # fmt: skip


def test_what_was_predicted_is_not_predicted_again(call, place, tmp_path, monkeypatch):
    command = (place / "early", place / "wd", "--data", place / "data", "--output", tmp_path)
    assert call(*command)[0] == 0
    files = sorted(tmp_path.rglob("*.npy"))
    before, report = [path.stat().st_mtime_ns for path in files], (tmp_path / "compare.json").read_text()
    monkeypatch.setattr(OnnxTagger, "__call__", None)
    monkeypatch.setattr("joytag.models.inference.predict", None)
    assert call(*command)[0] == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert (tmp_path / "compare.json").read_text() == report
    assert call(place / "wd", place / "early", *command[2:])[0] == 0  # in any order


def test_a_stopped_comparison_goes_on(call, place, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "BATCH", 32)
    compute, seen = OnnxTagger.__call__, []

    def interrupted(self, squares):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(squares))
        return compute(self, squares)

    command = (place / "wd", place / "late", "--data", place / "data", "--output")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTagger, "__call__", interrupted)
        assert call(*command, tmp_path / "stopped")[0] == 130
        assert not (tmp_path / "stopped" / "compare.json").exists()
        seen.clear()
        patch.setattr(OnnxTagger, "__call__", lambda self, squares: seen.append(len(squares)) or compute(self, squares))
        assert call(*command, tmp_path / "stopped")[0] == 0
    assert seen == [32] * 3
    assert call(*command, tmp_path / "fresh")[0] == 0
    stopped, fresh = (tmp_path / name / "per_tag.csv" for name in ("stopped", "fresh"))
    assert stopped.read_bytes() == fresh.read_bytes()


def test_a_signal_ends_it_after_a_block(call, place, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "BATCH", 32)
    compute = OnnxTagger.__call__

    def signalled(self, squares):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, squares)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxTagger, "__call__", signalled)
        code, _, err = call(place / "wd", place / "late", "--data", place / "data", "--output", tmp_path)
    assert code == 75
    assert "stopped after 32 of 192 images, as requested; run the same command again to continue" in err


def test_predictions_need_no_dataset(call, predicted, tmp_path):
    code, out, err = call(predicted["early"], predicted["late"], "--output", tmp_path / "out")
    assert code == 0, err
    assert "B is better than A in macro F1, micro F1 and mAP." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["early"], "1 taggers: give 2"),
        (["early", "gone", "--data", "data"], "gone: no such directory"),
        (["early", "data", "--data", "data"], "data: holds neither predictions"),
        (["early", "late"], "early: has no predictions yet; they need a dataset (--data)"),
        (["early", "late", "--data", "early"], "early: no dataset here"),
        (["early", "late", "--data", "data", "--threshold", "0.1,0.2,0.3"], "3 thresholds: give one"),
        (["early", "late", "--data", "data", "--threshold", "0.1,2"], "'2' is not a number between 0 and 1"),
        (["early", "late", "--data", "data", "--aliases", "gone.yaml"], "gone.yaml: no such file"),
        (["early", "nchw", "--data", "data"], "only taggers of the WD layout can be used"),
        (["early", "strange", "--data", "data"], "no common tag; do the names need aliases?"),
        (["early", "broken", "--data", "data"], "top_tags.txt: missing"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_no_report(call, place, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(place)
    if not (place / "broken").exists():
        for name in ("strange", "nchw"):
            write_wd(place / name, [f"strange_{i}" for i in range(5)])
        wd.write_flattener(place / "nchw", [1, 3, 8, 8], [1, 192])
        shutil.copytree(place / "late", place / "broken")
        (place / "broken" / "top_tags.txt").unlink()
    code, out, err = call(*arguments, "--output", tmp_path / "out")
    assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("compare.*"))


# What directories hold


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
def test_names_are_what_tells_directories_apart(paths, names, tmp_path):
    assert short_names([tmp_path / path for path in paths]) == names


def test_a_run_is_its_release_or_its_newest_checkpoint(place, tmp_path):
    model = colours.train(place / "data", {1: tmp_path / "unused"})
    run = tmp_path / "run"
    for samples in (100, 200):
        checkpoint.save(run / "checkpoints", samples, model, colours.NAMES, "bce", {}, {}, 2, 10**9)
    assert contenders._find_tagger(run) == ("release", run / "checkpoints" / f"{200:012d}")
    (run / "release").mkdir()  # not whole yet
    assert contenders._find_tagger(run)[1].name == f"{200:012d}"
    shutil.copytree(place / "late", run / "release", dirs_exist_ok=True)
    assert contenders._find_tagger(run) == ("release", run / "release")


def test_a_release_brings_its_own_predictions_if_they_are_of_these_images(place, predicted, tmp_path):
    model = tmp_path / "late"
    shutil.copytree(place / "late", model)
    shutil.copytree(predicted["late"], model / "predictions")
    dataset = Dataset.open(place / "data")
    (entrant, _) = contenders.open_taggers([model, place / "wd"], device="cpu")
    assert contenders.predict(entrant, dataset, tmp_path / "out", "cpu").directory == model / "predictions"
    other = Dataset.open(colours.write_dataset(tmp_path / "other", 20))
    found = contenders.predict(entrant, other, tmp_path / "out", "cpu")
    assert found.directory.parent == tmp_path / "out" / "predictions"
    assert len(found) == 20


def test_a_release_with_other_tags_is_predicted_too(place, tmp_path):
    """Its tags are the dataset's in another order, and one that the dataset lacks."""
    order = [4, 2, 0, 3, 1]
    state_names = ["unheard_of" if i == 3 else colours.NAMES[i] for i in order]
    model, _ = release.load(place / "late")
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order].clone())
        model.head.bias.copy_(model.head.bias[order].clone())
    colours.save(tmp_path / "shuffled", model, state_names)
    dataset = Dataset.open(place / "data")
    entered = contenders.open_taggers([tmp_path / "shuffled", place / "late"], device="cpu")
    found = [contenders.predict(one, dataset, tmp_path, "cpu") for one in entered]
    assert found[0].tags.names == state_names
    assert found[0].tags.categories.tolist() == [4, 0, 0, 0, 0]
    expected = predictions.label_matrix(dataset.posts("validation"), 5).toarray()[:, order]
    expected[:, 3] = False
    np.testing.assert_array_equal(found[0].labels.toarray(), expected)
    made = intersection.intersect(entered, found, dataset)
    assert made.tags.names == ["red", "green", "blue", "reddish_(hue)"]
    np.testing.assert_array_equal(made.contenders[0].scores, made.contenders[1].scores)


def test_the_onnx_taggers_predictions_are_its_scores(place, predicted):
    found = Predictions.open(predicted["wd"])
    assert found.tags.names == ["BLUE", "green", "scarlet", "light", "something_else"]
    dataset, tagger = Dataset.open(place / "data"), OnnxTagger.load(place / "wd")
    posts = dataset.posts("validation")
    np.testing.assert_array_equal(found.ids, posts.ids)
    squares = np.stack([tagger.read(dataset.image_path(digest.tobytes())) for digest in posts.hashes])
    np.testing.assert_array_equal(found.scores, tagger(squares).astype(np.float16))
    known = predictions.label_matrix(posts, 5).toarray()
    expected = np.stack([known[:, 2], known[:, 1], *np.zeros((1, IMAGES), bool), known[:, 3],
                         *np.zeros((1, IMAGES), bool)], axis=1)  # fmt: skip
    np.testing.assert_array_equal(found.labels.toarray(), expected)


def test_images_that_cannot_be_decoded_are_left_out(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    posts = dataset.posts("validation")
    dataset.image_path(posts.hashes[5].tobytes()).write_bytes(b"no image")
    entered = contenders.open_taggers([place / "wd", place / "late"], device="cpu")
    with pytest.warns(UserWarning, match="1 of 192 images are left out"):
        found = [contenders.predict(one, dataset, tmp_path, "cpu") for one in entered]
    assert [len(one) for one in found] == [IMAGES - 1] * 2
    assert found[0].provenance["undecodable"][0]["id"] == 5
    assert intersection.intersect(entered, found, dataset).labels.shape == (IMAGES - 1, 3)


# What is common


def made(
    directory: Path,
    ids: list[int],
    names: list[str],
    scores: np.ndarray,
    labels: np.ndarray,
    files: list[int] | None = None,
) -> Predictions:
    """Predictions of made-up images, written and opened; `files` are numbers of theirs, which are else as the ids."""
    hashes = np.stack([np.full(32, number, dtype=np.uint8) for number in files or ids])
    n = np.zeros(len(names), dtype=np.int64)
    tags = TagTable(names, n.astype(np.int8), n, n)
    sources = np.zeros(len(ids), dtype=np.int64)
    arrays = scores.astype(np.float16), np.array(ids), hashes, sources
    predictions_writer.write(directory, *arrays, csc_array(labels), tags, {"sources": ["x"]})
    return Predictions.open(directory)


def entered(*found: Predictions) -> list[contenders.TaggerEntry]:
    return contenders.open_taggers([one.directory for one in found], device="cpu")


def test_common_images_and_tags_are_found_whatever_their_order(tmp_path):
    """Against a recount, image by image and tag by tag; two tags of one tagger become one by an alias."""
    rng = np.random.default_rng(0)
    aliases = {"car": "automobile", "auto": "automobile", "kitty": "cat"}
    vocabularies = [["cat", "dog", "automobile", "tree"], ["auto", "Tree", "car", "kitty", "fish"]]
    ids = [[9, 3, 5, 7, 1], [1, 2, 3, 9, 8, 7]]
    truth = {(i, tag): bool(rng.random() < 0.5) for i in range(10) for tag in ("cat", "dog", "automobile", "tree")}
    final = {"Tree": "tree", **aliases}
    found, scores = [], []
    for number in range(2):
        names = vocabularies[number]
        values = rng.random((len(ids[number]), len(names))).astype(np.float16)
        labels = np.array([[truth.get((i, final.get(name, name)), False) for name in names] for i in ids[number]])
        found.append(made(tmp_path / str(number), ids[number], names, values, labels))
        scores.append(values)
    common = intersection.intersect(entered(*found), found, aliases=aliases)
    assert common.tags.names == ["cat", "automobile", "tree"]
    assert common.facts["tags_by_aliases"] == 2
    for row, i in enumerate([9, 3, 7, 1]):
        for column, tag in enumerate(common.tags.names):
            assert common.labels[row, column] == truth[i, tag]
            for number, contender in enumerate(common.contenders):
                places = [n for n, name in enumerate(vocabularies[number]) if final.get(name, name) == tag]
                expected = max(scores[number][ids[number].index(i), n] for n in places)
                assert contender.scores[row, column] == expected


def test_what_is_all_there_is_not_copied(predicted):
    found = [Predictions.open(predicted[name]) for name in ("early", "late")]
    made = intersection.intersect(entered(*found), found)
    assert all(c.scores is one.scores for c, one in zip(made.contenders, found, strict=True))


def test_the_same_image_has_the_same_id_and_the_same_file(tmp_path):
    zeros = np.zeros((3, 1), dtype=bool)
    first = made(tmp_path / "1", [1, 2, 3], ["a"], zeros, zeros)
    second = made(tmp_path / "2", [1, 2, 4], ["a"], zeros, zeros, files=[1, 9, 3])
    assert intersection.intersect(entered(first, second), [first, second]).labels.shape == (1, 1)
    third = made(tmp_path / "3", [1, 2, 4], ["a"], zeros, zeros, files=[2, 9, 3])
    with pytest.raises(intersection.IntersectionError, match=r"no common image \(the same id and the same file\)"):
        intersection.intersect(entered(first, third), [first, third])


def test_labels_that_disagree_are_refused_unless_a_dataset_decides(place, predicted, tmp_path):
    first = Predictions.open(predicted["early"])
    labels = first.labels.toarray()
    labels[4, 2] ^= True
    arrays = first.scores, first.ids, first.hashes, first.sources
    provenance = {"sources": first.source_names}
    predictions_writer.write(tmp_path / "other", *arrays, csc_array(labels), first.tags, provenance)
    found = [first, Predictions.open(tmp_path / "other")]
    with pytest.raises(DatasetRequired, match=r"1 labels are not those of .*, such as of blue; the labels must"):
        intersection.intersect(entered(*found), found)
    made = intersection.intersect(entered(*found), found, Dataset.open(place / "data"))
    np.testing.assert_array_equal(made.labels.toarray(), first.labels.toarray())


def test_more_taggers_than_letters_are_refused():
    with pytest.raises(TaggerEntryError, match="27 taggers"):
        contenders.open_taggers([Path("a")] * 27)

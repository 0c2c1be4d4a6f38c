"""Images are known by their content, scored once in the background, and never twice."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TINY
from PIL import Image

from joytag.app.collection import STATE, Collection
from joytag.app.scores import Scores
from joytag.data.dataset import Dataset
from joytag.tagging.tagger import Tagger

NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.png"]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / STATE).mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (20, 30), (60 * number, 10, 200)).save(folder / name)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_scores(collection: Collection, tagger: Tagger) -> Scores:
    return Scores(collection.state / "scores-tiny", len(tagger.tags))


def work(collection: Collection, tagger: Tagger) -> Scores:
    """Score until nothing is left."""
    scores = open_scores(collection, tagger)
    collection.start(tagger, scores)
    collection._thread.join()
    assert collection.failure == ""
    return scores


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The number of images that each batch computes."""
    sizes: list[int] = []
    results = Tagger._results

    def count(self: Tagger, arrays: list, *rest: Any) -> list:
        sizes.append(len(arrays))
        return results(self, arrays, *rest)

    monkeypatch.setattr(Tagger, "_results", count)
    return sizes


def test_images_are_known_by_their_content_and_scored(root, tagger):
    collection = Collection(root)
    assert collection.names == NAMES
    assert collection.files() == []
    scores = work(collection, tagger)
    for name in NAMES:
        image = sha256(root / name)
        assert collection.find(image) == [name]
        assert collection.read(image) == (root / name).read_bytes()
        expected = tagger(root / name).scores
        assert np.abs(scores.table()[scores.rows([image])[0]] - expected).max() < 1e-3  # float16
    assert [file.sha256 for file in collection.files()] == [sha256(root / name) for name in NAMES]


def test_opening_reads_no_image(root, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("read an image")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert Collection(root).names == NAMES


def test_what_is_scored_is_not_read_again(root, tagger, computed, monkeypatch):
    work(Collection(root), tagger)
    assert sum(computed) == 4
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        assert path.suffix != ".png", "read an image again"
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    collection = Collection(root)
    assert len(collection.files()) == 4
    scores = work(collection, tagger)
    assert sum(computed) == 4
    assert (scores.rows([file.sha256 for file in collection.files()]) >= 0).all()


def test_stopped_it_goes_on(root, tagger, computed):
    for number in range(40):
        Image.new("RGB", (20, 30), (number, 100, 200)).save(root / f"more{number}.png")
    collection = Collection(root)
    scores, add = open_scores(collection, tagger), Scores.add

    def add_and_stop(self: Scores, *content: object) -> None:
        add(self, *content)  # type: ignore[arg-type]
        collection._stop.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scores, "add", add_and_stop)
        collection.start(tagger, scores)
        collection._thread.join()
    first = len(scores.table())
    assert 1 <= first < 44
    assert collection.failure == ""
    scores.close()
    before = sum(computed)
    assert len(work(Collection(root), tagger).table()) == 44
    assert sum(computed) - before == 44 - first


@pytest.mark.parametrize("cut", [1, 33, 2 * 33, 2 * 33 + 1, 100], ids=["score", "scores", "key", "keys", "row"])
def test_rows_that_were_cut_are_computed_again(root, tagger, cut, computed):
    scores = work(Collection(root), tagger)
    expected = {image: scores.table()[row].copy() for image, row in scores._rows.items()}
    scores.close()
    path = root / STATE / "scores-tiny"
    os.truncate(path, path.stat().st_size - cut)
    cut_off = Scores(root / STATE / "scores-tiny", len(tagger.tags))
    assert 2 <= len(cut_off.table()) < 4
    cut_off.close()
    again = work(Collection(root), tagger)
    assert again._rows.keys() == expected.keys()
    for image, row in again._rows.items():
        assert np.array_equal(again.table()[row], expected[image])


def test_repeated_rows_of_a_damaged_file_move_no_others(root, tagger):
    """A power cut may leave rows of zeros."""
    images = [sha256(root / name) for name in NAMES]
    before = work(Collection(root), tagger)
    expected = np.array(before.table()[before.rows(images)])
    path, size = root / STATE / "scores-tiny", 32 + 2 * len(tagger.tags)
    rows = path.read_bytes()
    path.write_bytes(rows[:size] + bytes(3 * size) + rows[size : 2 * size])
    after = work(Collection(root), tagger)
    assert np.allclose(after.table()[after.rows(images)], expected, atol=2e-3)  # other batches round differently
    assert not np.allclose(expected[0], expected[1], atol=2e-3)


def test_equal_files_are_one_image(root, tagger, computed):
    shutil.copy(root / "a.png", root / "sub" / "z.png")
    collection = Collection(root)
    assert len(work(collection, tagger).table()) == 4
    assert collection.find(sha256(root / "a.png")) == ["a.png", "sub/z.png"]
    (root / "a.png").unlink()
    assert collection.read(sha256(root / "sub" / "z.png"))
    assert collection.find(sha256(root / "sub" / "z.png")) == ["sub/z.png"]


def test_a_changed_file_is_another_image(root, tagger):
    collection = Collection(root)
    work(collection, tagger)
    before = sha256(root / "a.png")
    Image.new("RGB", (20, 30), "white").save(root / "a.png")
    assert collection.read(before) is None
    assert collection.find(before) == []
    assert collection.find(sha256(root / "a.png")) == ["a.png"]
    scores = work(collection, tagger)
    assert scores.rows([sha256(root / "a.png")])[0] == 4
    again = Collection(root)
    assert again.find(before) == []
    assert again.find(sha256(root / "a.png")) == ["a.png"]


def test_a_vanished_file_is_dropped_and_a_new_one_found(root, tagger):
    collection = Collection(root)
    work(collection, tagger)
    gone = sha256(root / "b.png")
    (root / "b.png").unlink()
    Image.new("RGB", (20, 30), "white").save(root / "new.png")
    assert collection.read(gone) is None
    work(collection, tagger)
    assert collection.names == ["a.png", "new.png", "sub/c.png", "sub/d.png"]
    assert collection.find(gone) == []
    assert collection.find(sha256(root / "new.png")) == ["new.png"]


def test_a_broken_image_is_named_once_and_not_tried_again(root, tagger, computed):
    (root / "b.png").write_bytes(b"no image")
    collection = Collection(root)
    assert len(work(collection, tagger).table()) == 3
    (broken,) = (file for file in collection.files() if file.error)
    assert broken.name == "b.png"
    assert "not an image" in broken.error
    before = sum(computed)
    again = Collection(root)
    work(again, tagger)
    assert sum(computed) == before
    assert [file.name for file in again.files() if file.error] == ["b.png"]
    Image.new("RGB", (20, 30), "white").save(root / "b.png")
    assert len(work(again, tagger).table()) == 4
    assert not any(file.error for file in again.files())


def test_links_out_of_the_folder_are_not_served(root, tagger, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    try:
        (root / "e.png").symlink_to(tmp_path / "secret.png")
        (root / "f.png").symlink_to(root / "a.png")
    except OSError:
        pytest.skip("needs symbolic links")
    collection = Collection(root)
    work(collection, tagger)
    assert collection.find(sha256(tmp_path / "secret.png")) == []
    assert collection.find(sha256(root / "a.png")) == ["a.png", "f.png"]


def test_a_failure_of_the_work_is_told(root, tagger, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "scores")

    monkeypatch.setattr(Scores, "add", fail)
    collection = Collection(root)
    collection.start(tagger, open_scores(collection, tagger))
    collection._thread.join()
    assert collection.failure == "scores: No space left on device; free some space there, or choose another disk"


@pytest.mark.parametrize("row", ['{"name": "a.png", "si', '{"name": "a.png"}', '{"name": ["a"]}', '{"sha256": [1]}'])
def test_damaged_lines_of_what_is_known_are_no_harm(root, tagger, row):
    work(Collection(root), tagger)
    path = root / STATE / "images.jsonl"
    path.write_text(path.read_text() + row)
    collection = Collection(root)
    assert len(collection.files()) == 4
    work(collection, tagger)
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()[:4]] == NAMES


def test_a_dataset_has_its_images_by_the_hash_of_the_original(dataset_directory, tmp_path, tagger):
    root = tmp_path / "data"
    shutil.copytree(dataset_directory, root)
    (root / STATE).mkdir()
    collection = Collection(root)
    posts = Dataset.open(root).posts("validation")
    hashes = [row.tobytes().hex() for row in posts.hashes]
    assert len(collection.files()) == 62
    scores = work(collection, tagger)
    assert len(scores.table()) == 62
    assert (scores.rows(hashes) >= 0).all()
    assert collection.read(hashes[0]) == collection.path(hashes[0]).read_bytes()
    assert not (root / STATE / "images.jsonl").exists()

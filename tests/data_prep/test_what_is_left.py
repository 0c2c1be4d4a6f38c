"""Images that teach nothing are left out, and a build of which nothing is left says why."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mirror import random_image
from paths import ROOT

from data_prep.build import NothingLeft, build
from data_prep.config import BuildSettings
from joytag.core.settings import load
from joytag.data.dataset import SPLITS, Dataset


def write(folder: Path, images: dict[str, str], *, alike: bool = False) -> None:
    """Write images with sidecars, by name; those that look alike differ in brightness only."""
    folder.mkdir(exist_ok=True)
    for number, (name, text) in enumerate(images.items()):
        image = random_image(0).point(lambda value, shift=8 * number: value // 2 + shift) if alike else None
        (image or random_image(100 + number)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text)


def config(tmp_path: Path, *overrides: str) -> BuildSettings:
    """The shipped config for the folder `images`."""
    paths = [f"output={tmp_path / 'dataset'}", f"sources.0.path={tmp_path / 'images'}"]
    return load(BuildSettings, ROOT / "configs" / "data" / "folder.yaml", [*paths, *overrides])


def rejected(tmp_path: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(tmp_path / "dataset" / "rejected.parquet").to_pylist()}


def test_images_without_a_tag_of_the_vocabulary_are_left_out(tmp_path, capsys):
    write(tmp_path / "images", {f"{n}": "cat" if n < 10 else "rare, odd" if n == 10 else "dog" for n in range(14)})
    dataset = Dataset.open(build(config(tmp_path)))
    assert dataset.tags.names == ["cat"]
    assert sum(len(dataset.posts(split)) for split in SPLITS) == 10
    assert all(np.diff(dataset.posts(split).offsets).min() > 0 for split in SPLITS)
    assert rejected(tmp_path) == {f"{n}.png": "no tag of the vocabulary" for n in (10, 11, 12, 13)}
    output = capsys.readouterr().out
    assert "tags used fewer than 5 times (tags.min_count): dog (3), odd (1), rare (1)" in output
    assert "4 of mine: no tag of the vocabulary, such as" in output
    assert "most posts were rejected" not in output
    description = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert description["not_learned"] == {"rare": {"dog": 3, "odd": 1, "rare": 1}, "one_sided": {}}
    assert description["counts"]["mine"]["rejected"] == {"no tag of the vocabulary": 4}


def test_images_that_teach_a_release_nothing_are_refused(tmp_path):
    """A tag too rare to be learned, and none of the release's."""
    write(tmp_path / "images", {f"{n}": "my cat" for n in range(3)})
    (tmp_path / "top_tags.txt").write_text("known\nother")
    with pytest.raises(NothingLeft) as error:
        build(config(tmp_path, f"tags.keep={tmp_path / 'top_tags.txt'}"))
    assert error.value.rare == {"my_cat": 3}
    listed = tmp_path / "dataset" / "rejected.parquet"
    assert str(error.value) == (
        "sources: no image has a tag to learn; 3 of mine: no tag of the vocabulary, such as "
        f"{min(rejected(tmp_path), key=lambda path: list(rejected(tmp_path)).index(path))}; "
        "tags used fewer than 5 times (tags.min_count): my_cat (3); "
        f"all reasons are in {listed}; add images, or lower tags.min_count"
    )
    assert set(rejected(tmp_path).values()) == {"no tag of the vocabulary"}
    assert not (tmp_path / "dataset" / "dataset.json").exists()


def test_kept_tags_without_images_on_one_side_are_named(tmp_path, capsys):
    write(tmp_path / "images", {f"{n}": "cat, known" if n == 0 else "cat" for n in range(14)})
    (tmp_path / "top_tags.txt").write_text("known\ncat\na\nb\nc\nd")
    directory = build(config(tmp_path, f"tags.keep={tmp_path / 'top_tags.txt'}"))
    line = "of 6 tags: 4 without any image (a, b, c, ...), 1 without a validation image (known)\n"
    assert f"{'':>9} {line}" in capsys.readouterr().out
    tags = Dataset.open(directory).tags
    held = {name: total - trained for name, total, trained in zip(tags.names, tags.totals, tags.counts, strict=True)}
    assert held == {"cat": 1, "known": 0, "a": 0, "b": 0, "c": 0, "d": 0}


def test_a_new_tag_of_look_alikes_is_dropped_and_named(tmp_path, capsys):
    write(tmp_path / "images", {f"{n}": "noise" for n in range(40)})
    write(tmp_path / "images", {f"hero{n}": "hero, noise" for n in range(12)}, alike=True)
    write(tmp_path / "images", {f"only{n}": "hero" for n in range(2)}, alike=True)
    dataset = Dataset.open(build(config(tmp_path)))
    assert dataset.tags.names == ["noise"]
    output = capsys.readouterr().out
    assert "(families stay together): hero (1" in output
    groups = {
        split: set(pq.read_table(tmp_path / "dataset" / f"{split}.parquet")["phash"].to_pylist()) for split in SPLITS
    }
    assert not groups["train"] & groups["validation"]


@pytest.mark.parametrize(("text", "reason"), [("", "no tag"), ("blocked", "no tag")])
def test_a_build_of_which_nothing_is_left_lists_the_reasons_first(tmp_path, text, reason):
    write(tmp_path / "images", {f"{n}": text for n in range(5)})
    (tmp_path / "images" / "broken.png").write_bytes(b"hello")
    (tmp_path / "images" / "broken.txt").write_text("cat")
    with pytest.raises(NothingLeft, match=rf"5 of mine: {reason}, such as \d.png; 1 of mine: not an image, such as"):
        build(config(tmp_path, "tags.blacklist=[blocked]"))
    assert sorted(rejected(tmp_path).values()) == [reason] * 5 + ["not an image"]


def test_a_build_without_a_usable_image_lists_the_reasons_first(tmp_path):
    write(tmp_path / "images", {"a": "cat", "b": "cat"})
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"hello")
    with pytest.raises(NothingLeft, match="2 of mine: not an image, such as"):
        build(config(tmp_path, "copies.radius=3"))
    assert len(rejected(tmp_path)) == 2


def test_a_single_image_cannot_be_divided(tmp_path):
    write(tmp_path / "images", {"a": "cat"})
    with pytest.raises(ValueError, match=r"validation\.images: 0\.1 cannot be held out of 1 images in 1 families"):
        build(config(tmp_path, "tags.min_count=1"))
    assert rejected(tmp_path) == {}


def test_a_build_that_rejects_most_images_says_so(tmp_path, capsys):
    write(tmp_path / "images", {f"{n}": "cat" if n < 10 else "" for n in range(25)})
    build(config(tmp_path))
    assert "most posts were rejected: 15 of 25" in capsys.readouterr().out

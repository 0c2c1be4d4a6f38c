"""A build sees images that are replaced, whatever kind of source they belong to, and scans only those again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mirror import encode, md5, random_image, write_mirror
from PIL import Image

from data_prep import scan
from data_prep.build import build
from data_prep.config import BuildSettings
from joytag.data.dataset import SPLITS

IMAGES = 10


def settings(output: Path, kind: str, path: Path, **source: object) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "output": str(output),
            "sources": [{"name": "a", "kind": kind, "path": str(path), **source}],
            "tags": {"min_count": 2, "min_tags": 1},
            "validation": {"images": 2, "min_per_tag": 1},
        }
    )


def sidecars(root: Path) -> tuple[Path, Callable[[int], Path]]:
    for number in range(IMAGES):
        (root / f"{number}.png").write_bytes(encode(random_image(number)))
        (root / f"{number}.txt").write_text("cat, dog")
    return root, lambda number: root / f"{number}.png"


def lines(root: Path) -> tuple[Path, Callable[[int], Path]]:
    sidecars(root)
    rows = [json.dumps({"path": f"{number}.png", "tags": ["cat", "dog"]}) for number in range(IMAGES)]
    (root / "list.jsonl").write_text("\n".join(rows))
    return root / "list.jsonl", lambda number: root / f"{number}.png"


def mirror(root: Path) -> tuple[Path, Callable[[int], Path]]:
    def path(number: int) -> Path:
        return root / "original" / f"{number:04d}" / f"{number}.png"

    posts: list[dict | str] = []
    for number in range(IMAGES):
        path(number).parent.mkdir(parents=True)
        path(number).write_bytes(data := encode(random_image(number)))
        posts.append({"id": str(number), "md5": md5(data), "file_ext": "png", "tag_string": "cat dog"})
    write_mirror(root, posts=posts)
    return root, path


def other_dataset(root: Path) -> tuple[Path, Callable[[int], Path]]:
    (root / "from").mkdir()
    dataset = build(settings(root / "dataset", "sidecar", sidecars(root / "from")[0]))
    shutil.rmtree(dataset / "work")
    stored = sorted((dataset / "images").rglob("*.jpg"))
    return dataset, lambda number: stored[number]


KINDS = {"sidecar": sidecars, "jsonl": lines, "danbooru2021": mirror, "parquet": other_dataset}


def counts(output: Path) -> tuple[int, list[str]]:
    """The number of images, and the reasons of the others."""
    n_images = sum(pq.read_metadata(output / f"{split}.parquet").num_rows for split in SPLITS)
    return n_images, pq.read_table(output / "rejected.parquet")["reason"].to_pylist()


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Processes of their own would take longer to start than all these builds."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.mark.parametrize(
    ("kind", "harm"), [*((kind, "damaged") for kind in KINDS), ("jsonl", "missing"), ("danbooru2021", "missing")]
)
def test_a_refused_image_that_is_replaced_is_used(tmp_path, monkeypatch, kind, harm):
    monkeypatch.setattr(scan, "SHARD", 4)
    (root := tmp_path / "source").mkdir()
    source, path = KINDS[kind](root)
    whole = path(3).read_bytes()
    path(3).write_bytes(whole[: len(whole) // 2])
    if harm == "missing":
        path(3).unlink()
    output = build(settings(tmp_path / "out", kind, source))
    reason = "md5 differs from the metadata" if (kind, harm) == ("danbooru2021", "damaged") else harm
    assert counts(output) == (IMAGES - 1, [reason])
    files = sorted((output / "work" / "a" / "scan").glob("*.parquet"))
    before = [file.stat().st_mtime_ns for file in files]
    path(3).write_bytes(whole)
    with pytest.raises(ValueError, match="have changed since it was built"):
        build(settings(output, kind, source))
    (output / "dataset.json").unlink()
    build(settings(output, kind, source))
    assert counts(output) == (IMAGES, [])
    assert sum(file.stat().st_mtime_ns == time for file, time in zip(files, before, strict=True)) == len(files) - 1


@pytest.mark.parametrize("kind", ["sidecar", "jsonl", "parquet"])
def test_a_good_image_that_is_replaced_is_scanned_again(tmp_path, kind):
    (root := tmp_path / "source").mkdir()
    source, path = KINDS[kind](root)
    output = build(settings(tmp_path / "out", kind, source))
    path(3).write_bytes(b"hello")
    (output / "dataset.json").unlink()
    build(settings(output, kind, source))
    assert counts(output) == (IMAGES - 1, ["not an image"])


def test_an_edited_sidecar_does_not_scan_images_again(tmp_path):
    (root := tmp_path / "source").mkdir()
    source, _ = sidecars(root)
    output = build(settings(tmp_path / "out", "sidecar", source))
    file = output / "work" / "a" / "scan" / "000000.parquet"
    before = file.stat().st_mtime_ns
    (root / "1.txt").write_text("cat, dog, bird")
    (root / "2.txt").write_text("cat, bird")
    (output / "dataset.json").unlink()
    build(settings(output, "sidecar", source))
    assert "bird" in (output / "top_tags.txt").read_text()
    assert file.stat().st_mtime_ns == before


def test_removed_copies_are_written_again(tmp_path):
    (root := tmp_path / "source").mkdir()
    output = build(settings(tmp_path / "out", "sidecar", sidecars(root)[0]))
    shutil.rmtree(output / "images")
    (output / "dataset.json").unlink()
    build(settings(output, "sidecar", root))
    assert len(list((output / "images").rglob("*.jpg"))) == IMAGES


@pytest.mark.parametrize(
    ("kind", "transparent", "is_used"),
    [
        ("sidecar", None, True),
        ("sidecar", "refuse", False),
        ("jsonl", None, True),
        ("danbooru2021", None, False),
        ("danbooru2021", "white", True),
    ],
)
def test_a_source_says_what_to_do_with_transparent_images(tmp_path, kind, transparent, is_used):
    (root := tmp_path / "source").mkdir()
    source, path = KINDS[kind](root)
    with Image.open(path(1)) as image:
        image.putalpha(200)
        data = encode(image)
    path(1).write_bytes(data)
    if kind == "danbooru2021":
        posts = [json.loads(line) for line in (root / "metadata" / "posts000000000000.json").read_text().splitlines()]
        posts[1]["md5"] = md5(data)
        write_mirror(root, posts=posts)
    output = build(settings(tmp_path / "out", kind, source, transparent=transparent))
    assert counts(output) == ((IMAGES, []) if is_used else (IMAGES - 1, ["transparent"]))

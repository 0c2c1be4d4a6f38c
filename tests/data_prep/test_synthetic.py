"""A build of the synthetic mirror treats every fault and copy as the answer key expects."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from paths import ROOT
from requirements import require_ray

from data_prep import families, shards
from data_prep.build import build
from data_prep.config import BuildSettings
from data_prep.split import GIANT
from data_prep.tools import baseline, synthetic, synthetic_families
from joytag.data import dataset

VALIDATION = 0.2  # of the images: enough that families of each kind are held out
OUTPUTS = ("train.parquet", "validation.parquet", "tags.parquet", "top_tags.txt", "rejected.parquet")


@pytest.fixture(scope="module", params=[2000, pytest.param(20_000, marks=pytest.mark.slow)])
def mirror(request, tmp_path_factory) -> tuple[Path, synthetic.Key]:
    folder = tmp_path_factory.mktemp("mirror")
    return folder, synthetic.write(folder, request.param)


def settings(mirror: Path, output: Path, **changes: object) -> BuildSettings:
    values = {
        "output": str(output),
        "sources": [{"name": "danbooru2021", "kind": "danbooru2021", "path": str(mirror)}],
        "longest_side": 96,
        "tags": {"min_count": 40, "min_tags": 5},
        "validation": {"images": VALIDATION},
    }
    return BuildSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def built(mirror) -> Path:
    return build(settings(mirror[0], mirror[0] / "out"))


def rows(output: Path, name: str) -> list[dict]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def digest(output: Path) -> dict[str, str]:
    """The hashes of all files that a build writes."""
    files = [output / name for name in OUTPUTS] + sorted((output / "images").rglob("*.*"))
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kept_posts(mirror: Path, key: synthetic.Key) -> dict[int, set[str]]:
    """The final tags of all images that should be kept, by code that the build does not use."""
    posts = baseline.read_posts(mirror)
    for post_id in {i for reason, ids in key.rejected.items() if reason != "listed twice" for i in ids}:
        del posts[post_id]
    for copy, kept in key.copies.items():
        posts[kept] |= posts.pop(copy)
    baseline.apply_policy(posts, mirror)
    return {post_id: names for post_id, names in posts.items() if len(names) >= 5}


def test_every_fault_and_copy_is_accounted_for(mirror, built):
    _, key = mirror
    assert len(key.rejected) >= 9
    assert len(key.copies) >= 30
    assert key.recoloured
    assert key.retouched
    rejected = rows(built, "rejected")
    copies = {row["post_id"]: int(Path(row["detail"]).stem) for row in rejected if row["reason"] == "copy"}
    assert copies == key.copies
    lines: dict[str, list[tuple[str, int]]] = defaultdict(list)
    ids: dict[str, list[int]] = defaultdict(list)
    for row in rejected:
        if row["reason"] in key.lines:
            lines[row["reason"]].append((row["file"], row["line"]))
        elif row["reason"] not in ("copy", "fewer than 5 tags", "no tag of the vocabulary"):
            ids[row["reason"]].append(row["post_id"])
    assert {reason: sorted(rows) for reason, rows in lines.items()} == {r: sorted(p) for r, p in key.lines.items()}
    assert {reason: sorted(posts) for reason, posts in ids.items()} == {r: sorted(p) for r, p in key.rejected.items()}
    assert len(rejected) + len(rows(built, "train")) + len(rows(built, "validation")) == key.posts


def test_tags_and_their_counts_equal_a_simple_recount(mirror, built):
    expected = kept_posts(*mirror)
    counts = Counter(name for names in expected.values() for name in names)
    vocabulary = {name for name, count in counts.items() if count >= 40}
    table = rows(built, "tags")
    assert {row["name"]: row["count"] for row in table} == {name: counts[name] for name in vocabulary}
    names = [row["name"] for row in table]
    assert (built / "top_tags.txt").read_text().split("\n") == names
    result = {row["post_id"]: {names[i] for i in row["tags"]} for s in dataset.SPLITS for row in rows(built, s)}
    assert result == {post_id: tags & vocabulary for post_id, tags in expected.items() if tags & vocabulary}
    categories = {
        name: int(category)
        for i, (name, category) in enumerate(
            zip(*synthetic.world(400 if len(expected) < 4000 else 2000)[:2], strict=True)
        )
        if i % 97
    }
    assert all(row["category"] == categories.get(row["name"], 0) for row in table)


def test_no_validation_image_looks_like_a_training_image(mirror, built):
    train, validation = (np.array([row["phash"] for row in rows(built, s)], np.uint64) for s in dataset.SPLITS)
    assert len(validation) >= int(VALIDATION * (len(train) + len(validation)))
    assert not np.isin(validation, train).any()
    side = {row["post_id"]: split for split in dataset.SPLITS for row in rows(built, split)}
    pairs = [pair for pair in mirror[1].recoloured if set(pair) <= set(side)]
    assert len(pairs) >= len(mirror[1].recoloured) / 2
    assert all(side[a] == side[b] for a, b in pairs)


def test_within_a_radius_retouched_images_are_copies_and_look_alikes_stay_together(mirror, built, tmp_path):
    folder, key = mirror
    changed = settings(folder, tmp_path / "near", copies={"radius": 3})
    (tmp_path / "near").mkdir()
    for name in ("work", "images"):  # the scan is that of the other build
        (tmp_path / "near" / name).symlink_to(built / name)
    output = build(changed)
    copies = {
        frozenset((r["post_id"], int(Path(r["detail"]).stem)))
        for r in rows(output, "rejected")
        if r["reason"] == "copy"
    }
    planted = {frozenset(pair) for pair in key.copies.items()}
    assert copies - planted <= {frozenset(pair) for pair in key.retouched}
    assert planted <= copies
    assert len(copies - planted) >= 0.9 * len(key.retouched)
    train, validation = (np.array([row["phash"] for row in rows(output, s)], np.uint64) for s in dataset.SPLITS)
    assert all(np.bitwise_count(train ^ phash).min() > 3 for phash in validation)


def test_one_worker_builds_the_same_dataset(mirror, built, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert digest(build(settings(mirror[0], tmp_path / "out"))) == digest(built)


@pytest.mark.slow
def test_ray_builds_the_same_dataset(mirror, built, tmp_path):
    require_ray()
    assert digest(build(settings(mirror[0], tmp_path / "out"), "ray")) == digest(built)


def command(mirror: Path, output: Path) -> list[str]:
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings(mirror, output).model_dump()))
    return [sys.executable, "-m", "joytag", "build", "--config", str(config)]


@pytest.mark.faults
def test_a_killed_build_continues_to_the_same_dataset(mirror, built, tmp_path):
    folder, key = mirror
    kills = 20 if key.posts > 10_000 else 6
    start = time.monotonic()
    subprocess.run(command(folder, tmp_path / "whole"), check=True, capture_output=True, cwd=ROOT)
    duration = time.monotonic() - start
    rng = random.Random(0)
    while kills:
        process = subprocess.Popen(
            command(folder, tmp_path / "out"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.1, 0.4) * duration)
            shutil.rmtree(tmp_path / "out")  # it finished; the next one starts again
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills -= 1
    done = subprocess.run(command(folder, tmp_path / "out"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "out") == digest(built)
    left = [
        path
        for path in (tmp_path / "out").rglob("*")
        if path.suffix not in (".parquet", ".jpg", ".json", ".jsonl", ".txt", ".yaml")
    ]
    assert not [path for path in left if path.is_file()]


@pytest.mark.faults
def test_a_full_disk_is_reported_in_one_line_and_leaves_no_incomplete_file(mirror, built, tmp_path):
    """A limit on file sizes replaces the full disk."""
    resource = pytest.importorskip("resource")
    done = subprocess.run(
        command(mirror[0], tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    for path in (tmp_path / "out").rglob("*.parquet"):
        pq.ParquetFile(path)
    assert not (tmp_path / "out" / "dataset.json").exists()
    subprocess.run(command(mirror[0], tmp_path / "out"), check=True, capture_output=True, cwd=ROOT)
    assert digest(tmp_path / "out") == digest(built)


def test_the_key_is_written_into_the_mirror(mirror):
    folder, key = mirror
    written = json.loads((folder / "answers.json").read_text())
    assert written == json.loads(json.dumps(asdict(key)))
    files = sorted((folder / "metadata").glob("posts*.json"))
    assert len(files) == synthetic.FILES
    assert sum(path.read_bytes().count(b"\n") for path in files) == key.posts


def test_another_config_reuses_the_scan(mirror, built, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_publish", lambda *_: pytest.fail("scanned again"))
    values = settings(mirror[0], built).model_dump() | {"tags": {"min_count": 100}}
    with pytest.raises(ValueError, match="holds a dataset of another config"):
        build(BuildSettings.model_validate(values))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("work", "images"):
        (copy / name).symlink_to(built / name)
    build(BuildSettings.model_validate(values | {"output": str(copy)}))


# Families


def recounted_families(mirror: Path, looks: dict[int, int], copies: dict[int, int]) -> dict[object, object]:
    """The family of each post, by a union-find over dicts that shares no code with the build.

    `looks` are the pHashes of usable images.
    """
    above: dict[object, object] = {}

    def top(node: object) -> object:
        while above.setdefault(node, node) != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    def number(value: object) -> int:
        return int(value) if isinstance(value, str) and value.isdigit() else 0

    for path in sorted((mirror / "metadata").glob("posts*.json")):
        for count, line in enumerate(path.read_bytes().split(b"\n")):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not isinstance(row, dict):
                continue
            post = number(row.get("id")) or (path.name, count)
            if parent := number(row.get("parent_id")):
                above[top(post)] = top(parent)
            if work := number(row.get("pixiv_id")):
                above[top(post)] = top(f"work {work}")
    for post, phash in looks.items():
        above[top(post)] = top(f"pHash {phash}")
    for copy, kept in copies.items():
        above[top(copy)] = top(kept)
    return {node: top(node) for node in list(above)}


def scanned_hashes(output: Path) -> dict[int, int]:
    """The pHash of each usable image."""
    work = output / "work" / "danbooru2021"
    posts = pq.read_table(work / "images.parquet")["post_id"].to_pylist()
    hashes = [value for path in sorted((work / "scan").glob("*.parquet")) for value in pq.read_table(path)["phash"]]
    pairs = zip(posts, (value.as_py() for value in hashes), strict=True)
    return {post: phash for post, phash in pairs if phash is not None}


def sides(output: Path) -> dict[int, str]:
    return {row["post_id"]: split for split in dataset.SPLITS for row in rows(output, split)}


def test_planted_families_stay_on_one_side(mirror, built):
    side, of_kind = sides(built), defaultdict(list)
    for family, ids in mirror[1].families.items():
        its_sides = [side[i] for i in ids if i in side]
        assert len(set(its_sides)) <= 1, family
        if len(its_sides) > 1:
            of_kind[family.rstrip(" 0123456789")].append(its_sides[0])
    assert set(of_kind) == {"giant", *(kind.name for kind in synthetic_families.KINDS.values())}
    assert of_kind.pop("giant") == ["train"]
    for kind, its in of_kind.items():
        assert set(its) == set(dataset.SPLITS), kind


def test_a_plain_recount_finds_the_same_families(mirror, built):
    folder, key = mirror
    family, side = recounted_families(folder, scanned_hashes(built), key.copies), sides(built)
    members: dict[object, list[int]] = defaultdict(list)
    for post in side:
        members[family.get(post, post)].append(post)
    assert not [posts for posts in members.values() if len({side[post] for post in posts}) > 1]
    written: dict[int, list[int]] = defaultdict(list)
    for split in dataset.SPLITS:
        for row in pq.read_table(built / f"{split}.parquet", columns=["post_id", "family"]).to_pylist():
            written[row["family"]].append(row["post_id"])
    assert sorted(map(sorted, written.values())) == sorted(map(sorted, members.values()))
    planted = {frozenset(family[i] for i in ids) for ids in key.families.values()}
    assert all(len(families) == 1 for families in planted)

    several = [posts for posts in members.values() if len(posts) > 1]
    counts = json.loads((built / "dataset.json").read_text())["families"]
    largest = max(several, key=len)
    assert set(largest) >= {post for post in key.families["giant"] if post in side}
    rows = pq.read_table(built / "train.parquet", columns=["post_id", "path"]).to_pylist()
    path = {row["post_id"]: f"danbooru2021/{row['path']}" for row in rows}
    giants = [posts for posts in several if len(posts) > max(GIANT, int(VALIDATION * len(side)) // 100)]
    assert counts["giants"] == {path[min(posts)]: len(posts) for posts in giants}
    assert next(iter(counts["giants"])) == path[min(largest)]
    assert (counts["too_large"], counts["training_images"]) == (len(giants), sum(map(len, giants)))
    assert (counts["families"], counts["several"], counts["images"], counts["largest"]) == (
        len(members),
        len(several),
        sum(map(len, several)),
        len(largest),
    )


@pytest.mark.parametrize("tie", ["parent_id", "pixiv_id", "look_alikes"])
def test_each_tie_can_be_switched_off(mirror, built, tmp_path, tie):
    """Without a tie some families are divided, which all others together would have kept whole."""
    ties = [name for name in families.TIES if name != tie]
    changed = settings(mirror[0], tmp_path / "out", validation={"images": VALIDATION, "families": ties})
    (tmp_path / "out").mkdir()
    for name in ("work", "images"):
        (tmp_path / "out" / name).symlink_to(built / name)
    output = build(changed)
    whole, fewer = (json.loads((path / "dataset.json").read_text())["families"] for path in (built, output))
    assert fewer["families"] > whole["families"]
    side = sides(output)
    pairs = {
        "parent_id": [ids[:2] for name, ids in mirror[1].families.items() if name.startswith("children ")],
        "pixiv_id": [ids[:2] for name, ids in mirror[1].families.items() if name.startswith("pages ")],
        "look_alikes": mirror[1].recoloured,
    }
    divided = {
        name: any({side.get(a), side.get(b)} == set(dataset.SPLITS) for a, b in its) for name, its in pairs.items()
    }
    assert divided == {name: name == tie for name in pairs}

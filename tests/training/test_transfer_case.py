"""New tags learned from 10, 60 and 300 images, and what becomes of the old ones: `make check-finetune`.

The images are Twemoji's. The new tags are the commonest of theirs that the quickstart's model does not know, of which
no two mean the same images. Each case is kept in runs/check-finetune; remove a case's directory to measure it again.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from requirements import require
from sklearn.metrics import f1_score

from data_prep.sources.posts import unique
from data_prep.tools.openmoji import ALIASES
from joytag.data.dataset import Dataset
from joytag.tagging.tagger import Tagger

pytestmark = pytest.mark.slow

RELEASE, DATA, TWEMOJI = ROOT / "runs/openmoji/release", ROOT / "data/openmoji", ROOT / "data/raw/twemoji"
CASES = ROOT / "runs/check-finetune"
NEW_TAGS = 30  # that the new tags of a case are drawn from
IMAGES = {10: 5, 60: 10, 300: 10}  # of each new tag, by the number of images
SIDECARS = ("new", "all")  # tags in the sidecars: the new ones alone, or the old ones, too
SEEDS = (0, 1, 2)
OTHERS = 200  # held-out images without a new tag


# Mean macro F1 of the new tags with version 0.2.0: the better one of its defaults and of 800 samples with
# optimizer.lr=0.0003 and retain=0.6.
BEST = {
    (10, "new"): 0.207,
    (10, "all"): 0.229,
    (60, "new"): 0.470,
    (60, "all"): 0.506,
    (300, "new"): 0.349,
    (300, "all"): 0.448,
}


def known_tags(dataset: Dataset) -> dict[bytes, list[str]]:
    """The tags of the quickstart's training images, by sha256."""
    posts = dataset.posts("train")
    tags = [posts.tags[posts.offsets[row] : posts.offsets[row + 1]] for row in range(len(posts))]
    return {posts.hashes[row].tobytes(): [dataset.tags.names[t] for t in tags[row]] for row in range(len(posts))}


@cache
def twemoji() -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """The old tags of each image, and the images of each new tag."""
    dataset = Dataset.open(DATA)
    known, tags, uses = known_tags(dataset), {}, defaultdict(set)
    for text in sorted(TWEMOJI.rglob("*.txt")):
        image = text.with_suffix(".png").relative_to(TWEMOJI).as_posix()
        digest = hashlib.sha256((TWEMOJI / image).read_bytes()).digest()
        if digest in known:
            tags[image] = known[digest]
            for tag in (
                set(unique(text.read_text(encoding="utf-8").split(","))) - set(dataset.tags.names) - ALIASES.keys()
            ):
                uses[tag].add(image)
    new: list[str] = []
    for tag in sorted(uses, key=lambda tag: (-len(uses[tag]), tag)):
        if len(new) < NEW_TAGS and all(len(uses[tag] & uses[other]) < len(uses[tag]) / 2 for other in new):
            new.append(tag)
    return tags, {tag: uses[tag] for tag in new}


def write_case(directory: Path, images: int, sidecars: str, seed: int) -> None:
    """Write `images/`, a folder with sidecars, and `held_out.json`, the new tags of other images."""
    (tags, uses), rng = twemoji(), np.random.default_rng(seed)
    new: list[str] = []
    train: set[str] = set()
    for tag in rng.permutation(list(uses)):
        chosen = [image for image in rng.permutation(sorted(uses[tag])) if image not in train]
        if len(train) < images:
            new.append(str(tag))
            train.update(chosen[: min(IMAGES[images], images - len(train))])
    held_out = [image for image in rng.permutation(sorted(tags)) if image not in train]
    labels = {image: [tag for tag in new if image in uses[tag]] for image in [*train, *held_out]}
    held_out.sort(key=lambda image: not labels[image])
    del held_out[sum(map(bool, map(labels.get, held_out))) + OTHERS :]
    folder = directory / "images"
    folder.mkdir(parents=True)
    for image in train:
        shutil.copy(TWEMOJI / image, folder)
        words = labels[image] + (tags[image] if sidecars == "all" else [])
        (folder / Path(image).name).with_suffix(".txt").write_text(", ".join(words))
    held = {"tags": new, "images": {str(image): labels[image] for image in held_out}}
    (directory / "held_out.json").write_text(json.dumps(held))


def f1(release: Path, paths: list[Path], tags: list[str], labels: np.ndarray, average: str) -> float:
    """Of some tags, on images with labels [images, tags]."""
    decisions = [[tag in result.tags for tag in tags] for result in Tagger.load(release).stream(paths)]
    return float(f1_score(labels, np.array(decisions), average=average, zero_division=0))


def new_f1(release: Path, held_out: dict) -> float:
    """Macro F1 of a case's new tags on its held-out images."""
    labels = np.array([[tag in its for tag in held_out["tags"]] for its in held_out["images"].values()])
    return f1(release, [TWEMOJI / image for image in held_out["images"]], held_out["tags"], labels, "macro")


def old_f1(release: Path) -> float:
    """Micro F1 of the quickstart's tags on its validation images."""
    dataset = Dataset.open(DATA)
    posts = dataset.posts("validation")
    paths = [dataset.image_path(digest.tobytes()) for digest in posts.hashes]
    labels = posts.labels(np.arange(len(posts)), len(dataset.tags))
    return f1(release, paths, dataset.tags.names, labels, "micro")


def measure(images: int, sidecars: str, seed: int) -> dict[str, float]:
    """Fine-tune on a case and measure, unless that was done before."""
    directory = CASES / f"{images}-{sidecars}-{seed}"
    result = directory / "result.json"
    if not result.exists():
        shutil.rmtree(directory, ignore_errors=True)
        write_case(directory, images, sidecars, seed)
        run = directory / "run"
        command = ["joytag", "finetune", directory / "images", "--model", RELEASE, "--output", run]
        command += [f"seed={seed}", "tracking.wandb=disabled"]
        subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True)
        held_out = json.loads((directory / "held_out.json").read_text())
        values = {"new": new_f1(run / "release", held_out), "old": old_f1(run / "release")}
        result.write_text(json.dumps(values))
    return json.loads(result.read_text())


def test_new_tags_are_learned_and_old_ones_kept():
    require((RELEASE / "model.safetensors").exists(), "the quickstart's model: make quickstart")
    before, rows, misses = old_f1(RELEASE), [], []
    for images, sidecars in product(IMAGES, SIDECARS):
        results = [measure(images, sidecars, seed) for seed in SEEDS]
        new, old = ([result[name] for result in results] for name in ("new", "old"))
        best = BEST[images, sidecars]
        rows.append(f"| {images} | {sidecars} | {best:.3f} | {spread(new)} | {before:.3f} | {spread(old)} |")
        if np.mean(new) < best or min(old) < before - 0.02:
            misses.append(rows[-1])
    print("", "| images | tags in the sidecars | new tags: 0.2.0 | now | old tags: before | after |", *rows, sep="\n")
    assert not misses


def spread(values: list[float]) -> str:
    """The mean, and the lowest and highest value."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

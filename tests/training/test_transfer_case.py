"""Ten tags that the quickstart's model has never seen, learned from 300 images: `make check-finetune`.

The images are Twemoji's. The tags are the commonest of theirs outside of the model's vocabulary, of which no two
mean the same images; eight images of each are trained on, all others are held out. Old tags are labelled, too.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import ROOT
from requirements import require
from sklearn.metrics import f1_score

from data_prep.sources.posts import split
from data_prep.tools.openmoji import ALIASES
from joytag.data.dataset import Dataset
from joytag.tagging.tagger import Tagger

pytestmark = pytest.mark.slow

RELEASE, DATA, TWEMOJI = ROOT / "runs/openmoji/release", ROOT / "data/openmoji", ROOT / "data/raw/twemoji"
IMAGES, NEW_TAGS, SHOTS = 300, 10, 8


def known_tags(dataset: Dataset) -> dict[bytes, list[str]]:
    """The tags of the quickstart's training images, by sha256."""
    posts = dataset.posts("train")
    tags = [posts.tags[posts.offsets[row] : posts.offsets[row + 1]] for row in range(len(posts))]
    return {posts.hashes[row].tobytes(): [dataset.tags.names[t] for t in tags[row]] for row in range(len(posts))}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[Path, list[str]]:
    """Folders `train` and `held_out`, and the new tags."""
    require((RELEASE / "model.safetensors").exists(), "the quickstart's model: make quickstart")
    folder, dataset = tmp_path_factory.mktemp("case"), Dataset.open(DATA)
    known, tags, uses = known_tags(dataset), {}, defaultdict(set)
    for text in sorted(TWEMOJI.glob("*.txt")):
        image = text.with_suffix(".png")
        digest = hashlib.sha256(image.read_bytes()).digest()
        if digest in known:
            tags[image] = known[digest]
            for tag in set(split(text.read_text(encoding="utf-8"))) - set(dataset.tags.names) - ALIASES.keys():
                uses[tag].add(image)
    new: list[str] = []
    for tag in sorted(uses, key=lambda tag: (-len(uses[tag]), tag)):
        if len(new) < NEW_TAGS and all(len(uses[tag] & uses[other]) < len(uses[tag]) / 2 for other in new):
            new.append(tag)
    rng = np.random.default_rng(0)
    train = {image for tag in new for image in rng.permutation(sorted(uses[tag]))[:SHOTS]}
    rest = [image for image in rng.permutation(sorted(tags)) if image not in train]
    train |= set(rest[: IMAGES - len(train)])
    rest = [image for image in rest if image not in train]
    held_out = [image for image in rest if any(image in uses[tag] for tag in new)]
    held_out += [image for image in rest if image not in held_out][:300]
    for name, images in (("train", train), ("held_out", held_out)):
        (folder / name).mkdir()
        for image in images:
            shutil.copy(image, folder / name)
            both = [*tags[image], *(tag for tag in new if image in uses[tag])]
            (folder / name / f"{image.stem}.txt").write_text(", ".join(both))
    return folder, new


def run(script: str, *arguments: object) -> float:
    """Run a script; gives the seconds that it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, f"scripts/{script}.py", *map(str, arguments)], cwd=ROOT, check=True)
    return time.perf_counter() - start


def macro_f1(release: Path, folder: Path, tags: list[str]) -> float:
    """Of some tags, on a folder of images with sidecars."""
    tagger = Tagger.load(release)
    images = sorted(folder.glob("*.png"))
    labels = [[tag in p.with_suffix(".txt").read_text().split(", ") for tag in tags] for p in images]
    decisions = [[tag in result.tags for tag in tags] for result in tagger.stream(images)]
    return f1_score(np.array(labels), np.array(decisions), average="macro", zero_division=0)


def micro_f1(release: Path) -> float:
    """Of the quickstart's tags, on its validation images."""
    tagger, dataset = Tagger.load(release), Dataset.open(DATA)
    posts = dataset.posts("validation")
    paths = [dataset.image_path(digest.tobytes()) for digest in posts.hashes]
    decisions = [[tag in result.tags for tag in dataset.tags.names] for result in tagger.stream(paths)]
    labels = posts.labels(np.arange(len(posts)), len(dataset.tags))
    return f1_score(labels, np.array(decisions), average="micro", zero_division=0)


def test_new_tags_are_learned_and_old_ones_kept(case, tmp_path):
    folder, new = case
    tuned, scratch = tmp_path / "tuned", tmp_path / "scratch"
    seconds = [run("finetune", folder / "train", "--model", RELEASE, "--output", tuned)]
    # From scratch as the quickstart trains, at the same size, for as many samples.
    config = yaml.safe_load((ROOT / "configs/openmoji.yaml").read_text())
    samples = yaml.safe_load((ROOT / "configs/finetune.yaml").read_text())["stages"][0]["samples"]
    config |= {"output": str(scratch), "stages": [{"image_size": 96, "samples": samples}]}
    config["data"]["directory"] = str(tuned / "dataset")
    (tmp_path / "scratch.yaml").write_text(yaml.safe_dump(config))
    seconds.append(run("train", "--config", tmp_path / "scratch.yaml"))

    learned, from_scratch = (macro_f1(path / "release", folder / "held_out", new) for path in (tuned, scratch))
    before, after = micro_f1(RELEASE), micro_f1(tuned / "release")
    print(f"\nnew tags, macro F1: fine-tuned {learned:.3f}, from scratch {from_scratch:.3f}")
    print(f"old tags, micro F1: before {before:.3f}, after {after:.3f}; seconds {seconds[0]:.0f} and {seconds[1]:.0f}")
    assert learned >= from_scratch + 0.15
    assert after >= before - 0.05

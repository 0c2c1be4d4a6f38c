"""What 500 decisions teach a model about tags that it does not know: `make check-labelling`.

A model learns part of the embedded corpora without 20 tags. Two annotators label other images with these tags, and
answer truthfully: one what the app asks, one images drawn at random. Each then learns in the app. A seed has 4 of the
tags, 125 decisions each. Results are kept in runs/check-labelling; remove a directory to measure it again.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from paths import ROOT
from requirements import require
from scipy import stats
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, f1_score

from joytag.app.decisions import Decision
from joytag.app.labelling import Labelling
from joytag.app.served import load
from joytag.data import dataset, tables
from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation.thresholds import cross_fit
from joytag.tagging.tagger import Tagger

pytestmark = pytest.mark.slow

DATA, CASES = ROOT / "data" / "openmoji", ROOT / "runs" / "check-labelling"
MODEL = CASES / "model" / "release"
SEEDS, TAGS = range(5), 4  # new tags of a seed
DECISIONS, PAGE = 500, 10  # PAGE as in label.js
POOL = 2_500  # images to label
F1, FITTED, AP = "F1 at the default threshold", "F1 at thresholds of the other half of the images", "average precision"


@cache
def new_tags() -> list[str]:
    """Return the tags that the model does not know: drawn from those of 20 to 200 validation images."""
    tags = Dataset.open(DATA).tags
    held = tags.totals - tags.counts
    rows = np.random.default_rng(0).permutation(np.flatnonzero((held >= 20) & (held <= 200)))
    return [tags.names[row] for row in rows[: TAGS * len(SEEDS)]]


def pool() -> NDArray[np.int64]:
    """Return the rows of the training images that are labelled; the model learns the others."""
    return np.random.default_rng(1).permutation(len(Dataset.open(DATA).posts("train")))[:POOL]


def write_dataset(directory: Path) -> None:
    """Write the dataset of what the model knows: without the images of the pool, and without the new tags."""
    names = Dataset.open(DATA).tags.names
    rows = {tag: row for row, tag in enumerate(tag for tag in names if tag not in new_tags())}
    directory.mkdir(parents=True)
    (directory / "images").symlink_to(DATA / "images")
    shutil.copy(DATA / "dataset.json", directory)
    counts = {}
    for split in dataset.SPLITS:
        table = pq.read_table(DATA / f"{split}.parquet")
        if split == "train":
            table = table.take(np.setdiff1d(np.arange(len(table)), pool()))
        tags = [[rows[names[tag]] for tag in its if names[tag] in rows] for its in table["tags"].to_pylist()]
        counts[split] = np.bincount(np.concatenate(tags).astype(np.int64), minlength=len(rows))
        place = table.column_names.index("tags")
        table = table.set_column(place, "tags", pa.array(tags, dataset.POSTS_SCHEMA.field("tags").type))
        tables.write_table(table, dataset.POSTS_SCHEMA, directory / f"{split}.parquet")
    table = pq.read_table(DATA / "tags.parquet").take([row for row, tag in enumerate(names) if tag in rows])
    columns = {name: table[name] for name in table.column_names} | {"index": np.arange(len(rows))}
    columns |= {"count": sum(counts.values()), "count_train": counts["train"], "count_validation": counts["validation"]}
    tables.write_table(pa.table(columns), dataset.TAGS_SCHEMA, directory / "tags.parquet")


def train() -> None:
    """Train the model that does not know the new tags, unless there is one."""
    if not (MODEL / "model.safetensors").exists():
        shutil.rmtree(CASES, ignore_errors=True)
        write_dataset(CASES / "dataset")
        command = ["joytag", "train", "--config", "openmoji.yaml"]
        command += [f"data.directory={CASES / 'dataset'}", f"output={MODEL.parent}"]
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)


def write_folder(folder: Path) -> dict[str, set[str]]:
    """Copy the images of the pool into a folder; return the new ones of their tags, by the names of the files."""
    source, tags = Dataset.open(DATA), {}
    posts, folder_tags = source.posts("train"), new_tags()
    folder.mkdir(parents=True)
    for row in pool():
        path = source.image_path(posts.hashes[row].tobytes())
        shutil.copy(path, folder)
        names = {source.tags.names[tag] for tag in posts.tags[posts.offsets[row] : posts.offsets[row + 1]]}
        tags[path.name] = names.intersection(folder_tags)
    return tags


async def learn(labelling: Labelling) -> None:
    """Fine-tune on the decisions, as the page does. If every new tag has too few images, the model does not change."""
    assert labelling.learning.start(labelling.first.directory, labelling.examples, labelling.use)
    while (now := labelling.learning.progress()).state in ("preparing", "running", "loading"):
        await asyncio.sleep(0.2)
    assert now.state == "done" or "no image has a tag to learn" in now.message, now.message


def label_and_learn(folder: Path, tags: list[str], seed: int, by_queue: bool) -> tuple[Path, dict[str, int]]:
    """Answer the questions about each tag, and learn; return the new release, and each tag's number of yes answers."""
    tags_of, rng = write_folder(folder), np.random.default_rng(seed)
    with Labelling.opened(folder, load([str(MODEL)], device="cpu")[0]) as labelling:
        labelling.collection._thread.join()
        scored = labelling.scored()
        for tag in tags:
            left = DECISIONS // len(tags)
            while left:
                queue, count = labelling.queue(tag, scored), min(left, PAGE)
                undecided = np.flatnonzero(queue.is_left)
                page = queue.page(count, scored.vectors) if by_queue else rng.choice(undecided, count, replace=False)
                images = [scored.images[i] for i in page]
                has = [tag in tags_of[labelling.collection.find(image)[0]] for image in images]
                labelling.decide(
                    [
                        Decision(sha256=image, tag=tag, decision="yes" if yes else "no")
                        for image, yes in zip(images, has, strict=True)
                    ]
                )
                left -= len(page)
        asyncio.run(learn(labelling))
        counts = labelling.decisions.counts()
        return labelling.current.served.directory, {tag: counts[tag]["yes"] for tag in tags}


def rate(release: Path, tags: list[str]) -> dict[str, Any]:
    """Return the metrics of new tags on the validation images, and the micro F1 of the old ones.

    A tag that the model has not learned scores 0 everywhere.
    """
    source, tagger = Dataset.open(DATA), Tagger.load(release, device="cpu")
    posts = source.posts("validation")
    results = tagger.stream([source.image_path(digest.tobytes()) for digest in posts.hashes])
    table = np.stack([np.append(result.scores, 0) for result in results]).astype(np.float16)
    labels = posts.labels(np.arange(len(posts)), len(source.tags))

    def of(names: list[str]) -> tuple[NDArray[np.bool_], NDArray[np.float16]]:
        columns = [tagger.tags.index(tag) if tag in tagger.tags else -1 for tag in names]
        return labels[:, [source.tags.names.index(tag) for tag in names]], table[:, columns]

    (truth, found), (old_truth, old) = of(tags), of([tag for tag in source.tags.names if tag not in new_tags()])
    fitted = cross_fit(found, csc_array(truth)).per_tag.toarray()
    return {
        F1: f1_score(truth, found > DEFAULT_THRESHOLD, average=None, zero_division=0).tolist(),
        FITTED: f1_score(truth, fitted, average=None, zero_division=0).tolist(),
        AP: average_precision_score(truth, found.astype(float), average=None).tolist(),
        "old tags": f1_score(old_truth, old > DEFAULT_THRESHOLD, average="micro"),
    }


def measure(annotator: str, seed: int) -> dict[str, Any]:
    """Let an annotator label and learn, unless that was done before; return the metrics, and the answers by tag."""
    directory, tags = CASES / f"{annotator}-{seed}", new_tags()[seed * TAGS : (seed + 1) * TAGS]
    result = directory / "result.json"
    if not result.exists():
        shutil.rmtree(directory, ignore_errors=True)
        release, yes = label_and_learn(directory / "images", tags, seed, annotator == "queue")
        result.write_text(json.dumps({"yes": yes, **rate(release, tags)}))
    return json.loads(result.read_text())


def test_decisions_by_the_queue_teach_more_than_random_ones():
    require((DATA / "dataset.json").exists(), "the quickstart's dataset: make quickstart")
    train()
    queue, random = ([measure(name, seed) for seed in SEEDS] for name in ("queue", "random"))
    before = rate(MODEL, new_tags())["old tags"]
    for name, results in (("queue", queue), ("random", random)):
        yes = sum(sum(result["yes"].values()) for result in results)
        old = np.mean([result["old tags"] for result in results])
        print(f"\n{name}: {yes} yes in {DECISIONS * len(results)}; old tags, micro F1: {before:.3f} -> {old:.3f}")
    for metric in (F1, FITTED, AP):
        means = np.array([[np.mean(result[metric]) for result in results] for results in (queue, random)])
        gain = means[0] - means[1]
        low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
        (asked, drawn), every = means.mean(axis=1), np.round(gain, 3).tolist()
        print(f"{metric}: {asked:.3f}, at random {drawn:.3f}; {gain.mean():+.3f} ({low:+.3f} to {high:+.3f}), {every}")
        assert low > 0 or metric == F1

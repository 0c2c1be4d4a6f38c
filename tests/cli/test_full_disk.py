"""Every command that writes, on a disk that is full and killed while it writes.

A full disk ends it in one line that names the file and the remedy, or it goes on with a warning. No file has its final
name before it has its whole content, and the same command works afterwards.
"""

import random
import re
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from commands import Done, assert_one_line
from paths import TINY
from PIL import Image
from small_disk import Ended, SmallDisk
from training_runs import miniature

from joytag.data import dataset

pytestmark = pytest.mark.faults

FREE = (0, 0.1, 0.4, 0.7, 0.95)  # of what a command still needs
MOMENTS = 3  # at which it is killed, at random in as many parts of the time in which it writes
VARIABLE = re.compile(r"tensorboard/.*|wandb/.*")
ABANDONED = re.compile(r"\.[0-9a-f]{16}\.part$")


class Case(NamedTuple):
    """A command's words, what is on the disk before, and some files that it writes.

    {disk} and {inputs} are directories. `finished` is what the command says when it is done already. Where others may
    write at the same time, `is_shared`, hidden files of a killed process are removed an hour later.
    """

    words: str
    start: dict[str, str]
    outputs: list[str]
    finished: str = ""
    is_shared: bool = False


REPORTS = ("metrics.json", "full-metrics.txt", "per_tag.csv", "report.html")
TAG = f"tag --model {TINY} --device cpu {{disk}}/images"
FAILED = "images/failed.jsonl"
CASES = {
    "build": Case(
        "build --config folder sources.0.path={inputs}/images output={disk}/dataset",
        {},
        ["dataset/dataset.json", "dataset/train.parquet"],
    ),
    "describe": Case("describe {disk}/dataset", {"dataset": "sound"}, ["dataset/dataset.png"], is_shared=True),
    "dedup": Case("dedup --report {disk}/dataset", {"dataset": "sound"}, ["dataset/copies.png"], is_shared=True),
    "train": Case(
        "train --config {inputs}/run.yaml --resume auto output={disk}/run data.max_bad=0.5 micro_batch=auto "
        "tracking.tensorboard=true tracking.wandb=offline",
        {},
        [
            f"run/{name}"
            for name in (
                "log.jsonl",
                "events.jsonl",
                "quarantine.jsonl",
                "micro_batch.json",
                "wandb-id.txt",
                "release/model.safetensors",
            )
        ],
    ),
    "finetune": Case(
        f"finetune {{inputs}}/images --model {TINY} --output {{disk}}/tuned device=cpu tracking.wandb=disabled",
        {},
        ["tuned/dataset/dataset.json", "tuned/release/model.safetensors"],
        "holds a finished run",
    ),
    "evaluate": Case(
        "evaluate --model {disk}/run/checkpoints/000000000184 --data {inputs}/dataset --device cpu",
        {"run": "run"},
        [f"run/evaluations/000000000184/{name}" for name in (*REPORTS, "predictions/provenance.json")],
    ),
    "evaluate at another threshold": Case(
        "evaluate --model {disk}/run --data {inputs}/dataset --device cpu --threshold 0.3",
        {"run": "run"},
        [f"run/release/at-0.3/{name}" for name in REPORTS],
    ),
    "compare": Case(
        "compare {inputs}/run/release {inputs}/run/checkpoints/000000000176 --data {inputs}/dataset --device cpu",
        {},
        [f"runs/comparison/{name}" for name in ("compare.html", "compare.json", "per_tag.csv", "per_tag.parquet")],
    ),
    "show": Case(
        "show --run {disk}/run --data {inputs}/dataset",
        {"run": "run"},
        ["run/curves.png", "run/contact-sheet.png"],
        is_shared=True,
    ),
    "export": Case(
        f"export --model {TINY} --to all --output {{disk}}/exports",
        {},
        ["exports/joytag/model.onnx", "exports/wd/selected_tags.csv", "exports/transformers/manifest.json"],
        "exists already",
    ),
    "publish": Case(
        "publish {disk}/exports --hub me/noise --license other --trained-on noise --card-only",
        {"exports": "exports"},
        ["exports/README.md"],
    ),
    "tag": Case(TAG, {"images": "untagged"}, ["images/9.txt", FAILED], is_shared=True),
    "tag --append": Case(f"{TAG} --append", {"images": "images"}, ["images/9.txt", FAILED], is_shared=True),
    "tag to csv": Case(f"{TAG} --output csv", {"images": "untagged"}, ["images/tags.csv", FAILED], is_shared=True),
    "tag to jsonl": Case(f"{TAG} --output jsonl", {"images": "untagged"}, ["images/tags.jsonl"], is_shared=True),
    "openmoji": Case(
        "openmoji --output {disk}/raw",
        {},
        [
            "raw/openmoji/metadata/posts000000000000.json",
            "raw/openmoji/original/0001/1.png",
            "raw/twemoji/1f600/1f600.txt",
        ],
    ),
    "synthetic": Case(
        "synthetic --output {disk}/mirror --posts 60",
        {},
        ["mirror/answers.json", "mirror/metadata/posts000000000000.json"],
    ),
    "benchmark": Case(
        "benchmark all --device cpu --json {disk}/measured.json", {}, ["measured.json", "runs/rates.json"]
    ),
}


class Inputs:
    """The disk, what the commands read, and how each command ends on an empty disk."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.disk = directory, SmallDisk(directory / "disk")
        self._whole: dict[str, Ended] = {}

    def words(self, text: str) -> list[str]:
        return [word.format(disk=self.disk.path, inputs=self.directory) for word in text.split()]

    def start(self, name: str) -> dict[str, str]:
        return {target: str(self.directory / source) for target, source in CASES[name].start.items()}

    def whole(self, name: str) -> Ended:
        if name not in self._whole:
            ended = self.disk.run(self.words(CASES[name].words), start=self.start(name))
            assert ended.code == 0, ended.errors
            assert not ended.damaged
            assert {*CASES[name].outputs} <= {*ended.files}
            self._whole[name] = ended
        return self._whole[name]

    def check_that_it_works_now(self, name: str) -> None:
        """Run a command again, and check that the disk then holds what it holds after an undisturbed one."""
        whole, ended = self.whole(name), self.disk.run(self.words(CASES[name].words))
        if ended.code != 0:
            assert CASES[name].finished, ended.errors
            assert CASES[name].finished in ended.errors
        else:
            assert {*ended.errors.splitlines()} <= {*whole.errors.splitlines()}
        assert not ended.damaged
        left = {path for path in ended.files if CASES[name].is_shared and ABANDONED.search(path)}
        assert _names(ended) - left == _names(whole)


def _names(ended: Ended) -> set[str]:
    return {name for name in ended.files if not VARIABLE.search(name)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folders of images with and without sidecars, a dataset with damaged copies, and a run."""
    its = Inputs(tmp_path_factory.mktemp("inputs"))
    images, untagged, rng = its.directory / "images", its.directory / "untagged", np.random.default_rng(0)
    images.mkdir()
    for number in range(20):
        image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        image.save(images / f"{number}.png")
        image.resize((60, 60)).save(images / f"{number}-larger.png")
    (images / "broken.webp").write_bytes((images / "0.png").read_bytes()[:200])
    shutil.copytree(images, untagged)
    for path in images.glob("*.png"):
        path.with_suffix(".txt").write_text("noise, grainy texture\n" if int(path.stem[0]) % 2 else "noise\n")
    build = f"build --config folder sources.0.path={images} output={its.directory / 'dataset'}"
    settings = miniature(its.directory / "run", its.directory / "dataset")
    (its.directory / "run.yaml").write_text(yaml.safe_dump(settings))
    train = f"train --config {its.directory / 'run.yaml'} keep_last=2"
    export = f"export --model {TINY} --to wd --output {its.directory / 'exports'}"
    for command in (build, train, export):
        ended = its.disk.run(command.split(), start={})
        assert ended.code == 0, ended.errors
    shutil.copytree(its.directory / "dataset", its.directory / "sound")
    for split in dataset.SPLITS:
        sha256 = pq.read_table(its.directory / "dataset" / f"{split}.parquet")["hash"][0].as_py()
        copy = next((its.directory / "dataset").glob(f"images/*/*/{sha256.hex()}.*"))
        copy.write_bytes(copy.read_bytes()[:100])
    yield its
    its.disk.close()


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_reported_in_one_line_that_names_the_file_and_the_remedy(inputs, name):
    whole, words = inputs.whole(name), inputs.words(CASES[name].words)
    for share in FREE:
        start = inputs.start(name) if share == 0 else None
        capacity = whole.before + int(share * (whole.after - whole.before))
        ended = inputs.disk.run(words, start=start, capacity=capacity)
        lines = [line for line in ended.errors.splitlines() if line not in whole.errors]
        warned = lines if ended.code == 0 else lines[:-1]
        assert lines, share
        assert ended.code in (0, 2), ended.errors
        assert all("warning: " in line for line in warned), ended.errors
        for line in lines:
            assert str(inputs.disk.path) in line or "runs/" in line, ended.errors
            assert "free some space" in line, ended.errors
        assert not ended.damaged, share
    inputs.check_that_it_works_now(name)


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_is_killed_leaves_only_whole_files_and_works_afterwards(inputs, name):
    whole, words, chance = inputs.whole(name), inputs.words(CASES[name].words), random.Random(name)
    codes = []
    for part in range(MOMENTS):
        moment = whole.seconds * (part + chance.random()) / MOMENTS
        for sooner in (1, 2, 4, 8, 16):  # it may take less time than before
            ended = inputs.disk.run(words, start=inputs.start(name), killed_after=moment / sooner)
            codes.append(ended.code)
            assert not ended.damaged, moment
            if ended.code != 0:
                break
        inputs.check_that_it_works_now(name)
    assert -signal.SIGKILL in codes
    assert {*codes} <= {0, -signal.SIGKILL}


def test_a_sweep_on_a_full_disk_ends_in_one_line_and_works_afterwards(inputs):
    sweep = {"base": "sound.yaml", "output": str(inputs.disk.path / "sweep"), "seeds": 1}
    settings = miniature(inputs.directory / "run", inputs.directory / "sound")
    (inputs.directory / "sound.yaml").write_text(yaml.safe_dump(settings))
    (inputs.directory / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = inputs.words("sweep --config {inputs}/sweep.yaml")
    for capacity in (0, 60_000):
        ended = inputs.disk.run(words, start={} if capacity == 0 else None, capacity=capacity)
        assert_one_line(Done(ended.code, "", ended.errors), str(inputs.disk.path), "free some space")
    ended = inputs.disk.run(words)
    assert (ended.code, ended.errors) == (0, "")
    assert "sweep/ledger.jsonl" in ended.files

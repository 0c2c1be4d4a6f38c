"""The command lines as people call them: what they print, write, and exit with."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import runpy
import shutil
import struct
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_prep.tools import benchmark as preparation
from data_prep.tools import synthetic
from joytag.benchmarks import tagging
from joytag.data.dataset import Dataset
from joytag.models import checkpoint, release
from joytag.models.vit import ViTConfig
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import initial_state, save_state

ROOT = Path(__file__).parents[2]
CPU, FLOAT = torch.device("cpu"), torch.float32
TINY = ROOT / "tests" / "fixtures" / "release_tiny"

# Loaded at start by `offline`: only this machine can be reached.
NO_NETWORK = """
import socket
def refuse(self, address, connect=socket.socket.connect):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return connect(self, address)
    raise OSError("network unreachable")
socket.socket.connect = refuse
"""


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a script from the project's root, in this process to save the imports."""

    def run(script: str, *arguments: object) -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [f"scripts/{script}.py", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            try:
                runpy.run_path(f"scripts/{script}.py", run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def offline(tmp_path):
    """Run a script in a process of its own, without network and away from the home directory."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, f"scripts/{script}.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    return run


def assert_one_line(done: Done | subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_dry_run_of_the_recipe_gives_the_published_figures(call):
    done = call("train", "--config", "b16_448.yaml", "--dry-run", "data.tags=5813")
    assert done.returncode == 0, done.stderr
    assert "91,491,509" in done.stdout
    assert re.search(r"optimizer steps +53,710 ", done.stdout)
    assert re.search(r"optimizer steps +107,421 ", done.stdout)
    gflop = [float(value) for value in re.findall(r"([\d.]+) GFLOP an image", done.stdout)]
    assert gflop == [pytest.approx(109, rel=0.02), pytest.approx(487, rel=0.02)]


def test_training_without_data_says_what_is_missing_and_what_builds_it(call):
    done = call("train", "--config", "b16_448.yaml", "data.directory=data/nowhere")
    assert_one_line(done, "data/nowhere", "joytag build --config")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config", "b16_44.yaml"], ["b16_44.yaml", "did you mean b16_448.yaml?"]),
        (["--config", "b16_448", "optimiser.lr=1"], ["optimiser", "did you mean optimizer?"]),
        (["--config", "b16_448", "optimizer.lr=fast"], ["optimizer.lr", "'fast'"]),
        (["--config", "b16_448", "stages.0.sample=4096"], ["stages.0.sample", "did you mean stages.0.samples?"]),
        (["--config", "b16_448", "stages.7.samples=4096"], ["stages.7.samples", "0 to 1"]),
        (["--config", "b16_448", "--dry-run", "data.directory=nowhere"], ["data.tags", "nowhere"]),
        (["--config", "openmoji", "--dry-run", "data.tags=9", "device=cud"], ["device", "'cud'"]),
        (["--config", "openmoji", "data.tags=9", "data.workers=-1"], ["data.workers", "-1"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_mistake_ends_in_one_line(call, arguments, parts):
    assert_one_line(call("train", *arguments), *parts)


def damaged_checkpoint(root: Path, run_values: dict, damage) -> Path:
    """A checkpoint that its manifest vouches for, whatever was done to its files."""
    run = Run(RunSettings.model_validate(run_values), Dataset.open(Path(run_values["data"]["directory"])), CPU, FLOAT)
    save_state(initial_state(run), run, required=True)
    [path] = checkpoint.checkpoints(run.root)
    damage(path)
    files = [file for file in path.iterdir() if file.name != checkpoint.MANIFEST]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    (path / checkpoint.MANIFEST).write_text("".join(lines))
    return path


class Evil:
    """Whose unpickling leaves a file behind."""

    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


HUGE_HEADER = struct.pack("<Q", 2**40) + b"{}"
LONG_SHAPE = b'{"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_state.safetensors", pickle.dumps(Evil())),
        ("train_state.safetensors", HUGE_HEADER),
        ("train_state.safetensors", struct.pack("<Q", len(LONG_SHAPE)) + LONG_SHAPE),
        ("model.safetensors", pickle.dumps(Evil())),
        ("model.safetensors", HUGE_HEADER),
        ("train_state.json", b"[" * 100_000),
        ("train_state.json", b'{"samples": "many"}'),
        ("train_state.json", b"[]"),
        ("config.json", b"{}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_checkpoint_is_refused_in_one_line(call, run_values, tmp_path, name, content):
    path = damaged_checkpoint(tmp_path, run_values, lambda path: (path / name).write_bytes(content))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values))
    done = call("train", "--config", tmp_path / "run.yaml", "--resume", path)
    assert_one_line(done, str(path))
    assert not (ROOT / "evil").exists()


@pytest.mark.parametrize(
    "text", ["output: !!python/object/apply:os.system [touch evil]\n", "a: &a [*a]\n", "output: [\n", "\0", "- 1\n"]
)
def test_a_hostile_config_is_refused_in_one_line(call, tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    assert_one_line(call("train", "--config", tmp_path / "run.yaml"), str(tmp_path / "run.yaml"))
    assert not (ROOT / "evil").exists()


def test_a_small_run_goes_from_config_to_tags_offline(call, offline, run_values, dataset_directory, tmp_path):
    run, config = Path(run_values["output"]), tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(run_values | {"tracking": {"wandb": "auto"}}))
    done = offline("train", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stderr, done.stderr
    assert list(run.glob("wandb/offline-run-*"))

    again = call("train", "--config", config)
    assert_one_line(again, "--resume auto")
    done = offline("train", "--config", config, "--resume", "auto")
    assert done.returncode == 0, done.stderr

    done = call("evaluate", "--model", run / "release", "--data", dataset_directory, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["sources"].keys() == {"drawn", "photo"}
    macro_f1 = metrics["headline"]["fixed"]["macro_f1"]["value"]
    text = (tmp_path / "out" / "full-metrics.txt").read_text()
    f1 = [float(value) for value in re.findall(r"^F1: ([\d.]+)$", text, re.MULTILINE)]
    assert sum(f1) / len(f1) == pytest.approx(macro_f1, abs=5e-5)
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["val_macro_f1"] == pytest.approx(macro_f1)

    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    image = tmp_path / "an image.png"
    Image.new("RGB", (30, 20), "red").save(image)
    options = ("--output", "print", "--threshold", "0.01")
    first = call("predict", "--model", run / "release", image, *options)
    second = call("predict", "--model", checkpoint, image, *options)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    scores = [float(value) for value in re.findall(r"^  ([\d.]+)  tag_\d$", first.stdout, re.MULTILINE)]
    assert scores
    assert scores == sorted(scores, reverse=True)

    (run / "release" / "metrics.json").write_text((tmp_path / "out" / "metrics.json").read_text())
    done = call("show", "--run", run, "--data", dataset_directory)
    assert done.returncode == 0, done.stderr
    assert (run / "contact-sheet.png").exists()
    assert (run / "curves.png").exists()
    assert "The model predicts 6 tags with micro F1" in done.stdout

    shutil.move(run / "release", tmp_path / "finished")  # as in the middle of a run
    done = call("show", "--run", run, "--data", dataset_directory)
    assert done.returncode == 0
    assert f"tagged by {checkpoint}" in done.stdout
    assert_one_line(
        call("show", "--run", dataset_directory, "--data", dataset_directory), "neither a release nor a checkpoint"
    )


def test_predict_and_evaluate_name_what_they_cannot_use(call, dataset_directory, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "text.png").write_text("no image")
    assert_one_line(call("predict", "--model", TINY, tmp_path / "text.png"), "text.png", "not an image")
    assert_one_line(call("predict", "--model", TINY, tmp_path / "gone.png"), "gone.png", "no such file")
    assert_one_line(call("predict", "--model", tmp_path, tmp_path / "text.png"), "config.json", "missing")
    assert_one_line(call("evaluate", "--model", TINY, "--data", dataset_directory), "tags")
    assert_one_line(call("predict", "--model", TINY, tmp_path / "texts"), "no images here")
    assert_one_line(call("evaluate", "--model", TINY, "--data", dataset_directory, "--threshold", "1.5"), "--threshold")
    assert_one_line(call("evaluate", "--model", TINY, "--data", dataset_directory, "--batch-size", "0"), "--batch-size")
    assert_one_line(call("evaluate", "--model", TINY), "--data")
    assert_one_line(call("evaluate"), "either --model and --data, or --predictions")
    assert_one_line(call("evaluate", "--model", TINY, "--predictions", tmp_path), "either --model and --data, or")
    assert_one_line(call("evaluate", "--predictions", tmp_path), str(tmp_path), "no predictions here")
    assert_one_line(call("evaluate", "--predictions", tmp_path, "--groups", tmp_path / "gone.yaml"), "gone.yaml")


@pytest.fixture
def untrained(run_values, tmp_path) -> Path:
    """A release for the dataset."""
    config = RunSettings.model_validate(run_values)
    run = Run(config, Dataset.open(Path(config.data.directory)), CPU, FLOAT)
    release.save(tmp_path / "untrained", initial_state(run).model, run.dataset.tags.names, "focal2")
    return tmp_path / "untrained"


def reports(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_reports_are_made_anew_without_model_and_images(call, untrained, dataset_directory, tmp_path):
    data = tmp_path / "dataset"
    shutil.copytree(dataset_directory, data)
    release_files = {path.name for path in untrained.iterdir()}
    done = call("evaluate", "--model", untrained, "--data", data)
    assert done.returncode == 0 and "Threshold 0.4" in done.stdout, done.stderr
    first = reports(untrained)
    assert {"full-metrics.txt", "metrics.json", "per_tag.parquet", "per_tag.csv", "thresholds.csv", "label_errors.csv",
            "report.html", *release_files} == first.keys()  # fmt: skip
    stored = untrained / "predictions"
    done = call("evaluate", "--predictions", stored)
    assert done.returncode == 0 and reports(untrained) == first, "with the images of the dataset, which is there"
    assert b"data:image" in first["report.html"]
    image = next(data.glob("images/*/*/*.jpg"))
    assert call("predict", "--model", untrained, image, "--output", "print").returncode == 0

    stored.rename(tmp_path / "stored")
    shutil.rmtree(untrained)
    shutil.rmtree(data)
    done = call("evaluate", "--predictions", tmp_path / "stored", "--threshold", "0.35", "--output", tmp_path / "new")
    assert done.returncode == 0 and "Threshold 0.35" in done.stdout, done.stderr
    again = reports(tmp_path / "new")
    assert again.keys() == first.keys() - release_files
    assert b"data:image" not in again["report.html"]
    assert json.loads(again["metrics.json"])["thresholds"]["fixed"] == 0.35
    assert again["full-metrics.txt"] != first["full-metrics.txt"]
    assert again["thresholds.csv"] == first["thresholds.csv"], "which do not depend on it"
    (tmp_path / "groups.yaml").write_text("even: [tag_0, tag_2, tag_4]\nodd: [tag_1, tag_3, tag_5]\n")
    done = call("evaluate", "--predictions", tmp_path / "stored", "--groups", tmp_path / "groups.yaml",
                "--data", dataset_directory, "--output", tmp_path / "new")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "new" / "metrics.json").read_text())["groups"].keys() == {"even", "odd"}
    assert b"data:image" in (tmp_path / "new" / "report.html").read_bytes()


def test_torchrun_shares_an_evaluation(call, untrained, dataset_directory, tmp_path):
    done = call("evaluate", "--model", untrained, "--data", dataset_directory, "--output", tmp_path / "alone",
                "--batch-size", "4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "scripts/evaluate.py", "--model", str(untrained), "--data",
               str(dataset_directory), "--output", str(tmp_path / "shared"), "--batch-size", "4"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shared = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert shared.returncode == 0 and shared.stdout.count("Written") == 1, shared.stderr
    alone, together = (reports(tmp_path / name / "predictions") for name in ("alone", "shared"))
    assert {k: v for k, v in alone.items() if k != "provenance.json"} == {
        k: v for k, v in together.items() if k != "provenance.json"
    }
    texts = [(tmp_path / name / "full-metrics.txt").read_text() for name in ("alone", "shared")]
    assert texts[0] == texts[1]


@pytest.fixture
def images(tmp_path):
    """A folder of four images."""
    folder = tmp_path / "my images"
    folder.mkdir()
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (30, 20), colour).save(folder / f"{colour}.png")
    return folder


def test_a_folder_is_tagged_and_then_left_alone(call, images):
    done = call("predict", "--model", TINY, images, "--dry-run", "--threshold", "0.3")
    assert done.returncode == 0
    assert "4 images; 4 to tag, into a .txt file beside each" in done.stdout
    assert not list(images.glob("*.txt"))
    done = call("predict", "--model", TINY, images, "--threshold", "0.3")
    assert done.returncode == 0, done.stderr
    assert len(list(images.glob("*.txt"))) == 4
    assert "4 images tagged" in done.stdout
    assert "fp32 on" in done.stdout
    counts = [int(count) for count in re.findall(r"^ +(\d+)  \w+", done.stdout, re.MULTILINE)]
    assert counts
    assert counts == sorted(counts, reverse=True)
    assert max(counts) <= 4
    done = call("predict", "--model", TINY, images)
    assert done.returncode == 0
    assert "4 of them done" in done.stdout
    assert "0 to tag" in done.stdout


def test_flags_may_be_spelled_as_in_sd_scripts(call, images):
    """Each spelling gives the same sidecars as ours."""
    ours = ["--threshold", "0.3", "--underscores", "space", "--exclude", "tag_0", "--always-first", "tag_5",
            "--replace", "tag_3=other", "--separator", "; ", "--extension", ".caption", "--batch-size", "2",
            "--workers", "1"]  # fmt: skip
    theirs = ["--thresh", "0.3", "--remove_underscore", "--undesired_tags", "tag_0", "--always_first_tags", "tag_5",
              "--tag_replacement", "tag_3,other", "--caption_separator", "; ", "--caption_extension", ".caption",
              "--batch_size", "2", "--max_data_loader_n_workers", "1", "--frequency_tags"]  # fmt: skip
    found = []
    for flags in (ours, theirs):
        done = call("predict", "--model", TINY, images, "--overwrite", *flags)
        assert done.returncode == 0, done.stderr
        found.append({path.name: path.read_text() for path in images.glob("*.caption")})
    assert len(found[0]) == 4
    assert found[0] == found[1]
    done = call("predict", "--model", TINY, images, "--append_tags", "--caption_extension", ".caption")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--max-tags", "0"], "--max-tags"),
        (["--replace", "solo"], "--replace"),
        (["--output", "xml"], "--output"),
        (["--batch-size", "many"], "--batch-size"),
        (["--separator", ""], "--separator"),
        (["--extension", ".png"], "--extension"),
        (["--append", "--overwrite"], "--append"),
        (["--thresholds", "gone.json"], "gone.json"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--precision", "int8", "--device", "mps"], "mps"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_in_tagging_ends_in_one_line_and_writes_nothing(call, images, flags, part):
    before = sorted(images.iterdir())
    assert_one_line(call("predict", "--model", TINY, images, *flags), part)
    assert sorted(images.iterdir()) == before


def test_tag_fine_tune_and_tag_again(call, images, tmp_path):
    """The three commands of the README, on a model that knows none of the words."""
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("noise, grainy texture")
    assert call("predict", "--model", TINY, images, "--append").returncode == 0
    run = tmp_path / "mine"
    short = ("stages.0.samples=64", "batch_size=16", "tracking.wandb=disabled")
    done = call("finetune", images, "--model", TINY, "--output", run, *short)
    assert done.returncode == 0, done.stderr
    assert "23 tags kept, 2 tags new, 0 tags dropped" in done.stdout
    assert {"noise", "grainy_texture"} <= set((run / "release" / "top_tags.txt").read_text().split("\n"))
    done = call("predict", "--model", run / "release", images, "--append")
    assert done.returncode == 0, done.stderr
    assert_one_line(call("finetune", images, "--model", TINY, "--output", run, *short), "another --output")

    done = call("finetune", images, "--model", TINY, "--output", tmp_path / "new", "--only-new-tags", *short)
    assert done.returncode == 0, done.stderr
    assert "dropped" in done.stdout
    assert "grainy_texture" in (tmp_path / "new/release/top_tags.txt").read_text()


def test_output_may_be_cut_off(images):
    command = f"{sys.executable} scripts/predict.py --model {TINY} --threshold 0.01 --output print '{images}' | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith(".png\n")
    assert done.stderr == ""


def test_fine_tuning_names_what_it_lacks(call, images, tmp_path):
    done = call("finetune", images, "--model", TINY, "--output", tmp_path / "o", "optimizer.lrr=1")
    assert_one_line(done, "did you mean optimizer.lr?")
    assert not (tmp_path / "o").exists()
    (tmp_path / "empty").mkdir()
    assert_one_line(call("finetune", tmp_path / "gone", "--model", TINY, "--output", tmp_path / "o"), "gone")
    assert_one_line(call("finetune", tmp_path / "empty", "--model", TINY, "--output", tmp_path / "o"), "sidecars")
    assert_one_line(call("finetune", tmp_path, "--model", tmp_path / "no", "--output", tmp_path / "o"), "no such")


def test_the_tagging_benchmark_compares_side_by_side(monkeypatch, tmp_path):
    small = ViTConfig(n_tags=20, image_size=32, num_blocks=1, patch_size=16, d_model=32, mlp_dim=32, num_heads=2,
                      cnn_stem=None)  # fmt: skip
    monkeypatch.setattr(tagging, "ViTConfig", lambda n_tags: dataclasses.replace(small, n_tags=n_tags))
    text = tagging.tag(n_images=2, rounds=2, device="cpu", precision="fp32")
    assert re.search(r"ratio \d+\.\d+ \(median; ", text)
    assert "same decisions 100.0000%" in text


def test_the_benchmarks_of_preparation_compare_side_by_side(tmp_path):
    text = preparation.scanning(n_images=2, rounds=1)
    assert "JPEG" in text
    assert "PNG" in text
    assert "same pHash 100.00%, at most 0 bits apart" in text
    assert "same groups: True" in preparation.grouping(20_000, 1_000)
    assert "mixed" in preparation.formats(n_images=2, rounds=1)
    synthetic.write(tmp_path, 40_000, images=False)
    assert "same vocabulary: True" in preparation.metadata(40_000, tmp_path)

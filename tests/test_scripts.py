"""The command lines as people call them: what they print, write, and exit with."""

import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]

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
    assert_one_line(done, "data/nowhere", "python -m data_prep.build --config")


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
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert metrics.keys() == {"all", "drawn", "photo"}
    text = (tmp_path / "out" / "full-metrics.txt").read_text()
    f1 = [float(value) for value in re.findall(r"^F1: ([\d.]+)$", text, re.MULTILINE)]
    assert sum(f1) / len(f1) == pytest.approx(metrics["all"]["macro_f1"], abs=5e-5)
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["val_macro_f1"] == pytest.approx(metrics["all"]["macro_f1"])

    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    picture = tmp_path / "a picture.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    first = call("predict", "--model", run / "release", picture, "--threshold", "0.01")
    second = call("predict", "--model", checkpoint, picture, "--threshold", "0.01")
    assert first.returncode == 0 and first.stdout == second.stdout
    scores = [float(value) for value in re.findall(r"^  ([\d.]+)  tag_\d$", first.stdout, re.MULTILINE)]
    assert scores and scores == sorted(scores, reverse=True)

    (run / "release" / "metrics.json").write_text((tmp_path / "out" / "metrics.json").read_text())
    done = call("show", "--run", run, "--data", dataset_directory)
    assert done.returncode == 0, done.stderr
    assert (run / "contact-sheet.png").exists() and (run / "curves.png").exists()


def test_predict_and_evaluate_name_what_they_cannot_use(call, dataset_directory, tmp_path):
    tiny = ROOT / "tests" / "fixtures" / "release_tiny"
    (tmp_path / "texts").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    assert_one_line(call("predict", "--model", tiny, tmp_path / "text.png"), "text.png", "not a picture")
    assert_one_line(call("predict", "--model", tiny, tmp_path / "gone.png"), "gone.png", "no such file")
    assert_one_line(call("predict", "--model", tmp_path, tmp_path / "text.png"), "config.json", "missing")
    assert_one_line(call("evaluate", "--model", tiny, "--data", dataset_directory), "tags")
    assert_one_line(call("predict", "--model", tiny, tmp_path / "texts"), "no pictures here")
    assert_one_line(call("evaluate", "--model", tiny, "--data", dataset_directory, "--threshold", "1.5"), "--threshold")
    assert_one_line(call("evaluate", "--model", tiny, "--data", dataset_directory, "--batch-size", "0"), "--batch-size")
    assert_one_line(call("evaluate", "--model", tiny), "--data")

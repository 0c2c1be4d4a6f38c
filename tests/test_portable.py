"""Other systems: without what only Unix has, with the rules of Windows for open files, names and text."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT, TINY
from PIL import Image

import data_prep
import joytag

WITHOUT_UNIX = ROOT / "tests" / "helpers" / "without_unix"
EVERYTHING = """
import sys
from importlib import import_module
from pathlib import Path
from joytag.cli import command

if __name__ == "__main__":
    modules, model, images, output = sys.argv[1].split(), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    for name in modules:
        import_module(name)
    run = ["--model", model, "--output", str(output)]
    settings = ["stages.0.samples=32", "batch_size=16", "tracking.wandb=disabled"]
    command.run("tag", ["--model", model, str(images), "--append"])
    command.run("tag", ["--model", model, str(images), "--output", "csv"])
    command.run("finetune", [str(images), *run, *settings])
    for workers in (["--workers", "1"], []):
        command.run("evaluate", ["--model", str(output / "release"), "--data", str(output / "dataset"), *workers])
    command.run("tag", ["--model", str(output / "release"), str(images), "--output", "print"])
"""


@pytest.fixture
def images(tmp_path) -> Path:
    """Images of noise with sidecars, some of whose names a Western console cannot show."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        name = f"日本語 {number}"
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{name}.PNG")
        (folder / f"{name}.txt").write_text("noise, naïve_art, 日本", encoding="utf-8")
    return folder


def modules() -> list[str]:
    """The modules that need no package besides those for training."""
    names = [m.name for p in (joytag, data_prep) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    without = ("joytag.benchmarks", "joytag.cli.benchmark", "joytag.__main__", "data_prep.tools.benchmark")
    return [name for name in names if not name.startswith(without)]


def test_tagging_finetuning_and_evaluating_work_without_unix(tmp_path, images):
    """All commands in one process, to import torch once; a decoding process is spawned."""
    (tmp_path / "all.py").write_text(EVERYTHING, encoding="utf-8")
    paths = {"PYTHONPATH": os.pathsep.join([str(WITHOUT_UNIX), str(ROOT)]), "PYTHONIOENCODING": "cp1252"}
    line = [sys.executable, tmp_path / "all.py", " ".join(modules()), TINY, images, tmp_path / "run"]
    environment = os.environ | paths | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, encoding="cp1252", timeout=240)
    assert done.returncode == 0, done.stderr
    assert r"\u65e5\u672c\u8a9e 0.PNG" in done.stdout
    run = tmp_path / "run"
    assert "日本" in (run / "release" / "top_tags.txt").read_text(encoding="utf-8").split("\n")
    assert json.loads((run / "release" / "metrics.json").read_text(encoding="utf-8"))
    written = [
        *run.rglob("*.json"),
        *run.rglob("*.jsonl"),
        *run.rglob("*.txt"),
        *run.rglob("*.csv"),
        *images.glob("*.txt"),
    ]
    written += run.rglob("MANIFEST.sha256")
    assert [path for path in written if path.suffix != ".csv" and b"\r" in path.read_bytes()] == []


def test_the_simulation_takes_unix_away():
    """Else the test above would show nothing."""
    probe = """
import multiprocessing, os, signal
print(any(hasattr(os, name) for name in ("fork", "setpgid", "getuid", "sched_getaffinity", "O_DIRECTORY")))
print(hasattr(signal, "SIGALRM"), multiprocessing.get_start_method(), os.path.exists("/dev/shm"))
for action in (lambda: __import__("resource"), lambda: os.open(".", os.O_RDONLY), lambda: open("con.txt", "w")):
    try:
        print(action())
    except (ImportError, OSError) as error:
        print(type(error).__name__)
"""
    path = ROOT / "tests" / "_probe.py"
    path.write_text(probe, encoding="utf-8")
    try:
        environment = os.environ | {"PYTHONPATH": str(WITHOUT_UNIX)}
        done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    finally:
        path.unlink()
    assert done.stdout.split() == [
        "False",
        "False",
        "spawn",
        "False",
        "ModuleNotFoundError",
        "PermissionError",
        "OSError",
    ], done.stderr

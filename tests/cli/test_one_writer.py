"""Two and three processes at one output: one works, the others are refused in a line before they write anything."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import HANG, assert_one_line
from paths import TINY
from PIL import Image
from training_runs import build_run

from joytag.cli import command
from joytag.core.files import file_hash
from joytag.models import release
from joytag.training.state import initial_state

pytest.importorskip("fcntl")  # Unix has it
CONTEXT = multiprocessing.get_context("fork")
# They hold times and paths.
DATED = {
    "MANIFEST.sha256",
    "compare.html",
    "compare.json",
    "config.yaml",
    "dataset.json",
    "log.jsonl",
    "metrics.json",
    "provenance.json",
    "report.html",
    "sources.json",
    "train_state.json",  # names the dataset, which finetune builds inside the run
}


@dataclass
class Job:
    """A command that writes to a directory, and a function that it calls in the middle of its work."""

    arguments: Callable[[Path], tuple[Any, ...]]  # of the output directory
    function: str
    again: tuple[str, ...] = ()  # arguments that continue its work


@pytest.fixture(params=["train", "build", "evaluate", "compare", "finetune"])
def job(request, run_values, dataset_directory, tmp_path) -> tuple[str, Job]:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("noise, grainy texture")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values))
    run = build_run(run_values)
    release.save(tmp_path / "untrained", initial_state(run).model, run.dataset.tags.names, "focal2")
    folder = f"sources.0.path={tmp_path / 'images'}"
    short = ("stages.0.samples=64", "batch_size=16", "tracking.wandb=disabled", "every.checkpoint=16")
    given = ("--model", tmp_path / "untrained", "--data", dataset_directory, "--device", "cpu")
    compared = (tmp_path / "untrained", tmp_path / "untrained", "--data", dataset_directory, "--device", "cpu")
    jobs = {
        "train": Job(
            lambda output: ("--config", tmp_path / "run.yaml", f"output={output}"),
            "joytag.training.state.save_state",
            ("--resume", "auto"),
        ),
        "build": Job(lambda output: ("--config", "folder", folder, f"output={output}"), "data_prep.dataset.write"),
        "evaluate": Job(lambda output: (*given, "--output", output), "joytag.evaluation.runner.predict_blocks"),
        "compare": Job(lambda output: (*compared, "--output", output), "joytag.evaluation.runner.predict_blocks"),
        "finetune": Job(
            lambda output: (tmp_path / "images", "--model", TINY, "--output", output, *short),
            "joytag.training.state.save_state",
        ),
    }
    return request.param, jobs[request.param]


Start = Callable[[str, Job, Path], BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run a command that waits in the middle of its work until `output.go` exists; returns when it waits."""
    processes: list[BaseProcess] = []

    def begin(name: str, job: Job, output: Path) -> BaseProcess:
        reached, go = output.with_suffix(".reached"), output.with_suffix(".go")

        def run() -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            module, _, function = job.function.rpartition(".")
            inner = getattr(import_module(module), function)

            def wait(*arguments: Any, **options: Any) -> Any:
                reached.touch()
                while not go.exists():
                    time.sleep(0.01)
                return inner(*arguments, **options)

            for importer in ("joytag.training.trainer", module):
                if hasattr(import_module(importer), function):
                    setattr(import_module(importer), function, wait)
            command.run(name, [str(argument) for argument in job.arguments(output)])

        process = CONTEXT.Process(target=run)
        processes.append(process)
        process.start()
        end = time.monotonic() + HANG
        while not reached.exists() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert reached.exists()
        return process

    yield begin
    for process in processes:
        process.kill()


def content(directory: Path) -> dict[str, tuple[int, str]]:
    """Return the time and the hash of every file of a directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): (path.stat().st_mtime_ns, file_hash(path)) for path in files}


def results(directory: Path) -> dict[str, str]:
    """Return the hash of every file of a directory that is the same for the same work."""
    return {name: value for name, (_, value) in content(directory).items() if Path(name).name not in DATED}


def test_the_second_and_third_process_are_refused_and_the_first_ends_undisturbed(call, start, job, tmp_path):
    name, its_job = job
    output = tmp_path / "out"
    first = start(name, its_job, output)
    before = content(output)
    for _ in range(2):
        done = call(name, *its_job.arguments(output), *its_job.again)
        assert_one_line(done, str(output), f"process {first.pid} on ", "since 2", "wait until it ends", "output")
    assert content(output) == before
    output.with_suffix(".go").touch()
    first.join(HANG)
    assert first.exitcode == 0
    assert not list(output.rglob(".*"))

    alone = call(name, *its_job.arguments(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    assert results(output) == results(tmp_path / "alone")


@pytest.mark.faults
def test_a_killed_process_does_not_block_the_next(call, start, job, tmp_path):
    name, its_job = job
    first = start(name, its_job, tmp_path / "out")
    first.kill()
    first.join(HANG)
    done = call(name, *its_job.arguments(tmp_path / "out"), *its_job.again)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").rglob(".*"))

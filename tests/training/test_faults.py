"""Faults of a run: lost processes, signals, NaN; and resuming with another number of processes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
import yaml
from commands import HANG
from paths import ROOT
from safetensors.torch import load_file

from joytag.core import jsonl
from joytag.core.lock import sole_writer
from joytag.models import checkpoint

LAST = f"{184:012d}"
pytestmark = pytest.mark.faults

BACKBONE = {"timm": "test_byobnet", "stochdepth_rate": 0.1}


def command(jobs: list[dict], processes: int, *options: str) -> list[str]:
    """Write the jobs to a file beside the first one's config, and return the command line that runs them."""
    path = Path(jobs[0]["config"]).with_suffix(".jobs.json")
    path.write_text(json.dumps(jobs))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options]
    return [sys.executable, *(launcher if processes > 1 or options else []), "tests/helpers/ranks.py", str(path)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": ""}


def call(jobs: list[dict], processes: int, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(jobs, processes, *options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG
    )


def call_with_fault(job: dict, processes: int) -> tuple[int, str]:
    """Run a job with a fault before sample 24; returns the exit code and stderr."""
    process = subprocess.Popen(
        command([job], processes),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    mark = Path(job["config"]).with_suffix("") / "fault-24"
    while not mark.exists() and process.poll() is None:
        time.sleep(0.05)
    _, errors = process.communicate(timeout=HANG)  # which begins when the fault happens
    return process.returncode, errors


def exit_codes(directory: Path) -> list[str]:
    """Return the exit code of each process, by rank."""
    return [path.read_text() for path in sorted(directory.glob("exit.*"))]


def forked(job: dict) -> BaseProcess:
    """Run a job in a copy of this process, which saves the imports."""

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        ranks.main([job])

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.fixture
def job(run_values, tmp_path):
    """Write a config of its own run, and return a job for it."""

    def write(name: str, resume: str | None = None, job: dict | None = None, **changes) -> dict:
        path = tmp_path / f"{name}.yaml"
        values = run_values | {"output": str(tmp_path / name)} | changes
        path.write_text(yaml.safe_dump(values))
        return {"config": str(path), "resume": resume} | (job or {})

    return write


def steps(run: Path, rank: int = 0) -> list[dict]:
    """Return a process's record of its steps."""
    return jsonl.read(run / f"steps.{rank}.jsonl")


def content(path: Path) -> dict[str, bytes]:
    """Return the content of each file of a checkpoint, by name."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


def copy_checkpoint(tmp_path: Path, whole: str, name: str, samples: int) -> None:
    """Copy a checkpoint of one run into another run."""
    path = Path("checkpoints") / f"{samples:012d}"
    shutil.copytree(tmp_path / whole / path, tmp_path / name / path)


# An epoch has 50 samples, a batch 8: within an epoch, the last step of one, the step that crosses its end, the end of a
# stage, and before the last step.
STOPS = [40, 48, 56, 104, 176]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("backbone", [pytest.param(False, id="ours"), pytest.param(True, id="timm")])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(job, tmp_path, processes, backbone):
    changes: dict = {"average": 0.9, "every": {"log": 16, "evaluate": 48, "checkpoint": 8}, "keep_last": 99}
    changes["micro_batch"] = 2
    if backbone:
        changes |= {
            "model": BACKBONE,
            "stages": [{"image_size": 32, "samples": 104}, {"image_size": 48, "samples": 80}],
        }
    whole = job("whole", **changes)
    done = call([whole, job("empty", **changes | {"stages": [{"image_size": 32, "samples": 8}]})], processes)
    assert done.returncode == 0, done.stderr
    changes["every"]["checkpoint"] = 104
    others = [job(f"from{stop}", "auto", **changes) for stop in STOPS]
    for stop in STOPS:
        copy_checkpoint(tmp_path, "whole", f"from{stop}", stop)
    done = call(others, processes)
    assert done.returncode == 0, done.stderr
    expected = content(tmp_path / "whole" / "checkpoints" / LAST)
    for stop in STOPS:
        assert content(tmp_path / f"from{stop}" / "checkpoints" / LAST) == expected, stop
        released = tmp_path / f"from{stop}" / "release" / "model.safetensors"
        assert released.read_bytes() == expected["model.safetensors"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(job, tmp_path):
    done = call([job("run", job={"faults": {"40": "term"}})], 2)
    assert done.returncode != 0
    assert exit_codes(tmp_path) == ["75", "75"], done.stderr
    assert done.stderr.count("stopped after 48 samples, as requested; continue with --resume auto") == 1
    assert [line["samples"] for line in steps(tmp_path / "run", 0)] == [*range(0, 48, 8)]
    assert newest_number(tmp_path / "run" / "checkpoints") == 48


def test_nan_on_one_process_skips_the_step_on_all_and_three_in_a_row_end_the_run(job, tmp_path):
    stages = [{"image_size": 64, "samples": 104}, {"image_size": 64, "samples": 80}]
    faults = {"16": "nan", "40": "nan", "48": "nan", "56": "nan"}  # which must not reach running statistics either
    poisoned = job("run", job={"faults": faults}, model=BACKBONE, stages=stages)
    done = call([poisoned], 2)
    assert done.returncode != 0
    assert exit_codes(tmp_path) == ["3", "3"], done.stderr
    assert done.stderr.count("3 steps in a row had no finite gradients") == 1
    for rank in (0, 1):
        lines = steps(tmp_path / "run", rank)
        assert [line["position"] for line in lines] == [*range(0, 64, 8)]
        assert [line["position"] for line in lines if line["skipped"]] == [16, 40, 48, 56]
        for before, line in pairwise(lines):
            for what in ("weights", "buffers"):
                assert (line[what] == before[what]) == line["skipped"]
        assert lines[3]["lr"] == lines[2]["lr"], "a skipped step does not advance the schedule"
    assert steps(tmp_path / "run", 0)[-1]["weights"] == steps(tmp_path / "run", 1)[-1]["weights"]
    events = [event for event in jsonl.read(tmp_path / "run" / "events.jsonl") if event["event"] == "skipped step"]
    shares = [[line["rows"] for line in steps(tmp_path / "run", rank)] for rank in (0, 1)]
    ids = [[*first, *second] for first, second in zip(*shares, strict=True)]  # which are the rows in this dataset
    assert [event["ids"] for event in events] == [ids[i] for i in (2, 5, 6, 7)]
    assert newest_number(tmp_path / "run" / "checkpoints") == 64, "32 trained on, 32 skipped"
    assert call([poisoned | {"resume": "auto"}], 2).returncode == 0
    assert [line["position"] for line in steps(tmp_path / "run")] == [*range(0, 184 + 32, 8)], "the run continues"


@pytest.mark.parametrize("fault", ["raise", "exit", "sleep", "kill"])
def test_a_lost_process_fails_the_job(job, fault):
    lost = job("run", job={"faults": {"24": fault}}, timeout=5)
    code, errors = call_with_fault(lost, 2)
    assert code, errors
    if fault == "sleep":
        assert re.search(r"rank 0: .*[Rr]ank.*1.*--resume auto", errors), errors


def test_a_job_is_restarted_as_often_as_allowed_and_resumes(job, tmp_path):
    whole = job("whole")
    assert call([whole], 2).returncode == 0
    kills = {"faults": {"24": "kill", "72": "kill", "120": "kill"}}
    done = call([job("killed", job=kills)], 2, "--max-restarts=3")
    assert done.returncode == 0, done.stderr
    last = Path("checkpoints") / LAST
    assert content(tmp_path / "killed" / last) == content(tmp_path / "whole" / last)
    kills["faults"]["152"] = "kill"
    done = call([job("four", job=kills)], 2, "--max-restarts=3")
    assert done.returncode != 0


def test_a_job_of_several_processes_is_refused_where_another_process_writes(job, tmp_path):
    second = job("run")
    with sole_writer(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        done = call([second], 2)
        assert sorted((tmp_path / "run").iterdir()) == before
    assert exit_codes(tmp_path) == ["2", "2"]
    assert done.stderr.count(f"(process {os.getpid()} on ") == 1, done.stderr
    assert call([second], 2).returncode == 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["kill worker", "stop worker"])
def test_a_killed_or_stopped_decoding_process_ends_the_run(job, run_values, processes, fault):
    loading = run_values["data"] | {"workers": 1, "timeout": 4}
    lost = job("run", job={"faults": {"24": fault}}, data=loading, timeout=10)
    code, errors = call_with_fault(lost, processes)
    assert code, errors
    # torch words a death in two ways: by the signal of the child, or by a pipe that ends before it.
    death = r"DataLoader worker \(pid.*\d+\).* (is killed by signal|exited unexpectedly)"
    expected = death if fault == "kill worker" else r"DataLoader timed out"
    if processes == 1:
        assert code == 1
        assert re.search(rf"ranks: .*{expected}.*data\.workers", errors), errors


def test_batches_do_not_depend_on_processes_workers_and_micro_batches(job, tmp_path, run_values):
    """1, 2 and 3 processes; 0 to 3 workers; micro-batches of 48, 12 and 4."""
    changes = {"batch_size": 48, "stages": [{"image_size": 16, "samples": 480}], "every": {"checkpoint": 96}}
    changes["model"] = run_values["model"] | {"stochdepth_rate": 0.2}
    layouts = {1: [(48, 0), (12, 1), (4, 2)], 2: [(24, 3), (12, 1), (4, 0)], 3: [(16, 1), (4, 0)]}
    for processes, variants in layouts.items():
        jobs = [
            job(f"{processes}-{micro}", micro_batch=micro, data=run_values["data"] | {"workers": workers}, **changes)
            for micro, workers in variants
        ]
        done = call(jobs, processes)
        assert done.returncode == 0, done.stderr
    expected = steps(tmp_path / "1-48")
    for processes, variants in layouts.items():
        for micro, _ in variants:
            ranks = [steps(tmp_path / f"{processes}-{micro}", rank) for rank in range(processes)]
            for lines in zip(expected, *ranks, strict=True):
                first, *others = lines
                for key in ("rows", "pixels"):
                    assert [value for line in others for value in line[key]] == first[key]
                assert others[0]["loss"] == pytest.approx(first["loss"], rel=1e-5), (processes, micro)


def test_a_run_resumes_with_another_number_of_processes(job, tmp_path):
    changes = {"every": {"checkpoint": 24}, "micro_batch": 4}
    assert call([job("whole", **changes)], 1).returncode == 0
    stops = {"faults": {"40": "term", "96": "term"}}
    for processes in (1, 2, 1):
        call([job("moved", "auto", job=stops, **changes)], processes)
    expected, moved = steps(tmp_path / "whole"), steps(tmp_path / "moved")
    second = {line["samples"]: line for line in steps(tmp_path / "moved", 1)}
    assert sorted(second) == [*range(48, 104, 8)], "two processes took these steps"
    assert [line["samples"] for line in moved] == [line["samples"] for line in expected]
    for line, other in zip(expected, moved, strict=True):
        more = second.get(line["samples"], {"rows": [], "pixels": []})
        assert line["rows"] == other["rows"] + more["rows"]
        assert line["pixels"] == other["pixels"] + more["pixels"]
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_gradients_do_not_depend_on_the_number_of_processes(job, tmp_path):
    changes = {"batch_size": 48, "stages": [{"image_size": 16, "samples": 48}]}
    layouts = {1: (48, 12, 4), 2: (24, 4), 3: (16, 4)}
    for processes, micros in layouts.items():
        jobs = [job(f"{processes}-{m}", job={"double": True}, micro_batch=m, **changes) for m in micros]
        done = call(jobs, processes)
        assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / "1-48" / "gradients.safetensors")
    assert all(value.dtype == torch.float64 and value.abs().max() > 0 for value in expected.values())
    for processes, micros in layouts.items():
        for micro in micros:
            gradients = load_file(tmp_path / f"{processes}-{micro}" / "gradients.safetensors")
            for name, value in expected.items():
                assert (gradients[name] - value).norm() <= 1e-10 * value.norm(), (processes, micro, name)


def test_a_run_killed_twenty_times_uses_every_image_once_per_epoch(job, tmp_path, dataset_directory):
    changes = {"stages": [{"image_size": 16, "samples": 1200}], "every": {"log": 80, "evaluate": 240, "checkpoint": 16}}
    assert call([job("whole", **changes)], 1).returncode == 0
    killed, rng = job("killed", "auto", **changes), np.random.default_rng(0)
    ledger = tmp_path / "killed" / "steps.0.jsonl"
    for _ in range(20):
        process = forked(killed)
        size = ledger.stat().st_size if ledger.exists() else 0
        while process.is_alive() and (not ledger.exists() or ledger.stat().st_size == size):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))  # a step takes about 10 ms here
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "else the run ended too early"
    assert call([killed], 1).returncode == 0
    last = Path("checkpoints") / f"{1200:012d}"
    assert content(tmp_path / "killed" / last) == content(tmp_path / "whole" / last)
    accepted: dict[int, list[int]] = {}
    for line in steps(tmp_path / "killed"):
        assert accepted.setdefault(line["samples"], line["rows"]) == line["rows"], "a repeated step has the same rows"
    seen = [row for samples in sorted(accepted) for row in accepted[samples]]
    assert len(seen) == 1200
    for epoch in range(24):
        assert sorted(seen[50 * epoch : 50 * (epoch + 1)]) == [*range(50)]


def test_a_run_killed_fifty_times_while_saving_has_only_intact_checkpoints(job, tmp_path):
    """A large model on small images with a checkpoint after every step spends most of its time in saving."""
    model = {"num_blocks": 4, "patch_size": 8, "d_model": 256, "mlp_dim": 1024, "num_heads": 4, "cnn_stem": None}
    changes = {"model": model, "every": {"checkpoint": 8}, "stages": [{"image_size": 8, "samples": 40_000}]}
    killed, rng = job("killed", "auto", **changes), np.random.default_rng(0)
    root, before = tmp_path / "killed" / "checkpoints", 0
    for _ in range(50):
        process = forked(killed)
        while process.is_alive() and newest_number(root) <= before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        checkpoints = checkpoint.checkpoints(root)
        assert all(checkpoint.is_intact(path) for path in checkpoints)
        assert newest_number(root) >= before
        assert len(checkpoints) >= min(3, before // 8)
        before = newest_number(root)


def newest_number(root: Path) -> int:
    checkpoints = checkpoint.checkpoints(root)
    return int(checkpoints[-1].name) if checkpoints else 0


def test_memory_does_not_grow_with_epochs_of_five_million_images(tmp_path):
    """With two workers, over five epochs."""
    done = subprocess.run(
        [sys.executable, "-c", INDEX, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    epochs = [float(line) for line in done.stdout.split()]
    assert len(epochs) == 5
    assert max(epochs[1:]) <= 1.05 * epochs[0], epochs


INDEX = """
import sys, numpy as np, psutil
from pathlib import Path
from types import SimpleNamespace
from joytag.data import loader as data
from joytag.data import order
from joytag.data.dataset import Posts as DatasetPosts

ROWS = 5_000_000
class Posts:
    def __init__(self):
        self.hashes = np.zeros((ROWS, 32), dtype=np.uint8)
        self.sources = np.zeros(ROWS, dtype=np.int16)
        self.tags = np.zeros(32 * ROWS, dtype=np.int16)
        self.offsets = np.arange(0, 32 * ROWS + 1, 32)
    def __len__(self):
        return ROWS
    labels = DatasetPosts.labels

posts = Posts()
dataset = SimpleNamespace(posts=lambda split: posts, tags=range(8), image_path=lambda sha256: sha256)
data.read_square = lambda *arguments: None
keys = order.training_keys(0, 0, ROWS, 0, 50_000, 50_000, 0, 1)
me = psutil.Process()
loaded = data.batches(data.ImageDataset(dataset, "train", 1, (0, 0)), keys, 2, pin=False)
for number, batch in zip(range(500), loaded):
    if number % 100 == 99:
        print(sum(p.memory_info().rss for p in [me, *me.children(recursive=True)]) / 2**20, flush=True)
"""

"""`joytag sweep` with real trainings."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from commands import HANG, assert_one_line
from paths import ROOT
from requirements import needs_linux, needs_unix, require, require_ray

from joytag.cli import sweep as command
from joytag.core import child_process, jsonl
from joytag.core.lock import sole_writer
from joytag.sweeps import results, studies, supervisor
from joytag.sweeps.config import Sweep, Trial
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import plan

pytestmark = needs_unix


@pytest.fixture
def real(monkeypatch, write_sweep) -> Path:
    """A sweep of two points on one seed, of trainings that a person would start."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return write_sweep(axes={"optimizer.lr": [0.02]}, seeds=1, keep_checkpoints="all")


def trials(sweep: Sweep) -> list[Trial]:
    return [trial for point in plan(sweep, Ledger(sweep.output)) for trial in point.trials]


def ids(text: str) -> list[str]:
    return re.findall(r"^ *([0-9a-f]{12}) ", text, re.MULTILINE)


@pytest.mark.faults
def test_trials_train_and_a_killed_one_resumes_to_the_same_weights(call, real, tmp_path, monkeypatch):
    changes = [f"output={tmp_path / 'whole'}", "axes={}"]  # the base alone: each process spends seconds on imports
    done = call("sweep", "--config", real, *changes)
    assert done.returncode == 0, done.stderr
    whole = Sweep(real, changes)
    ledger = Ledger(whole.output)
    (first,) = trials(whole)
    assert ledger.state(first.id) == "done"
    value = json.loads((first.results / "metrics.json").read_text())["headline"]["fixed"]["macro_f1"]["value"]
    assert ledger.last[first.id]["value"] == value
    assert {"sweep.html", "sweep.csv", "sweep.json", "best.yaml"} <= {path.name for path in whole.output.iterdir()}

    trial = trials(Sweep(real))[0]

    async def kill() -> tuple[int, str]:
        task = asyncio.create_task(child_process.run(trial.commands, supervisor.slots(1, 1, True)[0], tmp_path / "log"))
        while jsonl_length(trial.directory) < 3:
            assert not task.done()
            await asyncio.sleep(0.01)
        for process in psutil.Process().children():
            if trial.id in " ".join(process.cmdline()):
                process.kill()
        return await asyncio.wait_for(task, HANG)

    assert asyncio.run(kill())[0] == -signal.SIGKILL
    done = call("sweep", "--config", real, "--trial", trial.id)
    assert done.returncode == 0, done.stderr
    weights = [
        sweep / "trials" / trial.id / "release/model.safetensors" for sweep in (whole.output, tmp_path / "sweep")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def jsonl_length(run: Path) -> int:
    return len(jsonl.read(run / "log.jsonl"))


def test_a_dry_run_lists_trials_costs_and_commands_and_writes_nothing(call, real, tmp_path):
    done = call("sweep", "--config", real, "--dry-run", "seeds=3")
    assert done.returncode == 0, done.stderr
    assert ids(done.stdout) == [trial.id for trial in trials(Sweep(real, ["seeds=3"]))]
    for part in ("optimizer.lr=0.02 seed=2", "6 trials", "FLOP", "joytag train --config", "joytag evaluate --model"):
        assert part in done.stdout
    assert not (tmp_path / "sweep").exists()


def test_a_report_can_be_made_before_anything_has_ended(call, real, tmp_path):
    done = call("sweep", "--config", real, "--report")
    assert done.returncode == 0, done.stderr
    assert "So far, with 0 of 2 trials over" in done.stdout
    assert (tmp_path / "sweep/sweep.html").exists()


def test_an_unknown_trial_and_a_second_sweep_are_refused_in_one_line(call, real, tmp_path):
    assert_one_line(call("sweep", "--config", real, "--trial", "abc"), "no trial abc")
    with sole_writer(tmp_path / "sweep"):
        assert_one_line(
            call("sweep", "--config", real), f"process {os.getpid()} on ", "wait until it ends", "output=DIR"
        )


def test_wandbs_agents_run_trials_of_the_sweep(call, real, tmp_path):
    done = call("sweep", "--config", real, "--export", "wandb")
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load((tmp_path / "sweep/wandb-sweep.yaml").read_text())
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    (name,) = values["parameters"]
    for trial in values["parameters"][name]["values"]:
        flags = create_sweep_command_args({"args": {name: {"value": trial}}})["args"]
        words = [word for part in values["command"] for word in (flags if part == "${args}" else [part])]
        assert words[:2] == ["joytag", "sweep"]
        options = command.parse(words[2:])
        assert (options.config, options.trial) == (str(real), trial)


def test_optuna_reads_the_exported_study(cheap_sweep):
    optuna = pytest.importorskip("optuna")
    sweep = cheap_sweep(seeds=1)
    supervisor.run(sweep, supervisor.slots(2, 1, True), child_process.run)
    ledger = Ledger(sweep.output)
    for _ in range(2):
        path = studies.write_journal(results.read(sweep, plan(sweep, ledger), ledger), sweep)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert {trial.value for trial in study.trials} == {ledger.last[trial.id]["value"] for trial in trials(sweep)}
    assert study.best_params == {"optimizer.lr": "0.01"}


@pytest.mark.slow
@needs_linux
def test_ray_goes_on_when_a_worker_is_killed(cheap_sweep, monkeypatch):
    require_ray()
    import ray

    sweep = cheap_sweep(seeds=1)
    monkeypatch.setenv("STEP", "0.2")
    ray.shutdown()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        places, start = supervisor.ray_slots(1, 1, True)
        killed: list[int] = []

        async def kill_once(*arguments) -> tuple[int, str]:
            task = asyncio.create_task(start(*arguments))
            while not killed:
                for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
                    words = process.info["cmdline"] or []
                    log = sweep.output / "trials"
                    if "cheap_trial" in words and list(log.glob("*/log.jsonl")):
                        killed.append(process.info["ppid"])
                        os.kill(process.info["ppid"], signal.SIGKILL)
                        break
                await asyncio.sleep(0.05)
            return await task

        supervisor.run(sweep, places, kill_once)
    finally:
        ray.shutdown()
    ledger = Ledger(sweep.output)
    assert killed
    assert {ledger.state(trial.id) for trial in trials(sweep)} == {"done"}
    assert len(jsonl.read(trials(sweep)[0].directory / "calls.jsonl")) == 2, "Ray started it again"
    whole = cheap_sweep(seeds=1, output=str(sweep.output.with_name("whole")))
    supervisor.run(whole, supervisor.slots(2, 1, True), child_process.run)
    for trial in trials(sweep):
        weights = trial.results / "model.safetensors"
        assert weights.read_bytes() == (whole.output / "trials" / trial.id / "release/model.safetensors").read_bytes()


@pytest.mark.slow
@needs_linux
def test_a_trial_on_ray_is_interrupted_when_it_is_stopped(cheap_sweep, monkeypatch, tmp_path):
    require_ray()
    import ray

    trial = trials(cheap_sweep(seeds=1))[0]
    trial.directory.mkdir(parents=True)
    monkeypatch.setenv("STEP", "0.2")
    ray.shutdown()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    places, start = supervisor.ray_slots(1, 1, True)

    async def stop() -> tuple[int, str]:
        task = asyncio.create_task(start(trial.commands, {**places[0], "WANDB_RUN_GROUP": "x"}, tmp_path / "log"))
        while jsonl_length(trial.directory) < 1:
            assert not task.done()
            await asyncio.sleep(0.05)
        task.cancel()
        return await asyncio.wait_for(task, HANG)

    try:
        code, _ = asyncio.run(stop())
    finally:
        ray.shutdown()
    assert code == 75
    assert not (trial.directory / "release").exists()


def test_gpus_are_dealt_to_slots(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in supervisor.slots(None, 1, False)] == ["4", "5", "6", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in supervisor.slots(None, 2, False)] == ["4,5", "6,7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in supervisor.slots(6, 1, False)] == ["4", "5", "6", "7", "4", "5"]
    with pytest.raises(ValueError, match="8 GPUs a trial, but there are 4"):
        supervisor.slots(None, 8, False)
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in supervisor.slots(2, 1, True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in supervisor.slots(2, 1, False))


def test_missing_optuna_is_named_with_its_extra(call, write_sweep, monkeypatch):
    import sys

    require(True, "")
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = write_sweep(search="tpe", trials=2)
    assert_one_line(call("sweep", "--config", path), "optuna is not installed; run: pip install 'joytag[sweep]'")

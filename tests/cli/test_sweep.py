"""`joytag sweep` with real trainings."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from commands import HANG, assert_one_line
from paths import ROOT
from requirements import needs_linux, needs_unix, require, require_ray

from joytag.cli import sweep as command
from joytag.core import jsonl
from joytag.core.lock import sole_writer
from joytag.sweeps import exports, runners, supervisor
from joytag.sweeps.config import Sweep
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.runners import Remote, slots
from joytag.sweeps.supervisor import plan

pytestmark = needs_unix


@pytest.fixture
def real(monkeypatch, write_sweep) -> Path:
    """A sweep of two points on one seed, of trainings that a person would start."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return write_sweep(axes={"optimizer.lr": [0.02]}, seeds=1, keep_checkpoints="all")


def ids(text: str) -> list[str]:
    return re.findall(r"^ *([0-9a-f]{12}) ", text, re.MULTILINE)


@pytest.mark.faults
def test_trials_train_and_a_killed_one_resumes_to_the_same_weights(call, real, tmp_path, monkeypatch):
    changes = [f"output={tmp_path / 'whole'}", "axes={}"]  # the base alone: each process spends seconds on imports
    done = call("sweep", "--config", real, *changes)
    assert done.returncode == 0, done.stderr
    whole = Sweep(real, changes)
    ledger = Ledger(whole.output)
    (first,) = plan(whole, ledger)
    assert ledger.state(first.id) == "done"
    value = json.loads((first.results / "metrics.json").read_text())["headline"]["fixed"]["macro_f1"]["value"]
    assert ledger.value(first.id) == value
    assert {"sweep.html", "sweep.csv", "sweep.json", "best.yaml"} <= {path.name for path in whole.output.iterdir()}

    trial = plan(Sweep(real), Ledger(tmp_path / "sweep"))[0]
    runner = runners.Local(trial.commands, slots(1, 1, True)[0], tmp_path / "log")
    while jsonl_length(trial.directory) < 3:
        assert runner.poll() is None
        time.sleep(0.01)
    os.kill(runner.process.pid, signal.SIGKILL)
    runner.process.wait(HANG)
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
    assert ids(done.stdout) == [trial.id for trial in plan(Sweep(real, ["seeds=3"]), Ledger(tmp_path))]
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
    supervisor.run(sweep, slots(2, 1, True), runners.Local)
    ledger = Ledger(sweep.output)
    for _ in range(2):
        path = exports.optuna(sweep, plan(sweep, ledger), ledger)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    trials = plan(sweep, ledger)
    assert {trial.value for trial in study.trials} == {ledger.value(trial.id) for trial in trials}
    assert study.best_params == {"optimizer.lr": "0.01"}


@pytest.mark.slow
@needs_linux
def test_ray_goes_on_when_a_worker_is_killed(cheap_sweep, monkeypatch):
    require_ray()
    import psutil
    import ray

    sweep = cheap_sweep(seeds=1)
    monkeypatch.setenv("STEP", "0.2")
    ray.shutdown()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        places, start = runners.ray_slots(1, 1, True)
        killed: list[int] = []

        def kill_once(*arguments) -> Remote:
            remote = start(*arguments)
            assert isinstance(remote, Remote)
            while not killed:
                for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
                    words = process.info["cmdline"] or []
                    log = sweep.output / "trials"
                    if "cheap_trial" in words and list(log.glob("*/log.jsonl")):
                        killed.append(process.info["ppid"])
                        os.kill(process.info["ppid"], signal.SIGKILL)
                        break
                time.sleep(0.05)
            return remote

        supervisor.run(sweep, places, kill_once)
    finally:
        ray.shutdown()
    ledger = Ledger(sweep.output)
    assert killed
    trials = plan(sweep, ledger)
    assert {ledger.state(trial.id) for trial in trials} == {"done"}
    assert len(jsonl.read(trials[0].directory / "calls.jsonl")) == 2, "Ray started it again"
    whole = cheap_sweep(seeds=1, output=str(sweep.output.with_name("whole")))
    supervisor.run(whole, slots(2, 1, True), runners.Local)
    for trial in trials:
        weights = trial.results / "model.safetensors"
        assert weights.read_bytes() == (whole.output / "trials" / trial.id / "release/model.safetensors").read_bytes()


def test_gpus_are_dealt_to_slots(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(None, 1, False)] == ["4", "5", "6", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(None, 2, False)] == ["4,5", "6,7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(6, 1, False)] == ["4", "5", "6", "7", "4", "5"]
    with pytest.raises(ValueError, match="8 GPUs a trial, but there are 4"):
        slots(None, 8, False)
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in slots(2, 1, True))


def test_missing_optuna_is_named_with_its_extra(call, write_sweep, monkeypatch):
    import sys

    require(True, "")
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = write_sweep(search="tpe", trials=2)
    assert_one_line(call("sweep", "--config", path), "optuna is not installed; run: pip install 'joytag[sweep]'")

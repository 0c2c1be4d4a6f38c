"""Running a sweep: kills, failures, a full disk, what is new, early stopping."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import HANG
from requirements import needs_linux, needs_unix

from joytag.core import child_process, jsonl
from joytag.core.errors import Exit, Stopped
from joytag.core.files import write_text
from joytag.core.lock import InUse, sole_writer
from joytag.data.dataset import Dataset, DatasetMissing
from joytag.evaluation.predictions import DIRECTORY, PROVENANCE, VERSION
from joytag.sweeps import results, supervisor
from joytag.sweeps.config import Sweep, Trial
from joytag.sweeps.ledger import ENDS, Ledger
from joytag.sweeps.search import plan

pytestmark = needs_unix
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
DECAY = "optimizer.weight_decay"


def run(sweep: Sweep, jobs: int = 3) -> Ledger:
    if ending := supervisor.run(sweep, supervisor.slots(jobs, 1, True), child_process.run):
        raise ending
    return Ledger(sweep.output)


def trials(sweep: Sweep) -> list[Trial]:
    return [trial for point in plan(sweep, Ledger(sweep.output)) for trial in point.trials]


def forked(sweep: Sweep, jobs: int = 3) -> BaseProcess:
    """Run a sweep in a copy of this process."""
    assert FORK is not None

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run(sweep, jobs)

    process = FORK.Process(target=work)
    process.start()
    return process


def outcomes(sweep: Sweep) -> dict[str, str]:
    """Return the state of each trial by its description."""
    ledger = Ledger(sweep.output)
    return {trial.name: ledger.state(trial.id) for trial in trials(sweep)}


def weights(sweep: Sweep) -> dict[str, bytes]:
    return {path.parents[1].name: path.read_bytes() for path in sweep.output.glob("trials/*/release/model.safetensors")}


def alive(root: Path) -> list[str]:
    """Return the commands of all processes that were started below a directory."""
    lines = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(root) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            lines.append(line)
    return lines


def test_every_trial_runs_once_and_its_metric_is_recorded(cheap_sweep):
    ledger = run(sweep := cheap_sweep(axes={"optimizer.lr": [0.01, 0.02]}))
    assert outcomes(sweep) == {
        f"{point} seed={seed}": "done"
        for point in ("base", "optimizer.lr=0.02", "optimizer.lr=0.01")
        for seed in (0, 1)
    }
    ends = ledger.events(*ENDS)
    assert len(ends) == len({row["trial"] for row in ends}) == 6
    points = plan(sweep, ledger)
    assert [point.changes for point in results.best(sweep, points, ledger)] == [{"optimizer.lr": 0.01}]
    first = points[0].search[0]
    assert ledger.last[first.id]["value"] == results.measure(sweep, first).value
    assert not alive(sweep.output)


def test_the_base_runs_first_and_threads_and_group_are_handed_on(cheap_sweep):
    ledger = run(sweep := cheap_sweep(), jobs=1)
    assert [row["settings"] for row in ledger.events("started")][:2] == ["base seed=0", "base seed=1"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    calls = jsonl.read(trials(sweep)[0].directory / "calls.jsonl")
    assert calls == [{"threads": str(cores), "group": "sweep"}]


def test_a_finished_sweep_starts_nothing(cheap_sweep):
    before = run(sweep := cheap_sweep()).events("started")
    assert run(sweep).events("started") == before


@needs_linux
@pytest.mark.faults
def test_a_sweep_killed_at_random_moments_loses_and_repeats_nothing(cheap_sweep, monkeypatch, tmp_path):
    changes: dict = {"axes": {DECAY: [0.02, 0.1, 0.01]}, "seeds": 8, "keep_checkpoints": "all"}
    run(whole := cheap_sweep(output=str(tmp_path / "whole"), **changes))
    monkeypatch.setenv("STEP", "0.1")  # so that all of it takes longer than the kills, on any machine
    sweep, rng = cheap_sweep(output=str(tmp_path / "killed"), **changes), np.random.default_rng(0)
    for _ in range(20):
        process = forked(sweep)
        time.sleep(rng.uniform(0.05, 1.0))
        assert process.is_alive(), "else the sweep ended too early"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        time.sleep(0.5)
        assert alive(sweep.output) == []
    monkeypatch.setenv("STEP", "0.01")
    ledger = run(sweep)
    assert weights(sweep) == weights(whole)
    assert len(weights(sweep)) == 3 * changes["seeds"], "of all points but the one that diverges"
    ended = Counter(row["trial"] for row in ledger.events(*ENDS))
    assert set(ended) == {trial.id for trial in trials(sweep)}
    assert set(ended.values()) == {1}
    assert outcomes(sweep) == outcomes(whole)


def test_signals_let_trials_save_and_the_next_call_goes_on(cheap_sweep, monkeypatch):
    monkeypatch.setenv("STEP", "0.1")
    sweep = cheap_sweep(seeds=1)
    process = forked(sweep, 1)
    while not list(sweep.output.glob("trials/*/log.jsonl")):
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(HANG)
    ledger = Ledger(sweep.output)
    assert {row["event"] for row in ledger.rows} == {"called", "started", "interrupted"}
    assert "as requested" in ledger.events("interrupted")[0]["reason"]
    monkeypatch.setenv("STEP", "0.01")
    run(sweep)
    assert set(outcomes(sweep).values()) == {"done"}


def test_diverged_failing_and_recovering_trials_do_not_stop_the_others(cheap_sweep, capsys):
    sweep = cheap_sweep(axes={DECAY: [0.05, 0.1, 0.2, 0.3]}, seeds=1)
    with pytest.raises(Exit, match=r"1 trial failed.*weight_decay=0\.3 seed=0.*a decoding process died") as error:
        run(sweep)
    assert error.value.code == 1
    found = outcomes(sweep)
    assert {key.split()[0].partition("=")[2]: state for key, state in found.items()} == {
        "": "done",
        "0.1": "diverged",
        "0.2": "done",
        "0.3": "failed",
    }
    ledger = Ledger(sweep.output)
    assert Counter(row["event"] for row in ledger.rows if row["event"] == "failed") == {"failed": 2 + 3}
    starts = Counter(row["settings"] for row in ledger.events("started"))
    assert starts == {"base seed=0": 1, f"{DECAY}=0.1 seed=0": 1, f"{DECAY}=0.2 seed=0": 3, f"{DECAY}=0.3 seed=0": 3}
    with pytest.raises(Exit):
        run(sweep)
    again = Counter(row["settings"] for row in Ledger(sweep.output).events("started"))
    assert again - starts == {f"{DECAY}=0.3 seed=0": 3}, "the next call tries what failed again, and nothing else"


def test_a_full_disk_stops_all_and_loses_nothing(cheap_sweep, tmp_path):
    sweep = cheap_sweep(axes={DECAY: [0.4, 0.05]}, seeds=3)
    with pytest.raises(ValueError, match="No space left on device; free some space"):
        run(sweep, 2)
    ledger = Ledger(sweep.output)
    assert not ledger.events("failed")
    assert not alive(sweep.output)
    (tmp_path / "enough").touch()
    ledger = run(sweep)
    assert set(outcomes(sweep).values()) == {"done"}
    assert Counter(row["trial"] for row in ledger.events(*ENDS)).most_common(1)[0][1] == 1


def test_only_what_is_new_runs(cheap_sweep):
    def started(**changes) -> list[str]:
        sweep = cheap_sweep(**changes)
        before = len(Ledger(sweep.output).events("started"))
        return sorted(row["settings"] for row in run(sweep).events("started")[before:])

    narrow = {"optimizer.lr": {"log": [0.01, 0.04], "points": 3}}
    assert len(started(axes=narrow)) == 8
    wide = {"optimizer.lr": {"log": [0.01, 0.08], "points": 4}}
    assert started(axes=wide) == ["optimizer.lr=0.08 seed=0", "optimizer.lr=0.08 seed=1"]
    rates = ("optimizer.lr=0.01", "optimizer.lr=0.02", "optimizer.lr=0.04", "optimizer.lr=0.08")
    assert started(axes=wide, seeds=3) == sorted(f"{point} seed=2" for point in ("base", *rates))
    confirmed = sorted(f"{point} seed={seed}" for point in ("base", rates[0]) for seed in (1000, 1001))
    assert started(axes=wide, seeds=3, confirm={"best": 1, "seeds": 2}) == confirmed


def test_a_run_made_by_hand_counts(cheap_sweep):
    sweep = cheap_sweep()
    trial = trials(sweep)[2]
    supervisor.run_one(trial, supervisor.slots(1, 1, True)[0], "by hand")
    before = weights(sweep)[trial.id]
    written = (trial.results / "model.safetensors").stat().st_mtime_ns
    ledger = run(sweep)
    assert ledger.state(trial.id) == "done"
    assert weights(sweep)[trial.id] == before
    assert (trial.results / "model.safetensors").stat().st_mtime_ns == written


def test_what_someone_removed_runs_again(cheap_sweep):
    import shutil

    run(sweep := cheap_sweep())
    trial = trials(sweep)[1]
    shutil.rmtree(trial.directory)
    ledger = run(sweep)
    assert [row["trial"] for row in ledger.rows if row["event"] == "lost"] == [trial.id]
    assert ledger.state(trial.id) == "done"


def test_trials_of_a_dataset_that_was_built_again_are_not_mixed_with_others(cheap_sweep):
    run(sweep := cheap_sweep())
    trial, dataset = trials(sweep)[1], Dataset.open(Path(sweep.base.data.directory))

    def measured_on(images: str) -> None:
        provenance = {"version": VERSION, "sources": [], "sha256": {}, "split_sha256": images}
        write_text(trial.results / DIRECTORY / PROVENANCE, json.dumps(provenance))

    measured_on(dataset.content_hash(dataset.posts("validation")))
    rows = run(sweep).rows
    measured_on("those of an older build")
    with pytest.raises(ValueError, match=rf"{trial.id}: its validation images.*; set output to another directory"):
        run(sweep)
    assert Ledger(sweep.output).rows == rows


def test_a_missing_dataset_is_named_before_the_first_trial(cheap_sweep, tmp_path):
    sweep = cheap_sweep(axes={"data.directory": [str(tmp_path / "not built")]})
    with pytest.raises(DatasetMissing, match="not built"):
        run(sweep)
    assert not Ledger(sweep.output).rows


def test_losing_trials_keep_all_but_checkpoints(cheap_sweep):
    sweep = cheap_sweep(axes={"optimizer.lr": [0.01, 0.02, 0.03]})
    run(sweep)
    for trial in trials(sweep):
        assert (trial.directory / "checkpoints").exists() == trial.name.startswith("optimizer.lr=0.01 ")
        assert {"log.jsonl", "release"} <= {path.name for path in trial.directory.iterdir()}


def test_a_second_supervisor_and_a_second_run_of_a_trial_are_refused(cheap_sweep):
    sweep = cheap_sweep()
    with sole_writer(sweep.output), pytest.raises(InUse, match="wait until it ends"):
        run(sweep)
    first, second = trials(sweep)[:2]
    from joytag.core.lock import sole_editor

    with sole_editor(first.directory), sole_writer(sweep.output):
        with pytest.raises(InUse, match=first.id):
            supervisor.run_one(first, supervisor.slots(1, 1, True)[0], "x")
        supervisor.run_one(second, supervisor.slots(1, 1, True)[0], "x")
    assert weights(sweep).keys() == {second.id}


def test_a_trial_that_runs_elsewhere_is_left_to_it(cheap_sweep, monkeypatch, capsys):
    monkeypatch.setattr(supervisor, "ELSEWHERE", 0.2)
    monkeypatch.setenv("STEP", "0.05")
    sweep = cheap_sweep(seeds=1)
    trial = trials(sweep)[0]
    assert FORK is not None
    process = FORK.Process(target=supervisor.run_one, args=(trial, supervisor.slots(1, 1, True)[0], "x"))
    process.start()
    while not (trial.directory / "log.jsonl").exists():
        time.sleep(0.01)
    run(sweep)
    process.join(HANG)
    assert process.exitcode == 0
    assert capsys.readouterr().out.count("wait until it ends") == 1
    assert set(outcomes(sweep).values()) == {"done"}


def test_points_that_lose_at_a_rung_are_stopped_there_and_stay_so(cheap_sweep, monkeypatch):
    monkeypatch.setattr(supervisor, "LOOK", 0.05)
    monkeypatch.setenv("STEP", "0.05")
    rates = {"optimizer.lr": [0.01, 0.02, 0.05, 0.06]}
    sweep = cheap_sweep(axes=rates, stop_early={"rungs": [0.25, 0.5], "keep": 0.5})
    ledger = run(sweep)
    found = outcomes(sweep)
    assert {key.split()[0] for key, state in found.items() if state == "stopped"} >= {
        "optimizer.lr=0.05",
        "optimizer.lr=0.06",
    }
    for key in ("base seed=0", "base seed=1", "optimizer.lr=0.01 seed=0", "optimizer.lr=0.01 seed=1"):
        assert found[key] == "done"
    ends = []
    for trial in trials(sweep):
        if ledger.state(trial.id) == "stopped":
            samples = [row["samples"] for row in jsonl.read(trial.directory / "log.jsonl")]
            assert all(a < b for a, b in pairwise(samples))
            ends.append(samples[-1])
    assert min(ends) < 184, "one at least stopped before its end; on a slow machine the signal may come late"
    before = len(ledger.rows)
    assert [row["event"] for row in run(sweep).rows[before:]] == ["called"]
    run(cheap_sweep(axes=rates, seeds=3, stop_early={"rungs": [0.25, 0.5], "keep": 0.5}))
    assert Counter(outcomes(cheap_sweep(axes=rates, seeds=3)).values())["running"] == 0


def test_ctrl_c_is_reported_as_an_interruption(cheap_sweep, monkeypatch):
    monkeypatch.setenv("STEP", "0.1")
    sweep = cheap_sweep()

    async def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return await child_process.run(*arguments)

    ending = supervisor.run(sweep, supervisor.slots(1, 1, True), interrupt)
    assert isinstance(ending, Stopped)
    assert "0 of 6 trials over" in str(ending)
    assert ending.code == 130
    assert not alive(sweep.output)

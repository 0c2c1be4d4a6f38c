"""`joytag show`, at any time of a run."""

import shutil
from pathlib import Path

import pytest
from commands import assert_one_line
from datasets import make_dataset
from training_runs import build_run, newest_checkpoint

from joytag.core import jsonl
from joytag.core.terminal import quote
from joytag.models import release
from joytag.training.state import initial_state, save_state


@pytest.fixture
def show(call, run_values, dataset_directory, tmp_path):
    run_values["output"] = str(tmp_path / "a run")

    def run():
        done = call("show", "--run", run_values["output"], "--data", dataset_directory)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_show_works_at_any_time(show, call, run_values, dataset_directory):
    directory = Path(run_values["output"])
    curves, sheet = directory / "curves.png", directory / "contact-sheet.png"
    directory.mkdir()
    (directory / "log.jsonl").touch()
    assert "has no lines" in show()  # at the start
    assert not curves.exists()

    jsonl.append(directory / "log.jsonl", {"samples": 16, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0})
    assert "has not saved a checkpoint yet" in show()  # before the first validation
    assert curves.exists()
    assert not sheet.exists()

    run = build_run(run_values)
    state = initial_state(run)
    save_state(state, run, required=True)
    assert f"tagged by {newest_checkpoint(run)}" in show()
    assert_one_line(
        call("show", "--run", newest_checkpoint(run), "--data", dataset_directory), "--run", "is a checkpoint"
    )
    sheet.unlink()

    release.save(directory / "release", state.model, run.dataset.tags.names, "focal2")
    shutil.rmtree(directory / "checkpoints")
    text = show()  # finished, not evaluated
    assert sheet.exists()
    assert f"joytag evaluate --model {quote(directory / 'release')} --data {quote(dataset_directory)}\n" in text
    assert f"joytag tag --model {quote(directory / 'release')} --output print " in text

    (directory / "log.jsonl").unlink()  # a copy of the release alone
    assert "No curves" in show()


def test_show_and_evaluate_know_the_dataset_of_a_run(call, run_values, tmp_path):
    run_values["data"]["directory"] = str(make_dataset(tmp_path / "data", {"train": 20, "validation": 4}))
    run = build_run(run_values)
    state = initial_state(run)
    save_state(state, run, required=True)
    done = call("show", "--run", run.config.output)
    assert f"tagged by {newest_checkpoint(run)}" in done.stdout, done.stderr
    release.save(run.release, state.model, run.dataset.tags.names, "focal2")
    assert f"--data {quote(tmp_path / 'data')}\n" in call("show", "--run", run.config.output).stdout
    assert call("evaluate", "--model", run.config.output).returncode == 0
    assert (run.release / "metrics.json").exists()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert_one_line(call("show", "--run", run.config.output), f"{run.config.output}: ", "add --data")
    assert call("show", "--run", run.config.output, "--data", tmp_path / "moved").returncode == 0
    shutil.rmtree(run.root)
    assert_one_line(call("show", "--run", run.config.output), f"{run.config.output}: ", "add --data")


def test_show_refuses_what_is_not_a_run(call, dataset_directory, tmp_path):
    for directory in (dataset_directory, tmp_path / "none"):
        done = call("show", "--run", directory, "--data", dataset_directory)
        assert_one_line(done, str(directory), "not a run")

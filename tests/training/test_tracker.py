"""A failure of wandb changes neither a run's weights nor its log.jsonl."""

import builtins
import contextlib
import re
import socket
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
import wandb
from requirements import require
from safetensors.torch import load_file
from training_runs import build_run

from joytag.core import jsonl
from joytag.models import checkpoint
from joytag.training import step as training_step
from joytag.training import tracker, trainer
from joytag.training.run import Run
from joytag.training.tracker import Tracker


def tracked_run(values: dict, output: Path, mode: str) -> Run:
    return build_run(values, output=str(output), tracking={"wandb": mode})


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No account, and no wandb service left from another test."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    with contextlib.suppress(Exception):  # it may have been killed
        wandb.teardown()


def absent(monkeypatch) -> None:
    import_module = builtins.__import__

    def without_wandb(name, *arguments, **options):
        if name.partition(".")[0] == "wandb":
            raise ImportError("No module named 'wandb'")
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_wandb)


def killed(monkeypatch) -> None:
    log = Tracker.log

    def log_and_kill(self, samples, *arguments):
        log(self, samples, *arguments)
        if samples == 48:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("wandb"):
                    process.kill()

    monkeypatch.setattr(Tracker, "log", log_and_kill)


def silent(monkeypatch) -> None:
    """A server that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(sys.modules[__name__], "held", server, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(tracker, "INIT_TIMEOUT", 2)
    monkeypatch.setattr(tracker, "FINISH_TIMEOUT", 2)


@pytest.mark.parametrize(
    ("trouble", "mode", "warning"),
    [
        (lambda monkeypatch: None, "auto", None),
        (absent, "offline", "wandb cannot be used .*; log.jsonl has all metrics"),
        pytest.param(killed, "offline", "wandb: .*; the run goes on without it", marks=pytest.mark.faults),
        pytest.param(silent, "online", "wandb cannot be reached .*; recording offline", marks=pytest.mark.faults),
    ],
    ids=["offline", "absent", "killed", "silent"],
)
def test_a_failure_of_wandb_changes_neither_weights_nor_log(
    run_values, tmp_path, monkeypatch, alone, trouble, mode, warning
):
    expected = trainer.train(tracked_run(run_values, tmp_path / "without", "disabled"), None)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trouble(patch)
        run = tracked_run(run_values, tmp_path / "with", mode)
        trainer.train(run, None)
    released = load_file(Path(run.config.output) / "release" / "model.safetensors")
    assert all(torch.equal(value, released[name]) for name, value in expected.model.state_dict().items())
    messages = [str(warning.message) for warning in caught if "wandb" in str(warning.message)]
    assert len(messages) == (warning is not None)
    if warning is not None:
        assert re.match(warning, messages[0])
    lines = [[line["samples"] for line in jsonl.read(tmp_path / name / "log.jsonl")] for name in ("without", "with")]
    assert lines[0] == lines[1]


def train_with_interruption(run, monkeypatch):
    """Train, fail before the step after 112 samples, and resume from the newest checkpoint."""
    step = training_step.train_step

    def failing_step(state, *rest):
        if state.samples == 112:
            raise KeyError
        return step(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", failing_step)
        with pytest.raises(KeyError):
            trainer.train(run, None)
    trainer.train(run, checkpoint.newest(run.root))


def test_a_resumed_run_continues_its_wandb_run_and_shows_images(run_values, tmp_path, monkeypatch, alone):
    started, logged = [], []

    class Recorder:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            pass

    def init(**options):
        started.append(options)
        return Recorder()

    monkeypatch.setattr(wandb, "init", init)
    run = tracked_run(run_values, tmp_path / "run", "online")
    train_with_interruption(run, monkeypatch)
    assert started[0]["id"] == started[1]["id"]
    assert started[0]["resume"] == "allow"
    assert {step for step, metrics in logged if "loss" in metrics} >= {16, 96, 104, 112, 184}
    shown = {step: metrics["validation"] for step, metrics in logged if "validation" in metrics}
    assert [*shown] == [step for step, metrics in logged if "val_loss" in metrics]
    for images in shown.values():
        assert len(images) == 8
        assert all("tag_" in image._caption for image in images)


def test_a_run_is_recorded_for_tensorboard(run_values, tmp_path, monkeypatch):
    require(find_spec("tensorboard") is not None, "tensorboard: pip install 'joytag[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = build_run(run_values, tracking={"wandb": "disabled", "tensorboard": True})
    train_with_interruption(run, monkeypatch)
    directory = Path(run.config.output)
    events = EventAccumulator(str(directory / "tensorboard"), {"images": 0}).Reload()
    lines = jsonl.read(directory / "log.jsonl")
    for name in ("loss", "val_loss", "lr"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(line["samples"], pytest.approx(line[name])) for line in lines if name in line]
    assert events.Tags()["images"] == ["validation"]


def test_a_missing_tensorboard_does_not_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracking = {"wandb": "disabled", "project": "p", "tensorboard": True}
    with pytest.warns(UserWarning, match="tensorboard cannot be used .*log.jsonl has all metrics"):
        Tracker(tmp_path, 0, 9, tracker.services(tmp_path, 0, {"tracking": tracking}), True)


@pytest.mark.parametrize(
    ("variable", "setting", "expected"),
    [
        ("disabled", "auto", "disabled"),
        ("online", "auto", "online"),
        ("dryrun", "auto", "offline"),
        ("", "auto", "offline"),
        ("disabled", "offline", "offline"),
    ],
)
def test_wandb_mode_decides_unless_a_setting_does(monkeypatch, alone, variable, setting, expected):
    monkeypatch.setenv("WANDB_MODE", variable)
    assert tracker.wandb_mode(setting) == expected


def test_wandb_mode_disabled_starts_nothing(run_values, tmp_path, monkeypatch, alone):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb was started"))
    with trainer.start_tracker(tracked_run(run_values, tmp_path / "run", "auto"), 0) as started:
        assert not started.shows_images
    assert not (tmp_path / "run" / "wandb-id.txt").exists()


@pytest.mark.parametrize(
    ("environment", "tracking", "expected"),
    [
        ({}, {}, ("joytag", "run")),
        ({"WANDB_PROJECT": "p", "WANDB_NAME": "n"}, {}, ("p", "n")),
        ({"WANDB_PROJECT": "p"}, {"project": "mine"}, ("mine", "run")),
    ],
)
def test_wandb_names_come_from_the_settings_then_from_its_variables(
    run_values, tmp_path, monkeypatch, alone, environment, tracking, expected
):
    started = []
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = build_run(run_values, output=str(tmp_path / "run"), tracking={"wandb": "offline"} | tracking)
    trainer.start_tracker(run, 0)
    assert [(options["project"], options["name"]) for options in started] == [expected]


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "k"}, "", True),
        ({}, "machine api.wandb.ai login user password k\n", True),
        ({}, "machine elsewhere login user password k\n", False),
        ({"WANDB_BASE_URL": "https://elsewhere"}, "machine elsewhere login user password k\n", True),
        ({}, "not a netrc {", False),
    ],
)
def test_an_account_is_known_from_the_environment_or_a_login(
    tmp_path, monkeypatch, alone, environment, netrc, expected
):
    (tmp_path / "netrc").write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracker._has_account() == expected


def test_a_login_on_windows_is_found(tmp_path, monkeypatch, alone):
    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert not tracker._has_account()
    (tmp_path / "_netrc").write_text("machine api.wandb.ai login user password k\n")
    assert tracker._has_account()

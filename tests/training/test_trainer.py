"""The training loop: exact resume, stages, signals, and several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import HANG
from paths import ROOT
from requirements import needs_unix
from safetensors.torch import load_file
from training_runs import (
    assert_equal_weights,
    build_run,
    miniature,
    newest_checkpoint,
    open_run,
    read_log,
    read_losses,
    weights,
)

from joytag.core import jsonl
from joytag.core.errors import Stopped
from joytag.data.loader import Batch, ImageDataset
from joytag.data.order import training_keys
from joytag.models import checkpoint, inference, release
from joytag.training import launch, schedule, trainer
from joytag.training import step as training_step
from joytag.training.losses import LOSSES
from joytag.training.optimizers import OPTIMIZERS
from joytag.training.run import Run
from joytag.training.state import TrainState

MEASURED = {"samples_per_s", "data_wait", "memory_gb"}  # log values that differ from run to run


class KilledError(Exception):
    """Simulates the end of the process."""


def train_killed_at(run: Run, samples: int, monkeypatch) -> None:
    """Train until the step after `samples` fails; nothing more is saved."""
    step = training_step.train_step

    def killed_step(state, *arguments):
        if state.samples == samples:
            raise KilledError
        return step(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", killed_step)
        with pytest.raises(KilledError):
            trainer.train(run, checkpoint.newest(run.root))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset_directory) -> tuple[Run, TrainState]:
    """A run that nothing interrupted."""
    run = build_run(miniature(tmp_path_factory.mktemp("whole") / "run", dataset_directory), average=0.9)
    return run, trainer.train(run, None)


# An epoch has 50 samples, a batch 8; a checkpoint is saved every 16. 40 is within an epoch, 48 just before one ends
# inside the next batch, 104 the end of the first stage, 128 within the second stage.
@pytest.mark.parametrize("stop", [0, 8, 40, 48, 56, 104, 112, 128, 176])
def test_a_run_killed_at_any_step_resumes_bit_identical(run_values, whole, monkeypatch, stop):
    killed = build_run(run_values, average=0.9)
    train_killed_at(killed, stop, monkeypatch)
    assert trainer.train(killed, checkpoint.newest(killed.root)).samples == 184
    runs = killed, whole[0]
    files = [{path.name: path.read_bytes() for path in newest_checkpoint(run).iterdir()} for run in runs]
    assert files[0] == files[1]
    logs = [[{k: v for k, v in line.items() if k not in MEASURED} for line in read_log(run)] for run in runs]
    assert logs[0] == logs[1]


@pytest.mark.faults
def test_a_run_killed_by_a_signal_loses_nothing(run_values, tmp_path):
    expected = trainer.train(build_run(run_values, output=str(tmp_path / "whole")), None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_values))
    command = [sys.executable, "scripts/train.py", "--config", str(config), "--resume", "auto"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = Path(run_values["output"]) / "log.jsonl"
    for lines in (1, 5):  # kill when the log has this many lines
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(jsonl.read(log)) < lines:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    released = load_file(Path(run_values["output"]) / "release" / "model.safetensors")
    assert_equal_weights(released, weights(expected))


def interrupt_at(call_number: int, owner, name: str, number: int, monkeypatch) -> None:
    """Send a signal to this process in the n-th call of a function."""
    function = getattr(owner, name)
    calls: list[None] = []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == call_number:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


MOMENTS = {  # (module, function, number of the call) that the signal interrupts, and the samples when the run ends
    "step": (trainer, "train_step", 5, 40),
    "validation": (inference, "predict", 2, 48),
    "save": (checkpoint, "_write", 2, 32),
    "end of a save": (checkpoint, "sync", 9, 32),
}
SIGNALS = {"SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130}


@needs_unix
@pytest.mark.parametrize(
    ("moment", "number"), [*((moment, "SIGTERM") for moment in MOMENTS), ("step", "SIGUSR1"), ("step", "SIGINT")]
)
def test_a_run_stopped_by_a_signal_resumes_bit_identical(run_values, whole, monkeypatch, moment, number):
    owner, name, call, samples = MOMENTS[moment]
    run = build_run(run_values, average=0.9)
    with monkeypatch.context() as patch:
        interrupt_at(call, owner, name, signal.Signals[number], patch)
        with pytest.raises(Stopped, match="as requested") as end:
            trainer.train(run, None)
    assert end.value.code == SIGNALS[number]
    saved = newest_checkpoint(run)
    assert saved.name == f"{samples:012d}"
    assert all(map(checkpoint.is_intact, checkpoint.checkpoints(run.root)))
    assert not (Path(run.config.output) / "release").exists()
    assert_equal_weights(weights(trainer.train(run, saved)), weights(whole[1]))
    lines = [line["samples"] for line in read_log(run) if "val_loss" in line]
    assert lines == [48, 96, 104, 144, 184], (
        "each validation is logged once; an interrupted one is repeated after the resume"
    )


def test_ctrl_c_ends_the_first_step_at_once_since_nothing_is_lost(run_values, monkeypatch):
    run = build_run(run_values)
    with monkeypatch.context() as patch:
        interrupt_at(1, training_step, "batch_loss", signal.SIGINT, patch)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(run, None)
    assert not checkpoint.checkpoints(run.root)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        interrupt_at(1, training_step, "batch_loss", signal.SIGTERM, patch)
        with pytest.raises(Stopped, match="stopped after 8 samples"):
            trainer.train(run, None)
    assert newest_checkpoint(run).name == f"{8:012d}"


@pytest.mark.parametrize("augment", ["trivial", "none"])
def test_a_stage_uses_the_configured_augmentation(run_values, augment):
    run = build_run(run_values, data=run_values["data"] | {"augment": augment})
    state = trainer.initial_state(run)
    state.samples = 112
    batch = next(trainer.begin_stage(state, run)[0])
    images = ImageDataset(run.dataset, "train", 16, (0, 1), augment)
    expected = images.__getitems__(next(training_keys(0, 1, len(images), 8, 8, 4, 0, 1)))
    assert isinstance(expected, Batch)
    assert torch.equal(batch.images, expected.images)


def test_a_restart_resets_the_optimizer_and_keeps_the_weights(run_values, monkeypatch):
    run, step, starts = build_run(run_values, keep_last=99), training_step.train_step, []

    def recorded_step(state, *arguments):
        index, done = schedule.locate(state.samples, run.stages)
        if done == 0:
            starts.append((index, len(state.optimizer.state), state.model.config.image_size, weights(state)))
        return step(state, *arguments)

    monkeypatch.setattr(trainer, "train_step", recorded_step)
    trainer.train(run, None)
    assert [start[:3] for start in starts] == [(0, 0, 8), (1, 0, 16)]
    end_of_first_stage, _ = release.load(run.root / f"{104:012d}")
    assert_equal_weights(starts[1][3], dict(end_of_first_stage.state_dict()))


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [*(("lamb", loss) for loss in LOSSES), *((name, "focal") for name in OPTIMIZERS if name != "lamb")],
)
def test_every_loss_and_optimizer_learns_the_training_images(run_values, loss, optimizer):
    run = build_run(
        run_values,
        data=run_values["data"] | {"augment": "none"},
        stages=[{"image_size": 8, "samples": 640}],
        micro_batch=8,
        loss={"name": loss},
        optimizer={"name": optimizer, "lr": 0.02},
        every={"log": 64},
    )
    trainer.train(run, None)
    losses = read_losses(run)
    assert losses[-1] < losses[0]


def test_two_processes_train_the_same_model_as_one(run_values, tmp_path):
    values = run_values | {"stages": [{"image_size": 8, "samples": 24}]}
    alone = weights(trainer.train(build_run(values, output=str(tmp_path / "alone")), None))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "scripts/train.py", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=HANG)
    together = load_file(Path(values["output"]) / "release" / "model.safetensors")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    samples = [line["samples"] for line in read_log(build_run(values))]
    assert samples
    assert samples == sorted(samples)


@pytest.mark.slow
def test_compiled_and_eager_training_have_the_same_losses(run_settings):
    compiled = run_settings.model_copy(update={"compile": True, "output": f"{run_settings.output}-compiled"})
    losses = []
    for config in (run_settings, compiled):
        launch.start(config, None)
        losses.append(read_losses(open_run(config)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

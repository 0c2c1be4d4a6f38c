"""Training: exact resume, exact batches, and every process agreeing."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torchvision.ops import sigmoid_focal_loss

from joytag import checkpoint, release, schedule, train
from joytag.cli import Exit
from joytag.config import RunSettings
from joytag.data import Pictures, training_keys
from joytag.image import normalize
from joytag.records import Dataset
from joytag.tracker import read_log

ROOT = Path(__file__).parents[1]
MEASURED = {"samples_per_s", "data_wait", "memory_gb"}  # which differ from run to run


def run_of(values: dict, **changes) -> train.Run:
    settings = RunSettings.model_validate(values | changes)
    return train.Run(settings, Dataset.open(Path(settings.data.directory)), torch.device("cpu"), torch.float32)


def weights(state: train.TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Stopped(Exception):
    """Stands for the end of the process."""


def train_killed_at(run: train.Run, samples: int, monkeypatch) -> None:
    """Train, and die in the step after `samples` without saving anything more."""
    step = train.train_step

    def dying_step(state, *arguments):
        if state.samples == samples:
            raise Stopped
        return step(state, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "train_step", dying_step)
        train.train(run, checkpoint.newest(run.root))


# Of 50 pictures in batches of 8, checkpoints every 16: 40 is in the middle of an epoch, 48 saved just
# before an epoch ends inside the next batch, 104 the end of the first stage, 128 inside the second.
@pytest.mark.parametrize("stop", [0, 8, 40, 48, 56, 104, 112, 128, 176])
def test_a_killed_and_resumed_run_ends_bit_identical(run_values, tmp_path, monkeypatch, stop):
    whole = train.train(run_of(run_values), None)
    killed = run_of(run_values, output=str(tmp_path / "killed"))
    train_killed_at(killed, stop, monkeypatch)
    resumed = train.train(killed, checkpoint.newest(killed.root))
    assert resumed.samples == whole.samples == 184
    assert_same(weights(resumed), weights(whole))
    tensors = [checkpoint.pack_optimizer(state.optimizer)[0] for state in (resumed, whole)]
    assert_same(*tensors)
    logs = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in read_log(Path(run) / "log.jsonl")]
        for run in (killed.config.output, run_values["output"])
    ]
    assert logs[0] == logs[1]


def test_sigkill_at_any_moment_loses_nothing(run_values, tmp_path):
    expected = train.train(run_of(run_values, output=str(tmp_path / "whole")), None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_values))
    command = [sys.executable, "scripts/train.py", "--config", str(config), "--resume", "auto"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = Path(run_values["output"]) / "log.jsonl"
    for lines in (1, 5):  # kill as soon as this much is logged
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(read_log(log)) < lines:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = load_file(Path(run_values["output"]) / "release" / "model.safetensors")
    assert_same(found, weights(expected))


def test_a_step_is_plain_gradient_descent_on_the_multiplied_and_clipped_loss(run_values):
    run = run_of(run_values, model=run_values["model"] | {"stochdepth_rate": 0.0}, micro_batch=2)
    state = train.initial_state(run)
    batches = list(islice(train.begin_stage(state, run)[0], 4))
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    before = weights(state)
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    expected = 128 * sigmoid_focal_loss(
        state.model(normalize(images)), labels.float(), alpha=-1, gamma=2, reduction="mean"
    )
    gradients = torch.autograd.grad(expected, list(state.model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()

    step = train.train_step(state, state.model, iter(batches), run)
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    assert step.norm == pytest.approx(float(norm), rel=1e-4) and norm > 1, "otherwise nothing is clipped"
    assert step.taken and (state.samples, state.skipped) == (8, 0)
    for (name, after), gradient in zip(state.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after.detach(), before[name] - 0.004 * gradient / norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augment", ["trivial", "none"])
def test_a_stage_augments_as_its_config_says(run_values, augment):
    run = run_of(run_values, data=run_values["data"] | {"augment": augment})
    state = train.initial_state(run)
    state.samples = 112
    batch = next(train.begin_stage(state, run)[0])
    pictures = Pictures(run.dataset, "train", 16, (0, 1), augment)
    keys = next(training_keys(0, 1, len(pictures), 8, 8, 4, 0, 1))
    assert torch.equal(batch.images, pictures.__getitems__(keys).images)


def test_micro_batches_change_nothing_but_rounding(run_values, tmp_path):
    model = run_values["model"] | {"stochdepth_rate": 0.0}  # drawn per micro-batch
    short = [{"image_size": 8, "samples": 24}]
    runs = [
        run_of(run_values, output=str(tmp_path / str(micro)), micro_batch=micro, model=model, stages=short)
        for micro in (8, 4, 1)
    ]
    first, *others = [weights(train.train(run, None)) for run in runs]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_a_restart_begins_with_fresh_optimizer_state_and_keeps_the_weights(run_values, monkeypatch):
    run, step, starts = run_of(run_values, keep_last=99), train.train_step, []

    def watching_step(state, *arguments):
        index, done = schedule.locate(state.samples, run.stages)
        if done == 0:
            starts.append((index, len(state.optimizer.state), state.model.config.image_size, weights(state)))
        return step(state, *arguments)

    monkeypatch.setattr(train, "train_step", watching_step)
    train.train(run, None)
    assert [start[:3] for start in starts] == [(0, 0, 8), (1, 0, 16)]
    end_of_first_stage, _ = release.load(run.root / f"{104:012d}")
    assert_same(starts[1][3], dict(end_of_first_stage.state_dict()))


@pytest.mark.parametrize("loss", ["focal", "bce", "asymmetric"])
@pytest.mark.parametrize("optimizer", ["lamb", "torch_optimizer_lamb", "adamw"])
def test_it_learns_its_training_pictures(run_values, loss, optimizer):
    run = run_of(
        run_values,
        data=run_values["data"] | {"augment": "none"},
        stages=[{"image_size": 8, "samples": 640}],
        micro_batch=8,
        loss={"name": loss},
        optimizer={"name": optimizer, "lr": 0.02},
        every={"log": 64},
    )
    train.train(run, None)
    losses = [line["loss"] for line in read_log(Path(run.config.output) / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_new_model_starts_at_the_tags_frequencies(run_settings):
    run = run_of(run_settings.model_dump())
    state = train.initial_state(run)
    frequency = torch.tensor(run.dataset.tags.counts.tolist()) / len(run.dataset.posts("train"))
    assert (state.model.head.bias.sigmoid() - frequency).abs().max() < 0.03


def test_another_vocabulary_or_model_is_refused(run_values):
    run = run_of(run_values)
    state = train.train(run, None)
    path = checkpoint.newest(run.root)
    wider = run_of(run_values, model=run_values["model"] | {"mlp_dim": 64})
    with pytest.raises(ValueError, match="does not fit the config"):
        train.load_state(path, wider)
    with pytest.raises(ValueError, match="optimizer: was"):
        train.load_state(path, run_of(run_values, optimizer={"weight_decay": 0.5}))
    with pytest.raises(ValueError, match="batch_size: was 8 there, is 4 now"):
        train.load_state(path, run_of(run_values, batch_size=4))
    checkpoint.save(
        run.root, 999_999, state.model, list("abcdef"), "focal2", {}, {"samples": 0}, keep_last=9, keep_every=10**9
    )
    with pytest.raises(ValueError, match="another vocabulary"):
        train.load_state(checkpoint.newest(run.root), run)


def test_diverged_weights_do_not_replace_a_good_checkpoint(run_values):
    run = run_of(run_values)
    state = train.train(run, None)
    before = checkpoint.checkpoints(run.root)
    state.model.head.bias.data[0] = float("nan")
    with pytest.raises(Exit, match="no longer finite") as end:
        train.save_state(state, run, required=False)
    assert end.value.code == 3
    assert checkpoint.checkpoints(run.root) == before


def test_two_processes_train_the_same_model_as_one(run_values, tmp_path):
    values = run_values | {
        "model": run_values["model"] | {"stochdepth_rate": 0.0},
        "stages": [{"image_size": 8, "samples": 24}],
    }
    alone = weights(train.train(run_of(values, output=str(tmp_path / "alone")), None))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--standalone",
    ]
    subprocess.run(
        [*launcher, "scripts/train.py", "--config", str(config)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    together = load_file(Path(values["output"]) / "release" / "model.safetensors")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    log = (Path(values["output"]) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["samples"] for line in log] == sorted(json.loads(line)["samples"] for line in log)

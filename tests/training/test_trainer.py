"""Training: exact resume, exact batches, and every process agreeing."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torchvision.ops import sigmoid_focal_loss

from joytag.core import jsonl, settings
from joytag.core.errors import Stopped, WeightsDiverged
from joytag.core.signals import Interrupts
from joytag.data.dataset import Dataset
from joytag.data.images import normalize
from joytag.data.loader import Batch, ImageDataset, training_keys
from joytag.models import checkpoint, inference, release
from joytag.models.vit import ViT, ViTConfig
from joytag.training import launch, micro_batch, schedule, state, trainer, validation
from joytag.training import step as _step
from joytag.training.config import RunSettings
from joytag.training.losses import LOSSES, Loss, asymmetric, focal
from joytag.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[2]
HANG = 240  # seconds after which a test fails instead of waiting on
MEASURED = {"samples_per_s", "data_wait", "memory_gb"}  # which differ from run to run


def run_of(values: dict, **changes) -> trainer.Run:
    settings = RunSettings.model_validate(values | changes)
    return trainer.Run(settings, Dataset.open(Path(settings.data.directory)), torch.device("cpu"), torch.float32)


def weights(state: trainer.TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class KilledError(Exception):
    """Stands for the end of the process."""


def train_killed_at(run: trainer.Run, samples: int, monkeypatch) -> None:
    """Train, and die in the step after `samples` without saving anything more."""
    step = _step.train_step

    def dying_step(state, *arguments):
        if state.samples == samples:
            raise KilledError
        return step(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dying_step)
        with pytest.raises(KilledError):
            trainer.train(run, checkpoint.newest(run.root))


def newest(root: Path) -> Path:
    """The newest checkpoint, which must exist."""
    path = checkpoint.newest(root)
    assert path is not None
    return path


# Of 50 images in batches of 8, checkpoints every 16: 40 is in the middle of an epoch, 48 saved just
# before an epoch ends inside the next batch, 104 the end of the first stage, 128 inside the second.
@pytest.mark.parametrize("stop", [0, 8, 40, 48, 56, 104, 112, 128, 176])
def test_a_killed_and_resumed_run_ends_bit_identical(run_values, tmp_path, monkeypatch, stop):
    whole = trainer.train(run_of(run_values, average=0.9), None)
    killed = run_of(run_values, average=0.9, output=str(tmp_path / "killed"))
    train_killed_at(killed, stop, monkeypatch)
    resumed = trainer.train(killed, checkpoint.newest(killed.root))
    assert resumed.samples == whole.samples == 184
    roots = [newest(Path(run) / "checkpoints") for run in (killed.config.output, run_values["output"])]
    files = [{path.name: path.read_bytes() for path in root.iterdir()} for root in roots]
    assert files[0] == files[1]
    logs = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in jsonl.read(Path(run) / "log.jsonl")]
        for run in (killed.config.output, run_values["output"])
    ]
    assert logs[0] == logs[1]


def test_sigkill_at_any_moment_loses_nothing(run_values, tmp_path):
    expected = trainer.train(run_of(run_values, output=str(tmp_path / "whole")), None)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run_values))
    command = [sys.executable, "scripts/train.py", "--config", str(config), "--resume", "auto"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = Path(run_values["output"]) / "log.jsonl"
    for lines in (1, 5):  # kill as soon as this much is logged
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(jsonl.read(log)) < lines:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    released = load_file(Path(run_values["output"]) / "release" / "model.safetensors")
    assert_same(released, weights(expected))


def test_a_step_is_plain_gradient_descent_on_the_multiplied_and_clipped_loss(run_values):
    run = run_of(run_values, model=run_values["model"] | {"stochdepth_rate": 0.0}, micro_batch=2)
    state = trainer.initial_state(run)
    batches = list(islice(trainer.begin_stage(state, run)[0], 4))
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    before = weights(state)
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    expected = 128 * sigmoid_focal_loss(
        state.model(normalize(images)), labels.float(), alpha=-1, gamma=2, reduction="mean"
    )
    gradients = torch.autograd.grad(expected, list(state.model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()

    step = _step.train_step(state, state.model, iter(batches), run)
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    assert step.norm == pytest.approx(float(norm), rel=1e-4)
    assert norm > 1, "otherwise nothing is clipped"
    assert not step.skipped
    assert (state.samples, state.skipped) == (8, 0)
    for (name, after), gradient in zip(state.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after.detach(), before[name] - 0.004 * gradient / norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("augment", ["trivial", "none"])
def test_a_stage_augments_as_its_config_says(run_values, augment):
    run = run_of(run_values, data=run_values["data"] | {"augment": augment})
    state = trainer.initial_state(run)
    state.samples = 112
    batch = next(trainer.begin_stage(state, run)[0])
    images = ImageDataset(run.dataset, "train", 16, (0, 1), augment)
    expected = images.__getitems__(next(training_keys(0, 1, len(images), 8, 8, 4, 0, 1)))
    assert isinstance(expected, Batch)
    assert torch.equal(batch.images, expected.images)


def test_micro_batches_change_nothing_but_rounding(run_values, tmp_path):
    changes = {"data": run_values["data"] | {"mixup": 0.4}, "stages": [{"image_size": 8, "samples": 24}]}
    runs = [run_of(run_values, output=str(tmp_path / str(micro)), micro_batch=micro, **changes) for micro in (8, 4, 2)]
    first, *others = [weights(trainer.train(run, None)) for run in runs]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_an_overflow_halves_the_scale_and_changes_nothing_else(run_values, monkeypatch):
    """fp16's scaler on a CPU, from a scale that does not overflow by itself."""
    monkeypatch.setattr(state, "FIRST_SCALE", 65536.0)
    run = run_of(run_values, stages=[{"image_size": 8, "samples": 48}], loss={"multiplier": 1.0})
    run = dataclasses.replace(run, dtype=torch.float16)
    take_step, batch_loss = _step.train_step, _step.batch_loss
    seen: list[tuple[float, int, float, bool, int]] = []

    def watched(current, *arguments):
        factor = float("inf") if len(seen) == 2 else 1.0
        monkeypatch.setattr(_step, "batch_loss", lambda *inputs: batch_loss(*inputs) * factor)
        before = weights(current)
        result = take_step(current, *arguments)
        group = current.optimizer.param_groups[0]
        same = all(torch.equal(value, before[name]) for name, value in current.model.state_dict().items())
        steps = {int(entry["step"]) for entry in current.optimizer.state.values()}
        [step] = steps
        seen.append((current.scaler.get_scale(), step, group["lr"], same, current.samples))
        return result

    monkeypatch.setattr(trainer, "train_step", watched)
    trainer.train(run, None)
    assert [scale for scale, *_ in seen] == [65536.0] * 2 + [32768.0] * 5
    assert [step for _, step, *_ in seen] == [1, 2, 2, 3, 4, 5, 6]
    assert [same for *_, same, _ in seen] == [False] * 2 + [True] + [False] * 4
    assert [samples for *_, samples in seen] == [8, 16, 16, 24, 32, 40, 48]
    expected = [schedule.learning_rate(samples, run.stages, 0.004) for samples in (0, 8, 16, 16, 24, 32, 40)]
    assert [rate for _, _, rate, *_ in seen] == pytest.approx(expected)


def test_a_jump_of_the_loss_at_a_restart_is_no_spike(run_values, monkeypatch):
    stages = [{"image_size": 8, "samples": 400}, {"image_size": 16, "samples": 400}]
    run, batch_loss = run_of(run_values, stages=stages, every={"evaluate": 10_000}), _step.batch_loss
    monkeypatch.setattr(
        _step, "batch_loss", lambda *inputs: batch_loss(*inputs) * (1 if inputs[1].images.shape[-1] == 8 else 100)
    )
    trainer.train(run, None)
    assert jsonl.read(Path(run.config.output) / "events.jsonl") == []


def test_a_loss_spike_is_recorded_with_its_images(run_values, monkeypatch):
    run = run_of(run_values, stages=[{"image_size": 8, "samples": 800}], every={"evaluate": 10_000})
    take_step, batch_loss = _step.train_step, _step.batch_loss

    def once_large(state, *arguments):
        factor = 1000.0 if state.samples == 640 else 1.0
        monkeypatch.setattr(_step, "batch_loss", lambda *inputs: batch_loss(*inputs) * factor)
        return take_step(state, *arguments)

    monkeypatch.setattr(trainer, "train_step", once_large)
    trainer.train(run, None)
    [event] = jsonl.read(Path(run.config.output) / "events.jsonl")
    assert (event["event"], event["samples"]) == ("loss spike", 648)
    assert event["score"] > 100
    keys = next(training_keys(0, 0, 50, 640, 8, 8, 0, 1))
    assert event["ids"] == [row for _, row in keys], "rows are ids in this dataset"


@pytest.fixture
def damaged(dataset_directory, tmp_path) -> tuple[Path, dict[int, str]]:
    """A copy of the dataset with images damaged as disks and downloads damage them; the rows, and the reasons."""
    directory = tmp_path / "damaged"
    shutil.copytree(dataset_directory, directory)
    dataset = Dataset.open(directory)
    paths = [dataset.image_path(sha256.tobytes()) for sha256 in dataset.posts("train").hashes]
    paths[3].unlink()
    paths[11].write_bytes(b"")
    paths[19].write_bytes(paths[19].read_bytes()[:200])
    paths[27].write_bytes(b"<html>not found</html>")
    paths[35].unlink()
    paths[35].mkdir()
    (tmp_path / "huge.ppm").write_bytes(b"P6 60000 60000 255\n")
    paths[43].write_bytes((tmp_path / "huge.ppm").read_bytes())
    return directory, {3: "no such file", 11: "", 19: "", 27: "", 35: "", 43: ""}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_replaced_and_listed_each_once(run_values, damaged, workers):
    directory, bad = damaged
    loading = run_values["data"] | {"directory": str(directory), "workers": workers, "max_bad": 0.12}
    run = run_of(run_values, data=loading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = trainer.train(run, None)
    assert state.samples == 184
    lines = jsonl.read(Path(run.config.output) / "quarantine.jsonl")
    assert sorted(line["row"] for line in lines) == sorted(bad)
    assert all(
        line["post_id"] == line["row"] and line["source"] == ["drawn", "photo"][line["row"] % 2] for line in lines
    )
    assert all(line["reason"] for line in lines)


def test_too_many_bad_images_end_the_run(run_values, damaged):
    run = run_of(run_values, data=run_values["data"] | {"directory": str(damaged[0]), "max_bad": 0.05})
    with pytest.raises(ValueError, match=r"^data\.max_bad: \d+\.0% of the images cannot be decoded, see .*"):
        trainer.train(run, None)


def interrupt_at(call_number: int, owner, name: str, number: int, monkeypatch):
    """Send a signal in the middle of the n-th call of a function."""
    function = getattr(owner, name)
    calls: list[None] = []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == call_number:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


MOMENTS = {  # the call in which the signal comes, and the samples after which the run ends
    "step": (trainer, "train_step", 5, 40),
    "validation": (inference, "predict", 2, 48),
    "save": (checkpoint, "_write", 2, 32),
    "end of a save": (checkpoint, "sync", 9, 32),
}
SIGNALS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


@pytest.mark.parametrize(
    ("moment", "number"),
    [*((moment, signal.SIGTERM) for moment in MOMENTS), ("step", signal.SIGUSR1), ("step", signal.SIGINT)],
)
def test_a_run_stopped_by_a_signal_resumes_bit_identical(run_values, tmp_path, monkeypatch, moment, number):
    owner, name, call, samples = MOMENTS[moment]
    whole = trainer.train(run_of(run_values, output=str(tmp_path / "whole")), None)
    run = run_of(run_values)
    with monkeypatch.context() as patch:
        interrupt_at(call, owner, name, number, patch)
        with pytest.raises(Stopped, match="as asked") as end:
            trainer.train(run, None)
    assert end.value.code == SIGNALS[number]
    saved = newest(run.root)
    assert saved.name == f"{samples:012d}"
    assert all(map(checkpoint.is_intact, checkpoint.checkpoints(run.root)))
    assert not (Path(run.config.output) / "release").exists()
    assert_same(weights(trainer.train(run, saved)), weights(whole))
    lines = [line["samples"] for line in jsonl.read(Path(run.config.output) / "log.jsonl") if "val_loss" in line]
    assert lines == [48, 96, 104, 144, 184], "each validation once; an interrupted one is repeated after the resume"


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_in_miniature(path, dataset_directory, tmp_path):
    """With a smaller model, smaller images and fewer samples."""
    overrides = {
        "output": tmp_path,
        "data.directory": dataset_directory,
        "data.workers": 0,
        "batch_size": 8,
        "device": "cpu",
        "micro_batch": "auto",
        "tracking.wandb": "disabled",
        "every": "{log: 8, evaluate: 80, checkpoint: 80}",
    }
    config = settings.load(RunSettings, path, [f"{key}={value}" for key, value in overrides.items()])
    model, stages = config.model, config.stages
    sizes = {stage.image_size: 32 * (1 + number) for number, stage in enumerate(stages)}
    small: dict[str, Any] = {"num_blocks": 2, "d_model": 32, "mlp_dim": 64, "num_heads": 2, "patch_size": 16}
    stem = model.cnn_stem and "conv:c=8,s=4;ln;relu;conv:c=32,s=4"
    small |= {"stochdepth_rate": model.stochdepth_rate, "cnn_stem": stem}
    changed = config.model_dump() | {
        "model": {"timm": "test_convnext", "stochdepth_rate": 0.1} if model.timm else small,
        "stages": [
            {"image_size": sizes[stage.image_size], "samples": 24, "restart": stage.restart} for stage in stages
        ],
        "init_from": None,
        "retain": 0.0,
    }
    run = micro_batch.resolve(run_of(changed))
    state = trainer.train(run, None)
    lines = jsonl.read(tmp_path / "log.jsonl")
    assert state.samples == 24 * len(stages)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3 * len(stages)
    assert all(map(math.isfinite, losses))
    assert run.config.micro_batch == 8


def test_the_micro_batch_is_searched_once_and_recorded(run_values, monkeypatch, capsys):
    """On a simulated GPU, whose memory holds 6 samples."""
    run = dataclasses.replace(run_of(run_values, micro_batch="auto", batch_size=48), device=torch.device("cuda"))
    tried = []

    def fits(run, micro):
        tried.append(micro)
        return micro <= 6

    monkeypatch.setattr(micro_batch, "fits", fits)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    assert micro_batch.resolve(run).config.micro_batch == 6
    assert len(tried) <= 5
    assert "micro_batch: 6 samples at once on a GPU" in capsys.readouterr().out
    tried.clear()
    assert micro_batch.resolve(run).config.micro_batch == 6
    assert not tried
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a smaller GPU")
    monkeypatch.setattr(micro_batch, "fits", lambda run, micro: False)
    with pytest.raises(ValueError, match="micro_batch: not even 1 fits"):
        micro_batch.resolve(run)


def test_the_first_gradients_in_fp16_are_not_lost_behind_small_layer_scales(run_values):
    """For L/14 on eight GPUs with 512 samples of a step each; one block at half the image size."""
    run = dataclasses.replace(run_of(run_values), dtype=torch.float16)
    sizes: dict[str, Any] = dict(image_size=112, patch_size=14, num_blocks=1, d_model=1024, mlp_dim=4096, num_heads=16)
    model = ViT(ViTConfig(n_tags=5813, cnn_stem=None, layerscale_init=1e-5, **sizes))
    torch.nn.init.constant_(model.head.bias, -5.2)  # 32 tags an image
    with inference.autocast(run.device, run.dtype):
        logits = model(torch.randn(1, 3, 112, 112))
    labels = torch.arange(5813).expand(1, -1) % 182 == 0
    scaler = state.fresh_optimizer(model, run)[1]
    scaler.scale(focal(logits, labels) * 128 / 512).backward()
    gradient = dict(model.named_parameters())["blocks.0.qkv_proj.weight"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.eq(0).float().mean() < 0.1


def test_the_search_tries_two_steps_at_the_largest_size_beside_optimizer_and_average(run_values, monkeypatch):
    run, batch_loss, tried = run_of(run_values, average=0.9), micro_batch.batch_loss, []
    states: list[trainer.TrainState] = []

    def recorded_state(*arguments):
        states.append(state.new_state(*arguments))
        return states[-1]

    def recorded_loss(model, batch, noise, run):
        moments = len(states[-1].optimizer.state)
        tried.append((tuple(batch.images.shape), len(noise.depth), model.training, moments > 0))
        return batch_loss(model, batch, noise, run)

    monkeypatch.setattr(micro_batch, "new_state", recorded_state)
    monkeypatch.setattr(micro_batch, "batch_loss", recorded_loss)
    assert micro_batch.fits(run, 8)
    assert tried == [((8, 3, 16, 16), 8, True, False), ((8, 3, 16, 16), 8, True, True)]
    assert states[0].average is not None
    assert all(parameter.grad is not None for parameter in states[0].model.parameters())


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_out_of_memory_does_not_fit(run_values, monkeypatch, step):
    batch_loss, calls = micro_batch.batch_loss, []

    def limited(*arguments):
        calls.append(arguments)
        if len(calls) == step:
            raise torch.OutOfMemoryError
        return batch_loss(*arguments)

    monkeypatch.setattr(micro_batch, "batch_loss", limited)
    assert not micro_batch.fits(run_of(run_values), 8)


def test_a_restart_resets_the_optimizer_and_keeps_the_weights(run_values, monkeypatch):
    run, step, starts = run_of(run_values, keep_last=99), _step.train_step, []

    def watching_step(state, *arguments):
        index, done = schedule.locate(state.samples, run.stages)
        if done == 0:
            starts.append((index, len(state.optimizer.state), state.model.config.image_size, weights(state)))
        return step(state, *arguments)

    monkeypatch.setattr(trainer, "train_step", watching_step)
    trainer.train(run, None)
    assert [start[:3] for start in starts] == [(0, 0, 8), (1, 0, 16)]
    end_of_first_stage, _ = release.load(run.root / f"{104:012d}")
    assert_same(starts[1][3], dict(end_of_first_stage.state_dict()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_loss_and_optimizer_learns_the_training_images(run_values, loss, optimizer):
    run = run_of(
        run_values,
        data=run_values["data"] | {"augment": "none"},
        stages=[{"image_size": 8, "samples": 640}],
        micro_batch=8,
        loss={"name": loss},
        optimizer={"name": optimizer, "lr": 0.02},
        every={"log": 64},
    )
    trainer.train(run, None)
    losses = [line["loss"] for line in jsonl.read(Path(run.config.output) / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_loss_is_one_row_of_a_table(run_values, monkeypatch):
    """Config, training, checkpoint and release know a new loss from its row alone."""
    row = Loss(
        lambda frequencies, device, gamma: lambda logits, targets: gamma * focal(logits, targets), "new", ("gamma",)
    )
    monkeypatch.setitem(LOSSES, "new", row)
    run = run_of(run_values, stages=[{"image_size": 8, "samples": 16}], loss={"name": "new", "gamma": 0.5})
    trainer.train(run, None)
    for directory in (newest(run.root), Path(run.config.output) / "release"):
        assert json.loads((directory / "config.json").read_text())["loss_type"] == "new"


def test_a_new_model_starts_at_the_tags_frequencies(run_settings):
    run = run_of(run_settings.model_dump())
    state = trainer.initial_state(run)
    frequency = torch.tensor(run.dataset.tags.counts.tolist()) / len(run.dataset.posts("train"))
    assert (state.model.head.bias.sigmoid() - frequency).abs().max() < 0.03


def test_another_vocabulary_or_model_is_refused(run_values):
    run = run_of(run_values)
    state = trainer.train(run, None)
    path = newest(run.root)
    wider = run_of(run_values, model=run_values["model"] | {"mlp_dim": 64})
    with pytest.raises(ValueError, match="does not fit the config"):
        trainer.load_state(path, wider)
    with pytest.raises(ValueError, match="optimizer: was"):
        trainer.load_state(path, run_of(run_values, optimizer={"weight_decay": 0.5}))
    with pytest.raises(ValueError, match=r"lr: was 0\.004 there, is 0\.002 now; set another output to branch off"):
        trainer.load_state(path, run_of(run_values, optimizer={"lr": 0.002}))
    branch = run_of(run_values, optimizer={"lr": 0.002}, output=run_values["output"] + "-slower")
    assert trainer.load_state(path, branch).samples == 184
    with pytest.raises(ValueError, match="batch_size: was 8 there, is 4 now"):
        trainer.load_state(path, run_of(run_values, batch_size=4))
    checkpoint.save(
        run.root, 999_999, state.model, list("abcdef"), "focal2", {}, {"samples": 0}, keep_last=9, keep_every=10**9
    )
    with pytest.raises(ValueError, match="another vocabulary"):
        trainer.load_state(newest(run.root), run)


def test_diverged_weights_do_not_replace_a_good_checkpoint(run_values):
    run = run_of(run_values)
    state = trainer.train(run, None)
    before = checkpoint.checkpoints(run.root)
    state.model.head.bias.data[0] = float("nan")
    with pytest.raises(WeightsDiverged, match="no longer finite") as end:
        trainer.save_state(state, run, required=False)
    assert end.value.code == 3
    assert checkpoint.checkpoints(run.root) == before


def test_two_processes_train_the_same_model_as_one(run_values, tmp_path):
    values = run_values | {"stages": [{"image_size": 8, "samples": 24}]}
    alone = weights(trainer.train(run_of(values, output=str(tmp_path / "alone")), None))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "scripts/train.py", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=HANG)
    together = load_file(Path(values["output"]) / "release" / "model.safetensors")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    log = (Path(values["output"]) / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["samples"] for line in log] == sorted(json.loads(line)["samples"] for line in log)


def test_the_validation_loss_is_that_of_the_whole_split(run_values):
    run = run_of(run_values, loss={"name": "asymmetric", "multiplier": 3.0})
    state = trainer.initial_state(run)
    state.model.eval()
    batch = ImageDataset(run.dataset, "validation", 8).__getitems__([(0, row) for row in range(12)])
    assert isinstance(batch, Batch)
    expected = 3 * asymmetric(state.model(normalize(batch.images)), batch.labels)
    metrics = validation.validate(state, run, Interrupts())
    assert metrics is not None
    assert metrics["val_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_job_resumes_by_itself(run_values, monkeypatch, name):
    run = run_of(run_values)
    monkeypatch.setenv(name, "0")
    assert launch.starting_point(run, None) is None
    trainer.train(run, None)
    with pytest.raises(launch.HasCheckpoints, match="holds checkpoints"):
        launch.starting_point(run, None)
    monkeypatch.setenv(name, "1")
    assert launch.starting_point(run, None) == checkpoint.newest(run.root)


def test_a_run_does_not_resume_before_newer_checkpoints(run_values, tmp_path):
    run = run_of(run_values)
    trainer.train(run, None)
    older, newer = checkpoint.checkpoints(run.root)[-2:]
    assert launch.starting_point(run, str(newer)) == newer
    with pytest.raises(ValueError, match="holds newer checkpoints than"):
        launch.starting_point(run, str(older))
    assert launch.starting_point(run_of(run_values, output=str(tmp_path / "other")), str(older)) == older


@pytest.mark.slow
def test_compiled_blocks_have_the_same_losses(run_settings):
    compiled = run_settings.model_copy(update={"compile": True, "output": f"{run_settings.output}-compiled"})
    losses = []
    for config in (run_settings, compiled):
        launch.start(config, None)
        losses.append([line["loss"] for line in jsonl.read(Path(config.output) / "log.jsonl") if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

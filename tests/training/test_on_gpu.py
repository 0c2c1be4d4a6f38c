"""Training and tagging on a GPU, against float32, the CPU and other processes. Without a GPU the CPU takes its place.

`make check-gpu` runs these tests on a GPU, with larger models and without conftest.py. What they measure is recorded.
"""

import math
import time
import warnings
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import HANG
from datasets import make_dataset
from PIL import Image
from torch import distributed as dist
from torch import nn
from torch.multiprocessing import ProcessRaisedException, start_processes
from training_runs import assert_equal_weights, weights

from joytag.core import signals
from joytag.core.rng import Purpose
from joytag.data import augment
from joytag.data.dataset import Dataset
from joytag.models import checkpoint, inference, release
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging.tagger import Tagger
from joytag.training import state, trainer
from joytag.training.config import RunSettings
from joytag.training.losses import focal
from joytag.training.run import Run
from joytag.training.state import TrainState
from joytag.training.step import Step, train_step

pytestmark = pytest.mark.gpu

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
STEM = "conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c={},s=1,k=1,p=0"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), {"train": 50, "validation": 12})


@pytest.fixture
def open_run(data, tmp_path) -> Callable[..., Run]:
    """Open a run of six steps of 8 samples: of a small model on a GPU, of a tiny one on a CPU."""
    width, size = (384, 64) if ON_GPU else (16, 8)
    model: dict[str, Any] = {
        "num_blocks": 2,
        "patch_size": 4,
        "d_model": width,
        "mlp_dim": 2 * width,
        "num_heads": width // 8,
    }
    model |= {} if ON_GPU else {"stochdepth_rate": 0.0}  # it changes shapes there, for each of which code is compiled
    values = {
        "output": str(tmp_path / "run"),
        "data": {"directory": str(data), "workers": 0},
        "model": model | {"cnn_stem": STEM.format(width)},
        "stages": [{"image_size": size, "samples": 48}],
        "batch_size": 8,
        "micro_batch": 4,
        "every": {"log": 48, "evaluate": 48, "checkpoint": 24},
        "tracking": {"wandb": "disabled"},
    }

    def build(dtype: torch.dtype = torch.float16, **changes) -> Run:
        settings = RunSettings.model_validate(values | changes)
        return Run(settings, Dataset.open(data), DEVICE, dtype)

    return build


def take_steps(run: Run, number: int = 6) -> tuple[list[Step], TrainState]:
    """Take a run's first steps, from a gradient scale that does not overflow."""
    current = state.initial_state(run)
    batches, _ = trainer.begin_stage(current, run)
    current.scaler = torch.amp.GradScaler(run.device.type, 16.0, enabled=run.dtype == torch.float16)
    trainer.compile_parts(current.model, run)
    return [train_step(current, current.model, batches, run) for _ in range(number)], current


def largest_difference(first: list[Step], second: list[Step], name: str) -> float:
    """Return the largest relative difference of `loss` or `norm` over the steps."""
    return max(abs(getattr(a, name) / getattr(b, name) - 1) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", HALF)
def test_steps_in_half_precision_follow_those_in_float32(open_run, name, record_property, monkeypatch):
    forward, formats = ViT.forward, set()

    def recorded(*inputs):
        logits = forward(*inputs)
        formats.update([] if logits.is_meta else [logits.dtype])  # operations are counted on the meta device
        return logits

    monkeypatch.setattr(ViT, "forward", recorded)
    exact, _ = take_steps(open_run(torch.float32))
    assert formats == {torch.float32}
    formats.clear()
    half, _ = take_steps(open_run(HALF[name]))
    assert formats == {HALF[name]}
    assert not any(step.skipped for step in half)
    for value, limit in (("loss", 0.02), ("norm", 0.05)):
        difference = largest_difference(half, exact, value)
        record_property(f"{value}_difference", difference)
        assert difference < limit


def test_an_overflow_skips_the_step_and_halves_the_scale_until_gradients_are_finite(open_run, record_property):
    run = open_run()
    current = state.initial_state(run)
    batches, _ = trainer.begin_stage(current, run)
    current.scaler = torch.amp.GradScaler(DEVICE.type, 2.0**40)
    skips = 0
    while True:
        before, scale = weights(current), current.scaler.get_scale()
        step = train_step(current, current.model, batches, run)
        if not step.skipped:
            break
        skips += 1
        assert skips < 40
        assert current.scaler.get_scale() == scale / 2
        assert_equal_weights(weights(current), before)
    record_property("first_scale_without_overflow", scale)
    assert skips > 0, "nothing overflowed"
    assert (current.samples, current.skipped) == (8, 8 * skips)
    assert current.scaler.get_scale() == scale
    assert not torch.equal(current.model.head.weight, before["head.weight"])
    assert np.isfinite(step.norm)


@pytest.mark.parametrize("space", augment.SPACES)
def test_augmenting_a_batch_on_the_device_gives_the_pixels_of_each_image_alone_on_a_cpu(
    space, record_property, monkeypatch
):
    count, size = 280, 48
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 6, 6))).float()
    pixels = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    keys = [(Purpose.AUGMENTATION, 0, 0, 0, row) for row in range(count)]
    expected = pixels.clone()
    for row, key in enumerate(keys):
        for draws in augment.draw([key], augment.SPACES[space], size):
            augment.apply(expected[row : row + 1], draws)
    batch = pixels.to(DEVICE).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(augment, "CACHED", 1 << 40)  # a CPU, too, processes images of the same operation at once
    for draws in augment.draw(keys, augment.SPACES[space], size):
        augment.apply(batch, draws)
    difference = (batch.cpu().int() - expected.int()).abs()
    record_property("pixels_that_differ", float(difference.gt(0).float().mean()))
    record_property("largest_difference", int(difference.max()))
    assert not torch.equal(expected, pixels)
    assert space != "trivial" or difference.max() <= 1  # a second operation may enlarge a level
    assert difference.gt(0).float().mean() < 0.02


def train(run: Run, resume: Path | None = None) -> dict[str, torch.Tensor]:
    return weights(trainer.train(run, resume))


def test_a_resumed_run_is_bit_identical_or_the_cause_is_named(open_run, tmp_path, record_property):
    """Where two equal runs differ, a GPU's operations are not deterministic: they are named, and then avoided."""
    run = partial(open_run, keep_last=9)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        outputs = [str(tmp_path / f"{name} {deterministic}") for name in ("whole", "again")]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            whole, again = (train(run(output=output)) for output in outputs)
        if all(torch.equal(whole[name], again[name]) for name in whole):
            break
        record_property("not_deterministic", sum(not torch.equal(whole[name], again[name]) for name in whole))
    causes = sorted({str(w.message)[:80] for w in caught if "determinis" in str(w.message)})
    record_property("deterministic_algorithms", deterministic)
    record_property("operations_that_are_not", "; ".join(causes))
    middle, end = checkpoint.checkpoints(run(output=outputs[1]).root)
    assert middle.name < end.name
    resumed = train(run(output=outputs[1]), middle)
    torch.use_deterministic_algorithms(False)
    assert_equal_weights(resumed, whole)


def test_compiled_steps_have_the_losses_of_eager_ones(open_run, record_property, monkeypatch):
    if not ON_GPU:  # there generating code would take a minute
        monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    compiled: list[None] = []
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **options: compiled.append(original(*args, **options)))
    torch._dynamo.reset()
    eager, _ = take_steps(open_run(), 3)
    assert not compiled
    fused, _ = take_steps(open_run(compile=True), 3)
    assert len(compiled) == 3, "the stem and two blocks"
    torch._dynamo.reset()
    difference = largest_difference(fused, eager, "loss")
    record_property("loss_difference", difference)
    assert difference < 0.01
    assert largest_difference(fused, eager, "norm") < 0.05


def test_the_tagger_gives_the_scores_of_float32_in_order(tmp_path, record_property):
    config = ViTConfig(
        n_tags=50, image_size=64, num_blocks=2, patch_size=8, d_model=64, mlp_dim=128, num_heads=4, cnn_stem=None
    )
    torch.manual_seed(0)
    model = ViT(config)
    nn.init.normal_(model.head.weight, std=0.3)
    release.save(tmp_path / "model", model, [f"tag_{i}" for i in range(50)], "focal2")
    rng, sources = np.random.default_rng(0), []
    for number in range(21):
        pixels = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((90, 60 + number))
        pixels.save(tmp_path / f"{number}.png")
        sources.append(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"broken")
    exact = Tagger.load(tmp_path / "model", "cpu", "fp32")
    tagger = Tagger.load(tmp_path / "model", str(DEVICE), "fp16" if ON_GPU else "bf16")
    results = list(tagger.stream(sources, batch_size=8))
    assert [bool(result.error) for result in results] == [number == 7 for number in range(21)]
    good = [number for number in range(21) if number != 7]
    expected = np.stack([exact(sources[number]).scores for number in good])
    scores = np.stack([results[number].scores for number in good])
    assert expected.std(axis=0).mean() > 0.05, "otherwise images could be swapped"
    difference = float(np.abs(scores - expected).max())
    record_property("largest_difference", difference)
    record_property("same_decisions", float(((scores > 0.4) == (expected > 0.4)).mean()))
    assert difference < 0.03
    for number, row in zip(good, scores, strict=True):
        assert set(results[number].tags) == {f"tag_{i}" for i in np.flatnonzero(row > 0.4)}


def train_as_one_of_two(rank: int, settings: RunSettings, backend: str, folder: Path) -> None:
    """Train in one of two processes on the same device. A run that `torchrun` starts refuses to share a GPU."""
    signals.die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trained = trainer.train(Run(settings, Dataset.open(Path(settings.data.directory)), DEVICE, torch.float32), None)
    (folder / f"rank {rank}").write_text(f"{dist.get_world_size()} on {trained.model.head.weight.device}")
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl"])
def test_two_processes_on_one_device_take_the_steps_of_one(open_run, tmp_path, backend, record_property):
    """NCCL may refuse two processes on one card; the reason is recorded then."""
    if "nccl" in backend and not ON_GPU:
        pytest.skip("needs a GPU")
    run = open_run(torch.float32)
    settings = run.config.model_copy(update={"output": str(tmp_path / "two")})
    method = "spawn" if ON_GPU else "fork"  # a GPU is lost in a copy of a process
    end = time.monotonic() + (60 if ON_GPU else HANG)
    pair = start_processes(train_as_one_of_two, (settings, backend, tmp_path), 2, False, True, method)
    try:
        while not pair.join(1):
            assert time.monotonic() < end, "the processes hang"
    except ProcessRaisedException as error:
        if "nccl" in backend and "Duplicate GPU" in str(error):
            pytest.skip("NCCL refuses two processes on one card (Duplicate GPU detected)")
        raise
    finally:
        for process in pair.processes:
            process.kill()
    alone = train(run)
    model, _ = release.load(tmp_path / "two/release")
    together = model.state_dict()
    difference = max(float((together[name] - value.cpu()).abs().max()) for name, value in alone.items())
    record_property("largest_difference", difference)
    assert difference < 1e-3
    assert [(tmp_path / f"rank {rank}").read_text() for rank in (0, 1)] == [f"2 on {DEVICE}"] * 2


def test_the_multiplier_and_the_first_scale_keep_gradients_in_the_range_of_fp16(record_property):
    """On a GPU with the whole B/16 at 448 px, on a CPU with a small block."""
    torch.manual_seed(0)
    small: dict[str, Any] = dict(
        d_model=192, mlp_dim=768, num_heads=3, num_blocks=1, image_size=64, patch_size=8, cnn_stem=None
    )
    model = ViT(ViTConfig(n_tags=5813, **({} if ON_GPU else small))).to(DEVICE).eval()
    nn.init.constant_(model.head.bias, -5.2)  # a mean of 32 tags per image
    batch, size = 16 if ON_GPU else 1, model.config.image_size
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    labels = (torch.arange(5813, device=DEVICE) % 182 == 0).expand(batch, -1)
    first = dict(model.named_parameters())["blocks.0.qkv_proj.weight"]

    def zeros(multiplier: float, scale: float) -> float:
        """The share of the first block's gradients that are 0, as in a step of 4096 samples; NaN if any overflow."""
        model.zero_grad()
        with inference.autocast(DEVICE, torch.float16):
            logits = model(images)
        (focal(logits, labels) * multiplier * scale * batch / 4096).backward()
        assert first.grad is not None
        return float((first.grad == 0).float().mean()) if first.grad.isfinite().all() else math.nan

    shares = [zeros(multiplier, 2.0**16) for multiplier in (1.0, 128.0, 256.0)]
    scale = state.FIRST_SCALE
    while math.isnan(recipe := zeros(RunSettings.model_fields["loss"].default.multiplier, scale)):
        scale /= 2
    record_property("zeros_at_scale_2^16_with_multipliers_1_128_256", shares)
    record_property("zeros_of_the_recipe", recipe)
    record_property("scale_of_the_recipe", scale)
    assert shares[0] > 2 * shares[1] > 2 * shares[2] >= recipe
    assert recipe < 0.1

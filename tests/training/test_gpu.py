"""GPU code on a simulated GPU: devices are not mixed, and the program does not wait for the device."""

from functools import partialmethod
from pathlib import Path

import gpu
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from joytag.data import augment, loader
from joytag.data.dataset import Dataset
from joytag.evaluation.metrics import Histogram
from joytag.models import inference
from joytag.training import optimizers, state, step, trainer
from joytag.training.config import RunSettings
from joytag.training.run import Run

MICRO_STEPS = {
    "recipe": {},
    "mixup and smoothing": {"data": {"mixup": 0.2}, "loss": {"label_smoothing": 0.1}},
    "RandAugment": {"data": {"augment": "rand"}},
    "weighted cross-entropy": {"loss": {"name": "bce", "frequency_power": 0.5}},
    "asymmetric": {"loss": {"name": "asymmetric"}},
    "dropped patches": {"model": {"patch_dropout": 0.5}},
    "timm": {"model": {"timm": "test_convnext"}},
}


def run_on_gpu(values: dict, changes: dict) -> Run:
    values = values | {"stages": [{"image_size": 32, "samples": 104}]}
    for key, value in changes.items():
        merged = isinstance(value, dict) and "timm" not in value  # a timm backbone replaces the whole section
        values[key] = values.get(key, {}) | value if merged else value
    settings = RunSettings.model_validate(values)
    return Run(settings, Dataset.open(Path(settings.data.directory)), gpu.DEVICE, torch.float16)


def test_a_simulated_gpu_lists_waits_and_refuses_mixed_devices():
    with gpu.simulated() as device:
        there = torch.zeros(3, device=gpu.DEVICE)
        torch.zeros(3).to(gpu.DEVICE, non_blocking=True).add_(there).copy_(torch.ones(3), non_blocking=True)
        assert not device.waits
        torch.tensor([1.0], device=gpu.DEVICE), torch.zeros(3).to(gpu.DEVICE), there.copy_(torch.ones(3))
        there.to("cpu", non_blocking=True)
        assert len(device.waits) == 4
        with pytest.raises(RuntimeError, match=r"same device|two different devices"):
            there + torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()


@pytest.mark.parametrize("changes", MICRO_STEPS.values(), ids=MICRO_STEPS.keys())
def test_a_micro_step_does_not_wait_for_the_gpu(run_values, changes):
    run = run_on_gpu(run_values, changes)
    images = loader.ImageDataset(run.dataset, "train", 32, (0, 0), run.config.data.augment, deferred=True)
    batch = images.__getitems__([(0, row) for row in range(run.micro_batch)])
    assert isinstance(batch, loader.Batch)
    assert batch.draws
    with gpu.simulated() as device:
        current = state.initial_state(run)
        current.model.train()
        assert callable(run.criterion)  # its weights are copied to the GPU once, before the micro-step
        device.waits.clear()
        loss = step.batch_loss(current.model, batch, next(step.micro_batch_noise(current, run)), run)
        assert loss.device == gpu.DEVICE
        assert loss.dtype == torch.float32
        assert not loss.dim()
        assert not device.waits


@pytest.mark.parametrize("space", augment.SPACES.values(), ids=augment.SPACES.keys())
def test_augmenting_does_not_wait_for_the_gpu(space):
    count = 140
    draws = augment.draw([(row,) for row in range(count)], space, 16)
    assert len(draws[0].operations.unique()) == len(augment.OPERATIONS)
    with gpu.simulated() as device:
        images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8).to(gpu.DEVICE, non_blocking=True)
        for some in draws:
            assert augment.apply(images, some).device == gpu.DEVICE
        assert device.launched
        assert not device.waits


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_an_optimizer_does_not_wait_for_the_gpu(name):
    with gpu.simulated() as device:
        parameters = [torch.nn.Parameter(torch.zeros(4, size, device=gpu.DEVICE)) for size in (1, 2, 3)]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = optimizers.build(parameters, name, lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)
        optimizer.step()
        assert device.launched
        assert not device.waits
        assert all(ratio.device == gpu.DEVICE for _, ratio in optimizers.trust_ratios(optimizer))


def test_lamb_launches_as_many_operations_for_thirty_tensors_as_for_three():
    """Views and copies do not count."""

    def operations(tensors: int) -> int:
        with gpu.simulated() as device:
            parameters = [torch.nn.Parameter(torch.zeros(4, device=gpu.DEVICE)) for _ in range(tensors)]
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer = optimizers.build(parameters, "lamb", lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)
            optimizer.step()
            device.launched.clear()
            optimizer.step()
            return sum("foreach" in name or "fused" in name for name in device.launched)

    assert operations(3) == operations(30)


def test_validation_counts_without_waiting_for_the_gpu(run_values):
    run = run_on_gpu(run_values, {})
    labels = torch.zeros(8, len(run.dataset.tags), dtype=torch.bool)
    with gpu.simulated() as device:
        model = state.new_model(run).eval()
        counted = Histogram.zeros(labels.shape[1], gpu.DEVICE)
        device.waits.clear()
        images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
        logits = inference.predict(model, images, gpu.DEVICE, torch.float16)
        counted.add(logits.sigmoid(), labels.to(gpu.DEVICE, non_blocking=True))
        assert logits.dtype == torch.float32
        assert not device.waits


def test_each_shape_compiles_to_three_graphs_without_breaks(run_values, monkeypatch):
    """One for the stem, one for the first block, whose input is in half precision, one for all other blocks."""
    graphs = []

    def collect(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compiled, backend=collect, fullgraph=True))
    run = run_on_gpu(run_values, {"compile": True, "model": {"num_blocks": 10}})
    torch._dynamo.reset()
    with gpu.simulated():
        model = state.new_model(run)
        trainer.compile_parts(model, run)
        shapes = [(16, 4), (32, 3)]
        for size, count in shapes:
            for mode in (True, False):
                with torch.set_grad_enabled(mode), inference.autocast(gpu.DEVICE, torch.float16):
                    model.train(mode)(torch.zeros(count, 3, size, size, device=gpu.DEVICE))
    torch._dynamo.reset()
    assert len(graphs) == 3 * 2 * len(shapes)

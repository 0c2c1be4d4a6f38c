"""Losses against torchvision's and timm's."""

import json
from pathlib import Path

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss
from training_runs import build_run, newest_checkpoint

from joytag.training import losses, trainer


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 50, generator=generator) * 6
    return logits, torch.rand(8, 50, generator=generator) < 0.1


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_matches_torchvision(batch, gamma):
    logits, targets = batch
    expected = sigmoid_focal_loss(logits.double(), targets.double(), alpha=-1, gamma=gamma, reduction="mean")
    assert losses.focal(logits, targets, gamma).item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_gradients_match_torchvision(batch):
    logits, targets = batch
    ours = logits.clone().requires_grad_()
    theirs = logits.double().requires_grad_()
    losses.focal(ours, targets).backward()
    sigmoid_focal_loss(theirs, targets.double(), alpha=-1, gamma=2, reduction="mean").backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-9)


def test_focal_with_gamma_0_is_cross_entropy(batch):
    logits, targets = batch
    torch.testing.assert_close(losses.focal(logits, targets, gamma=0.0), losses.binary_cross_entropy(logits, targets))


@pytest.mark.parametrize("gamma_positive", [0.0, 1.0, 2.5])
def test_asymmetric_and_its_gradients_match_timm(batch, gamma_positive):
    logits, targets = batch
    theirs = AsymmetricLossMultiLabel(
        gamma_neg=4, gamma_pos=gamma_positive, clip=0.05, disable_torch_grad_focal_loss=True
    )
    ours, expected = (logits.clone().requires_grad_() for _ in range(2))
    value = losses.asymmetric(ours, targets, gamma_positive)
    of_images = [theirs(row[None], target[None].float()) for row, target in zip(expected, targets, strict=True)]
    reference = torch.stack(of_images).sum() / targets.numel()  # versions of timm reduce a batch in different ways
    assert value.item() == pytest.approx(reference.item(), rel=1e-4)
    value.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-8)


def test_asymmetric_gradients_equal_the_weighted_derivative_of_each_term(batch):
    """The derivatives of log p and log(1 - p + 0.05), written out, times weights that are constants."""
    logits, targets = batch[0].double().requires_grad_(), batch[1].double()
    losses.LOSSES["asymmetric"].build(torch.empty(0), torch.device("cpu"), gamma_positive=1.0)(
        logits, targets
    ).backward()
    p = torch.sigmoid(logits.detach())
    of_negatives = torch.where(p > 0.05, (p - 0.05) ** 4 * p * (1 - p) / (1.05 - p), 0.0)
    expected = torch.where(targets == 1, -(1 - p) * (1 - p), of_negatives) / targets.numel()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-15)


def test_the_asymmetric_losss_option_reaches_it(batch, run_values):
    logits, targets = batch
    values = [
        build_run(run_values, loss={"name": "asymmetric"} | option).criterion(logits, targets)
        for option in ({}, {"gamma_positive": 1.0}, {"gamma_positive": 0.0})
    ]
    assert values == [losses.asymmetric(logits, targets, gamma) for gamma in (1.0, 1.0, 0.0)]
    assert values[0] < values[2]


def test_focal_of_mixed_labels_matches_torchvision(batch):
    logits, targets = batch
    soft = losses.smooth(targets.double(), 0.3)
    expected = sigmoid_focal_loss(logits.double(), soft, alpha=-1, gamma=2, reduction="mean")
    assert losses.focal(logits.double(), soft).item() == pytest.approx(expected.item(), rel=1e-12)
    assert losses.focal(logits.double(), soft).dtype == torch.float64


def test_smoothing_moves_targets_towards_one_half():
    torch.testing.assert_close(losses.smooth(torch.tensor([0.0, 1.0]), 0.1), torch.tensor([0.05, 0.95]))


def test_at_power_one_positives_and_negatives_of_a_tag_weigh_the_same():
    frequencies = torch.tensor([0.5, 0.1, 0.001], dtype=torch.float64)
    weight = losses.frequency_weight(frequencies, 1.0)
    torch.testing.assert_close(weight.double() * frequencies, 1 - frequencies)
    assert torch.equal(losses.frequency_weight(frequencies, 0.0), torch.ones(3))
    logits = torch.zeros(1, 3)
    ratio = losses.binary_cross_entropy(logits, torch.ones(1, 3), weight) / losses.binary_cross_entropy(
        logits, torch.ones(1, 3)
    )
    assert float(ratio) == pytest.approx(float(weight.mean()))


@pytest.mark.parametrize("criterion", [losses.focal, losses.binary_cross_entropy, losses.asymmetric])
def test_extreme_half_precision_logits_stay_finite(criterion):
    logits = torch.tensor([[-6e4, 6e4, -6e4, 6e4]], dtype=torch.float16, requires_grad=True)
    value = criterion(logits, torch.tensor([[True, True, False, False]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_new_loss_needs_only_a_row_of_the_table(run_values, monkeypatch):
    """Config, training, checkpoint and release then know the loss."""
    row = losses.Loss(
        lambda frequencies, device, gamma: lambda logits, targets: gamma * losses.focal(logits, targets),
        "new",
        ("gamma",),
    )
    monkeypatch.setitem(losses.LOSSES, "new", row)
    run = build_run(run_values, stages=[{"image_size": 8, "samples": 16}], loss={"name": "new", "gamma": 0.5})
    trainer.train(run, None)
    for directory in (newest_checkpoint(run), Path(run.config.output) / "release"):
        assert json.loads((directory / "config.json").read_text())["loss_type"] == "new"

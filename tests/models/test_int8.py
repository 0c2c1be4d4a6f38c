"""Eight-bit linear layers against the float32 ones that they replace."""

import copy
from typing import Any

import pytest
import torch
from taggers import needs_int8
from torch import nn

from joytag.models import int8
from joytag.models.vit import ViT, ViTConfig

pytestmark = needs_int8


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@torch.no_grad()
def test_a_layer_is_exact_to_eight_bits(shift):
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 40), torch.randn(2, 200, 96) + shift
    linear.weight.mul_(torch.logspace(-3, 2, 40)[:, None])  # each output needs a scale of its own
    expected = linear(x)
    for result, wanted in zip(int8.Int8Linear(linear)(x.clone()).unbind(-1), expected.unbind(-1), strict=True):
        assert relative_error(result, wanted) < 0.03


@torch.no_grad()
def test_scale_gelu_and_residual_are_applied():
    torch.manual_seed(0)
    linear, x, scale, residual = nn.Linear(32, 24), torch.randn(1, 9, 32), torch.rand(24), torch.randn(1, 9, 24)
    expected = linear(x)
    assert relative_error(int8.Int8Linear(linear, scale)(x.clone()), expected * scale) < 0.02
    assert relative_error(int8.Int8Linear(linear, gelu=True)(x.clone()), nn.functional.gelu(expected)) < 0.02
    output = int8.Int8Linear(linear, scale)(x.clone(), residual.clone())
    assert relative_error(output - residual, expected * scale) < 0.02


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-30, 1e30])
@torch.no_grad()
def test_constant_activations_stay_exact(value):
    linear = nn.Linear(8, 4)
    layer, x = int8.Int8Linear(linear), torch.full((1, 3, 8), value)
    rounding = 8 * float(layer.steps.max()) / 2  # of the weights: half a step each
    torch.testing.assert_close(layer(x.clone()), linear(x), rtol=1e-5, atol=rounding * abs(value) + 1e-6)


@pytest.mark.parametrize("outputs", [8, 192])
@torch.no_grad()
def test_products_of_the_largest_values_do_not_saturate(outputs):
    linear = nn.Linear(96, outputs)
    linear.weight.fill_(0.5)
    linear.weight[1::2] = -0.5
    x = torch.ones(1, 50, 96)
    x[:, 0] = 0
    torch.testing.assert_close(int8.Int8Linear(linear)(x.clone()), linear(x))


@torch.no_grad()
def test_a_model_keeps_its_logits():
    torch.manual_seed(0)
    stem = "conv:c=32;ln;relu;conv:c=64,s=1,k=1,p=0"
    sizes: dict[str, Any] = dict(image_size=16, num_blocks=4, patch_size=2, d_model=64, mlp_dim=128, num_heads=2)
    config = ViTConfig(n_tags=50, cnn_stem=stem, layerscale_init=0.5, **sizes)
    model = ViT(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randn(1, 3, 16, 16)
    expected = model(images)
    output = int8.quantize(copy.deepcopy(model))(images)
    assert relative_error(output, expected) < 0.02
    assert (output - expected).abs().max() > 0  # it does compute in 8 bits


@pytest.mark.parametrize(("low", "high"), [(-13.784560203552246, 2.451295852661133), (-0.39263263, 5.328585624694824)])
@torch.no_grad()
def test_the_largest_value_is_never_rounded_past_eight_bits(low, high):
    """In these ranges zero point and largest value both lie half-way between two steps."""
    linear = nn.Linear(1, 8)
    x = torch.tensor([[[low], [high]]])
    torch.testing.assert_close(int8.Int8Linear(linear)(x.clone()), linear(x), rtol=0, atol=0.005 * (high - low))


def test_a_torch_without_the_operators_is_not_supported(monkeypatch):
    assert int8.supported()
    monkeypatch.setattr(int8, "OPERATORS", (*int8.OPERATORS, "qlinear_removed"))
    assert not int8.supported()

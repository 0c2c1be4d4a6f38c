"""Linear layers in 8-bit integers, which CPUs multiply several times faster than float32."""

from __future__ import annotations

import math
import platform

import torch
from torch import Tensor, nn

from joytag.core.devices import cpu_capabilities
from joytag.models.architectures import Model
from joytag.models.vit import Block, ViT

OPERATORS = ("qlinear_prepack", "qlinear_pointwise")  # of torch.ops.onednn, which no version of torch promises


def supported() -> bool:
    """Whether this CPU multiplies 8-bit integers fast (x86 with AVX2) and this torch supports it."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    return bool(cpu_capabilities().get("avx2")) and all(hasattr(torch.ops.onednn, name) for name in OPERATORS)


def largest_weight() -> int:
    """Return the largest absolute value of the 8-bit weights with which this CPU's products are exact.

    A CPU without VNNI or AMX adds pairs of products in signed 16 bits: 2 * 255 * 64 fits, 2 * 255 * 65 does not.
    """
    return 127 if any(cpu_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")) else 64


def width(model: Model) -> int:
    """Return the width of the layers that `quantize` would replace, 0 for a model that it does not support."""
    return model.config.d_model if isinstance(model, ViT) else 0


class Int8Linear(nn.Module):
    """A linear layer, float32 in and out, with 8-bit weights (one scale per output) and quantized activations.

    The smallest and the largest activation determine one scale and zero point for the whole input. An image's outputs
    therefore depend on the others in its batch: compute one at a time. `scale` [outputs] multiplies the outputs; `gelu`
    is applied to them.
    """

    def __init__(self, linear: nn.Linear, scale: Tensor | None = None, gelu: bool = False) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        self.steps = (weight.abs().amax(dim=1) / largest_weight()).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / self.steps[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros, self.bias = torch.zeros(len(weight), dtype=torch.int32), bias
        self.gelu = gelu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the outputs, added to `residual` in place if it is given. Overwrites `x`."""
        low, high = (float(bound) for bound in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        if not math.isfinite(high - low):
            return x.new_full((*x.shape[:-1], len(self.steps)), math.nan)
        step = max((high - low) / 255, torch.finfo(torch.float32).tiny)
        zero = round(-low / step)
        x = torch.add(x.new_full((), zero - 128), x, alpha=1 / step, out=x).round_()
        x = x.clamp_(-128, 127)  # the largest value may be rounded up to one more
        x = x.to(torch.int8).view(torch.uint8).bitwise_xor_(128)
        weights = (self.weight, self.steps, self.zeros)
        if residual is None:
            name, algorithm = ("gelu", "none") if self.gelu else ("none", "")
            return torch.ops.onednn.qlinear_pointwise(
                x, step, zero, *weights, self.bias, 1.0, 0, torch.float32, name, [], algorithm
            )
        return torch.ops.onednn.qlinear_pointwise.binary(
            x, step, zero, *weights, residual, self.bias, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], ""
        )


class Int8Block(nn.Module):
    """A `vit.Block` for prediction only. Norms and attention are float32; layer scales are folded into the weights."""

    attend = staticmethod(Block.attend)

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.num_heads, self.norm1, self.norm2 = block.num_heads, block.norm1, block.norm2
        self.qkv_proj = Int8Linear(block.qkv_proj)
        self.out_proj = Int8Linear(block.out_proj, block.skip_init1.skip.detach())
        self.linear1 = Int8Linear(block.mlp.linear1, gelu=True)
        self.linear2 = Int8Linear(block.mlp.linear2, block.skip_init2.skip.detach())

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to the same shape."""
        qkv = self.qkv_proj(self.norm1(x_BTD)).unflatten(-1, (3, self.num_heads, -1))
        out_BHTK = self.attend(*qkv.permute(2, 0, 3, 1, 4))
        x_BTD = self.out_proj(out_BHTK.transpose(1, 2).flatten(2), x_BTD)
        return self.linear2(self.linear1(self.norm2(x_BTD)), x_BTD)


def quantize(model: Model) -> ViT:
    """Replace a model's blocks, in place, for prediction on a CPU only. Stem and head stay float32."""
    assert isinstance(model, ViT), "only models with a `width` can be quantized"
    model.blocks = nn.ModuleList(Int8Block(block) for block in model.blocks if isinstance(block, Block))
    return model

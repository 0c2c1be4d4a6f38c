"""References that speed is compared with, in plain code: a Pillow pipeline, an eager training step, a looped LAMB."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.ops import StochasticDepth
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.functional import normalize, to_tensor

from joytag.data.images import WHITE
from joytag.data.preprocessing import MEAN, STD
from joytag.models.stem import ITEMS, Item, build_stem
from joytag.models.vit import ViTConfig, sine_positions


def trivial_augment() -> TrivialAugmentWide:
    """Return torchvision's TrivialAugment with the recipe's options: bilinear, white outside the image."""
    return TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(WHITE))


class PillowImages(Dataset[Tensor]):
    """Image files, read one at a time as normalized float tensors [3, size, size], augmented by torchvision."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size
        self.augment = trivial_augment()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        side = max(image.size)
        square = ImageOps.pad(image, (side, side), color=WHITE)
        augmented = self.augment(square.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return normalize(to_tensor(augmented), list(MEAN), list(STD))


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of a [B, C, Y, X] map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, Y, X] to the same shape."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class EagerBlock(nn.Module):
    """A transformer block with the parameter names of `joytag.models.vit.Block`."""

    def __init__(self, config: ViTConfig, scale: float) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.ModuleDict(
            {"linear1": nn.Linear(width, config.mlp_dim), "linear2": nn.Linear(config.mlp_dim, width)}
        )
        self.skip_init1 = nn.ParameterDict({"skip": nn.Parameter(torch.full((width,), scale))})
        self.skip_init2 = nn.ParameterDict({"skip": nn.Parameter(torch.full((width,), scale))})
        self.drop = StochasticDepth(config.stochdepth_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to the same shape."""
        batch, tokens, width = x.shape
        heads = [
            part.view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv_proj(self.norm1(x)).chunk(3, dim=-1)
        ]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.drop(self.out_proj(attended) * self.skip_init1["skip"])
        hidden = self.drop(F.gelu(self.mlp["linear1"](self.norm2(x))))
        return x + self.drop(self.mlp["linear2"](hidden) * self.skip_init2["skip"])


class EagerViT(nn.Module):
    """The released model's architecture, with the parameter names of `joytag.models.vit.ViT` and an NCHW stem."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        assert config.cnn_stem is not None, "there is no reference for a plain patch projection"
        assert config.use_sine, "there is no reference for learned positions"
        self.config = config
        stem = build_stem(config.cnn_stem, {**ITEMS, "ln": Item(LayerNorm2d)})
        self.patch_embeddings = nn.ModuleDict({"conv": stem})
        self.blocks = nn.ModuleList(EagerBlock(config, 0.1) for _ in range(config.num_blocks))
        self.norm, self.head = nn.LayerNorm(config.d_model), nn.Linear(config.d_model, config.n_tags)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, N] logits."""
        x = self.patch_embeddings["conv"](images)
        positions = sine_positions(x.shape[2], x.shape[3], x.shape[1], x.device)
        x = x.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss with gamma 2, times 128."""
    p = torch.sigmoid(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    p_t = p * labels + (1 - p) * (1 - labels)
    return 128 * (cross_entropy * (1 - p_t) ** 2).mean()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Take a step on micro-batches of normalized float images and float labels; returns the loss.

    It computes in fp16 where the scaler is enabled, else in float32.
    """
    optimizer.zero_grad()
    total = torch.zeros(())
    for images, labels in batches:
        with torch.autocast(images.device.type, torch.float16, enabled=scaler.is_enabled()):
            logits = model(images)
        loss = focal(logits.float(), labels) / len(batches)
        scaler.scale(loss).backward()
        total = total.to(loss.device) + loss.detach()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return total


class LoopedLamb(torch.optim.Optimizer):
    """LAMB as timm implements it, one tensor and one operation at a time."""

    def __init__(self, parameters: Iterable[Any], lr: float, weight_decay: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        self.steps += 1
        first, second = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                m, v = state["m"], state["v"]
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                update = (m / first) / ((v.sqrt() / math.sqrt(second)) + 1e-6)
                update = update + group["weight_decay"] * p
                norm, length = p.norm(), update.norm()
                ratio = torch.where((norm > 0) & (length > 0), norm / length, torch.ones_like(norm))
                p.sub_(group["lr"] * ratio * update)

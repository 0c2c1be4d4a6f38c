"""The architectures that exist, their size and their cost."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from joytag.models.timm_backbone import TimmConfig, TimmModel
from joytag.models.vit import ViT, ViTConfig

Config = ViTConfig | TimmConfig


Model = ViT | TimmModel


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def training_flop(config: Config, image_size: int) -> int:
    """Floating-point operations (two to a multiply-add) of forward and backward for one image.

    Counted by torch's FlopCounterMode on the meta device, so nothing is allocated or computed.
    """
    with torch.device("meta"):
        model = config.build().eval()
        images = torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()

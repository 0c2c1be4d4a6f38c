"""The table of architectures, and the size and cost of a model."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from joytag.models.timm_backbone import TimmConfig, TimmModel
from joytag.models.vit import ViT, ViTConfig

Config = ViTConfig | TimmConfig
Model = ViT | TimmModel


class Architecture(NamedTuple):
    """A kind of model: its configuration, stored in `config.json`, and its network.

    Configurations share the public methods of TimmConfig, networks the public methods and attributes of TimmModel.
    """

    config: type[Config]
    model: type[Model]


ARCHITECTURES = {  # by the `class` in a release's config.json
    "ViT": Architecture(ViTConfig, ViT),
    "timm": Architecture(TimmConfig, TimmModel),
}


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


@cache
def training_flop(config: Config, image_size: int) -> int:
    """Return the floating-point operations (a multiply-add is two) of a forward and backward pass for one image.

    torch's FlopCounterMode counts them on the meta device, without allocating or computing anything.
    """
    from torch.utils.flop_counter import FlopCounterMode  # not at the top: it imports much of torch.export

    with torch.device("meta"):
        model = config.build().eval()
        images = torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()

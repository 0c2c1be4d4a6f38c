"""A backbone of timm under a linear head."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from joytag.models.vit import MAX_IMAGE_SIZE


@dataclass(frozen=True)
class TimmConfig:
    """A backbone by its name in timm, such as `convnext_base`, with a linear head.

    `stochdepth_rate` is timm's `drop_path_rate`: the rate of the last layer, to which it grows from 0 over the depth.
    Raises ValueError, naming the field, for a name or a value that cannot be built.
    """

    ASSUMED: ClassVar[dict[str, Any]] = {}  # for keys that config.json lacks: nothing

    n_tags: int
    timm: str
    image_size: int = 448
    stochdepth_rate: float = 0.05
    patch_size = 16  # for estimates of cost

    def __post_init__(self) -> None:
        import timm

        if self.n_tags < 1:
            raise ValueError(f"n_tags: {self.n_tags} is not positive")
        if not 0 <= self.stochdepth_rate < 1:
            raise ValueError(f"stochdepth_rate: {self.stochdepth_rate} is not in [0, 1)")
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size: {self.image_size} is not between 1 and {MAX_IMAGE_SIZE} pixels")
        if not timm.is_model(self.timm):
            nearest = difflib.get_close_matches(self.timm, timm.list_models(), n=3)
            raise ValueError(f"timm: {self.timm!r} is not a model of timm; nearest: {', '.join(nearest) or 'none'}")

    def build(self) -> TimmModel:
        """Build the model, with random weights."""
        return TimmModel(self)

    def check_tensors(self, names: Collection[str]) -> None:
        """Accept all tensor names: backbones that timm knows by name have a reasonable size."""


class TimmModel(nn.Module):
    """A backbone of timm (github.com/huggingface/pytorch-image-models) with a linear head on its pooled features."""

    state_is_complete = False  # backbones have buffers that their state_dict leaves out
    noise_sites = 0  # timm's stochastic depth draws from torch's global generator

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.head = nn.Linear(cast(int, self.backbone.head_hidden_size), config.n_tags)

    def freeze(self, blocks: int) -> None:
        """Raise ValueError: which modules are blocks is only known for our own model."""
        raise ValueError("model.freeze: not for a timm backbone; use optimizer.layer_decay")

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that torch.compile compiles one by one."""
        return [self.backbone]

    def layer_groups(self, decay: float) -> list[dict[str, Any]]:
        """Group the parameters as `ViT.layer_groups` does, by the layers that timm defines."""
        from timm.optim import param_groups_layer_decay

        layers = param_groups_layer_decay(self.backbone, layer_decay=decay, weight_decay_exclude_1d=False)
        head = {"params": list(self.head.parameters()), "lr_scale": 1.0}
        return [head, *({"params": group["params"], "lr_scale": decay * group["lr_scale"]} for group in layers)]

    def set_image_size(self, size: int) -> None:
        """Change the image size in pixels, for training; not every backbone accepts another one."""
        self.config = replace(self.config, image_size=size)

    def embed(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, D] pooled features; ignores `noise_BS`."""
        return self.backbone(images_BCYX.to(memory_format=torch.channels_last))

    def forward(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, N] logits; ignores `noise_BS`."""
        return self.head(self.embed(images_BCYX))


def _backbone(config: TimmConfig) -> nn.Module:
    """Build the backbone without a classifier. Raises ValueError when it does not accept the image size."""
    import timm

    side = config.image_size
    sizes: list[dict[str, Any]] = [{"dynamic_img_size": True}, {}, {"img_size": side}]
    depths: list[dict[str, Any]] = [{"drop_path_rate": config.stochdepth_rate}, {}]
    for size, depth in itertools.product(sizes, depths):  # not every model accepts every option
        create = partial(timm.create_model, config.timm, pretrained=False, num_classes=0, **size, **depth)
        try:
            with torch.device("meta"):
                create().eval()(torch.empty(1, 3, side, side))
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue  # models raise any of these for options and sizes that they do not accept
        return create()
    raise ValueError(f"image_size: {config.timm} does not accept images of {side} pixels")

"""The convolutional stem: a table of its layers, and the grammar that names them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from joytag.core.errors import first_line

RELEASE_STEM = "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0"


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a [B, C, Y, X] map; needs no copy when the map is channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to the same shape."""
        return self.norm(x_BCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Item(NamedTuple):
    """A kind of layer.

    `build` takes the number of input channels and the item's options by name. `options` holds their defaults, None
    where an option must be given. The option `c` is the number of output channels, by default that of the input. `s` is
    the stride, by default 1, `k` the kernel, by default the stride, and `p` the padding, by default 0.
    """

    build: Callable[..., nn.Module]
    options: Mapping[str, int | None] = MappingProxyType({})


ITEMS: dict[str, Item] = {
    "conv": Item(lambda channels, c, k, s, p: nn.Conv2d(channels, c, k, s, p), {"c": None, "k": 3, "s": 2, "p": 1}),
    "ln": Item(ChannelNorm),
    "bn": Item(nn.BatchNorm2d),
    "relu": Item(lambda _: nn.ReLU()),
    "gelu": Item(lambda _: nn.GELU()),
}


def parse_stem(stem: str) -> list[tuple[str, dict[str, int]]]:
    """`conv:c=64,k=5;ln` to `[("conv", {"c": 64, "k": 5, "s": 2, "p": 1}), ("ln", {})]`.

    Items are separated by `;` and named in ITEMS, with their options: for `conv` its channels `c` (required), kernel
    `k`, stride `s` and padding `p`. Raises ValueError for anything else.
    """
    items = []
    for text in stem.split(";"):
        name, _, arguments = text.strip().partition(":")
        try:
            values = {key.strip(): int(value) for key, value in (a.split("=") for a in arguments.split(",") if a)}
        except ValueError:
            raise ValueError(f"cnn_stem: cannot read {text!r}; write it like conv:c=64,k=3,s=2,p=1") from None
        known = ITEMS[name].options if name in ITEMS else None
        options = {key: value for key, value in {**(known or {}), **values}.items() if value is not None}
        if known is None or options.keys() != known.keys():
            raise ValueError(f"cnn_stem: unknown item {text!r}; known: {', '.join(ITEMS)}, like conv:c=64,k=3")
        for key, value in options.items():
            if value < (0 if key == "p" else 1):
                raise ValueError(f"cnn_stem: {text!r}: {key} is {value}, but only p may be 0 and nothing negative")
        items.append((name, options))
    return items


def check_stem(stem: str, width: int, patch_size: int) -> None:
    """Raise ValueError unless a stem turns each patch of `patch_size` pixels into one token of `width` channels.

    That is calculated for an image of 4 x 4 patches.
    """
    layers = [options for _, options in parse_stem(stem)]
    channels = [options["c"] for options in layers if "c" in options]
    if channels[-1:] != [width]:
        raise ValueError(f"cnn_stem: the last conv must have c={width} channels (d_model)")
    stride = math.prod(options.get("s", 1) for options in layers)
    if stride != patch_size:
        raise ValueError(f"cnn_stem: its strides multiply to {stride}, not to patch_size {patch_size}")
    try:
        with torch.device("meta"):  # where layers have no memory
            build_stem(stem)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # whatever a layer refuses
        raise ValueError(f"cnn_stem: {first_line(error)}") from None
    side = 4 * patch_size
    for options in layers:
        stride, padding = options.get("s", 1), options.get("p", 0)
        kernel = options.get("k", stride)
        if kernel > side + 2 * padding:
            raise ValueError(
                f"cnn_stem: kernel k={kernel} is larger than its input of 4 x 4 patches, {side} pixels wide"
            )
        side = (side + 2 * padding - kernel) // stride + 1
    if side != 4:
        raise ValueError(f"cnn_stem: turns 4 x 4 patches into {side} x {side}; adjust its kernels k and paddings p")


def build_stem(stem: str, items: Mapping[str, Item] = ITEMS) -> nn.Sequential:
    """Build the layers that a stem names, from 3 input channels; `items` may replace kinds of layers."""
    layers: list[nn.Module] = []
    channels = 3
    for name, options in parse_stem(stem):
        layers.append(items[name].build(channels, **options))
        channels = options.get("c", channels)
    return nn.Sequential(*layers)


class CNNStem(nn.Module):
    """A few strided convolutions in place of one large patch projection (Xiao et al. 2021, arXiv:2106.14881)."""

    def __init__(self, stem: str) -> None:
        super().__init__()
        self.conv = build_stem(stem)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        """[B, 3, height, width] float images to [B, D, Y, X] patches."""
        return self.conv(images_BCYX)

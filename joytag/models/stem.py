"""The convolutional stem and its grammar."""

from __future__ import annotations

from torch import Tensor, nn

RELEASE_STEM = "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0"


def parse_stem(stem: str) -> list[tuple[str, dict[str, int]]]:
    """`conv:c=64,k=3;ln;relu` to `[("conv", {"c": 64, "k": 3, "s": 2, "p": 1}), ("ln", {}), ("relu", {})]`.

    Items are split by `;`. `conv` takes `c` (channels, required), `k` (kernel, 3), `s` (stride, 2) and
    `p` (padding, 1); `ln`, `bn`, `relu` and `gelu` take nothing. Raises ValueError on anything else.
    """
    items = []
    for item in stem.split(";"):
        kind, _, arguments = item.strip().partition(":")
        try:
            options = {key.strip(): int(value) for key, value in (a.split("=") for a in arguments.split(",") if a)}
        except ValueError:
            raise ValueError(f"cnn_stem: cannot read {item!r}; write it like conv:c=64,k=3,s=2,p=1") from None
        if kind == "conv" and "c" in options and options.keys() <= set("cksp"):
            items.append((kind, {"k": 3, "s": 2, "p": 1} | options))
        elif kind in ("ln", "bn", "relu", "gelu") and not options:
            items.append((kind, {}))
        else:
            raise ValueError(f"cnn_stem: unknown item {item!r}; use conv:c=64,k=3,s=2,p=1, ln, bn, relu or gelu")
    return items


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a [B, C, Y, X] map; free of copies when that is channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.norm(x_BCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CNNStem(nn.Module):
    """A few strided convolutions in place of one large patch projection (Xiao et al. 2021, arXiv:2106.14881)."""

    def __init__(self, stem: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for kind, options in parse_stem(stem):
            if kind == "conv":
                layers.append(nn.Conv2d(channels, options["c"], options["k"], options["s"], options["p"]))
                channels = options["c"]
            elif kind == "ln":
                layers.append(ChannelNorm(channels))
            elif kind == "bn":
                layers.append(nn.BatchNorm2d(channels))
            else:
                layers.append(nn.ReLU() if kind == "relu" else nn.GELU())
        self.conv = nn.Sequential(*layers)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        return self.conv(images_BCYX)

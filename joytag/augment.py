"""Augmentation of a batch, drawn by position, not by history: TrivialAugment, RandAugment, mixup.

TrivialAugment (Mueller and Hutter 2021, arXiv:2103.10158) applies one of 14 operations to a uint8
picture at one of 31 magnitudes, in torchvision's "wide" space; RandAugment (Cubuk et al. 2020,
arXiv:1909.13719) two of them, one after the other, at magnitude 9 of its narrower space. Bilinear,
white outside. Colour operations follow torchvision's tensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
GEOMETRIC = OPERATIONS[1:6]
BINS = 31


@dataclass(frozen=True)
class Space:
    """How strong operations are: the magnitude of the strongest bin; weaker ones lie evenly between it and none.

    `level` is the one bin that is used, None for a random one; `number` how many operations a picture gets.
    """

    shear: float
    translate: float  # pixels, or as a share of the side
    rotate: float  # degrees
    blend: float
    posterize: int  # bits lost
    level: int | None
    number: int

    def strongest(self, operation: str, size: int) -> float:
        """The strongest magnitude of an operation that has a direction, else 0; pictures have `size` pixels."""
        if operation in ("translate_x", "translate_y"):
            return self.translate if self.translate >= 1 else self.translate * size
        if operation in ("shear_x", "shear_y"):
            return self.shear
        if operation in ("brightness", "color", "contrast", "sharpness"):
            return self.blend
        return self.rotate if operation == "rotate" else 0.0

    def magnitude(self, operation: str, level: int, size: int) -> float:
        """The unsigned magnitude of a bin, 0 to 30: fraction, pixels, degrees, bits kept, or threshold."""
        share = level / (BINS - 1)
        if operation == "posterize":
            return 8 - round(level / ((BINS - 1) / self.posterize))
        if operation == "solarize":
            return 255 * (1 - share)
        return self.strongest(operation, size) * share


SPACES = {
    "trivial": Space(shear=0.99, translate=32.0, rotate=135.0, blend=0.99, posterize=6, level=None, number=1),
    "rand": Space(shear=0.3, translate=150 / 331, rotate=30.0, blend=0.9, posterize=4, level=9, number=2),
}


@dataclass(frozen=True)
class Draws:
    """One operation for each picture of a batch: int64 [B] index into OPERATIONS, float32 [B] magnitude."""

    operations: Tensor
    magnitudes: Tensor


def draw(keys: Sequence[Sequence[int]], space: Space, size: int) -> list[Draws]:
    """Draw operations, bins and signs for pictures of `size` pixels, each from its key, such as (1, seed, stage, row).

    Of the draws, each picture gets all, one after the other.
    """
    numbers = [np.random.default_rng(list(key)) for key in keys]
    draws = []
    for _ in range(space.number):
        operations, magnitudes = [], []
        for random in numbers:
            operation, level, sign = random.integers((len(OPERATIONS), BINS, 2))
            name = OPERATIONS[operation]
            amount = space.magnitude(name, int(level) if space.level is None else space.level, size)
            operations.append(operation)
            magnitudes.append(-amount if sign and space.strongest(name, size) else amount)
        draws.append(Draws(torch.tensor(np.array(operations)), torch.tensor(magnitudes, dtype=torch.float32)))
    return draws


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Apply each picture's own operation to a uint8 [B, 3, S, S] batch; returns a new batch like it."""
    result = images.clone()
    names = [OPERATIONS[i] for i in draws.operations.tolist()]
    moved = [i for i, name in enumerate(names) if name in GEOMETRIC]
    if moved:
        matrices = [_inverse_matrix(names[i], float(draws.magnitudes[i]), images.shape[-1]) for i in moved]
        result[moved] = _warp(images[moved], torch.tensor(matrices, device=images.device))
    for name, function in _COLOUR.items():
        chosen = [i for i, n in enumerate(names) if n == name]
        if chosen:
            strength = draws.magnitudes[chosen].to(images.device).view(-1, 1, 1, 1)
            result[chosen] = function(images[chosen], strength)
    return result


def _inverse_matrix(operation: str, amount: float, size: int) -> list[list[float]]:
    """Where an output position comes from, in coordinates from -1 to 1 over the picture."""
    if operation == "shear_x":  # about the top left corner
        return [[1, amount, amount], [0, 1, 0]]
    if operation == "shear_y":
        return [[1, 0, 0], [amount, 1, amount]]
    if operation == "translate_x":
        return [[1, 0, -2 * int(amount) / size], [0, 1, 0]]
    if operation == "translate_y":
        return [[1, 0, 0], [0, 1, -2 * int(amount) / size]]
    angle = np.deg2rad(amount)
    return [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices.float(), list(images.shape), align_corners=False)
    # Sampled as distance from white, so that the zeros outside become white.
    moved = F.grid_sample(images.float() - 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved + 255).round().clamp(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    factor = 1 + strength
    return (factor * images + (1 - factor) * other).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.float().chunk(3, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    blurred = images.float()
    blurred[..., 1:-1, 1:-1] = F.conv2d(blurred, kernel / kernel[0].sum(), groups=3).round()
    return _blend(images, blurred, strength)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    return images & (256 - 2 ** (8 - bits)).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = (f(images, dim=(2, 3), keepdim=True).float() for f in (torch.amin, torch.amax))
    flat = high == low
    low, scale = torch.where(flat, 0, low), torch.where(flat, 1, 255 / (high - low))
    return ((images - low) * scale).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Map each channel through its cumulative histogram, as Pillow's ImageOps.equalize does."""
    channels = images.flatten(2).flatten(0, 1).long()  # [B * 3, pixels]
    histogram = torch.zeros(len(channels), 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, channels, torch.ones_like(channels))
    last = histogram.gather(1, channels.amax(dim=1, keepdim=True))
    step = (channels.shape[1] - last) // 255
    before = histogram.cumsum(dim=1) - histogram
    table = (before + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.gather(1, channels).to(torch.uint8).view(images.shape)


def mixup(images: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mix neighbours, the first with the second and so on, pictures [B, 3, S, S] and labels [B, N], both float.

    Of the result, float32 `shares` [B] are a picture's own (Zhang et al. 2018, arXiv:1710.09412).
    """
    mixed = []
    for values in (images, labels):
        neighbours = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        mixed.append(torch.lerp(neighbours, values, shares.view(-1, *[1] * (values.dim() - 1))))
    return mixed[0], mixed[1]


_COLOUR = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

"""Augmentation of a batch, drawn from each image's key: TrivialAugment, RandAugment, mixup.

TrivialAugment (Mueller and Hutter 2021, arXiv:2103.10158) applies one of 14 operations to a uint8 image at one of 31
magnitudes, in torchvision's "wide" space. RandAugment (Cubuk et al. 2020, arXiv:1909.13719) applies two of them, one
after the other, at magnitude 9 of its narrower space. Resampling is bilinear, with white outside the image. All
operations follow Pillow's arithmetic, which torchvision applies to PIL images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from joytag.core.rng import Purpose, generator

BINS = 31
CACHED = 1 << 18  # pixels that a CPU processes at once, so that they stay in its cache


@dataclass(frozen=True)
class Space:
    """Magnitudes of the strongest bin of each operation; the other bins divide the range down to none evenly.

    `level` is the bin that is used, None for a random one. `number` is the number of operations an image gets.
    """

    shear: float
    translate: float  # pixels, or below 1 a fraction of the side
    rotate: float  # degrees
    blend: float
    posterize: int  # bits lost
    level: int | None
    number: int

    def strongest(self, operation: str, size: int) -> float:
        """Return the strongest magnitude of an operation with a sign, else 0, for images of `size` pixels a side."""
        field = OPERATIONS[operation].strongest
        magnitude: float = getattr(self, field) if field else 0.0
        return magnitude * size if field == "translate" and magnitude < 1 else magnitude

    def magnitude(self, operation: str, level: int, size: int) -> float:
        """Return the unsigned magnitude of a bin, 0 to 30: fraction, pixels, degrees, bits kept, or threshold."""
        fraction = level / (BINS - 1)
        if operation == "posterize":
            return 8 - round(level / ((BINS - 1) / self.posterize))
        if operation == "solarize":
            return 255 * (1 - fraction)
        return self.strongest(operation, size) * fraction


SPACES = {
    "trivial": Space(shear=0.99, translate=32.0, rotate=135.0, blend=0.99, posterize=6, level=None, number=1),
    "rand": Space(shear=0.3, translate=150 / 331, rotate=30.0, blend=0.9, posterize=4, level=9, number=2),
}


@dataclass(frozen=True)
class Draws:
    """One operation for each image of a batch: int64 [B] row of OPERATIONS, float32 [B] magnitude."""

    operations: Tensor
    magnitudes: Tensor


def draw(keys: Sequence[Sequence[int]], space: Space, size: int) -> list[Draws]:
    """Draw operations, bins and signs for images of `size` pixels, each from its key: seed, stage, epoch, row.

    All draws returned are to be applied, one after the other.
    """
    names = list(OPERATIONS)
    generators = [generator(Purpose.AUGMENTATION, *key) for key in keys]
    draws = []
    for _ in range(space.number):
        operations, magnitudes = [], []
        for rng in generators:
            operation, level, sign = rng.integers((len(names), BINS, 2))
            name = names[operation]
            amount = space.magnitude(name, int(level) if space.level is None else space.level, size)
            operations.append(operation)
            magnitudes.append(-amount if sign and space.strongest(name, size) else amount)
        draws.append(Draws(torch.tensor(np.array(operations)), torch.tensor(magnitudes, dtype=torch.float32)))
    return draws


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Apply each image's own operation to a uint8 [B, 3, S, S] batch, in place and on its device; returns it.

    Fastest on channels-last batches. Images with the same operation are processed together, without waiting for the
    device.
    """
    pixels = images.permute(0, 2, 3, 1)
    at_once = max(1, CACHED // images[0, 0].numel()) if images.device.type == "cpu" else len(images)
    operations = list(OPERATIONS.values())
    for index in draws.operations.unique().tolist():
        change = operations[index].change
        if change is None:
            continue
        for members in (draws.operations == index).nonzero().squeeze(1).split(at_once):
            chosen = pixels.index_select(0, members.to(images.device, non_blocking=True))
            changed = change(chosen, draws.magnitudes[members])
            torch._foreach_copy_([pixels[row] for row in members.tolist()], list(changed))
    return images


# The functions below take uint8 pixels_BYXC, contiguous by row. They compute in place and over whole rows instead of
# the three channels of a pixel, which CPUs do fastest.


def _translate(pixels_BYXC: Tensor, magnitudes: Tensor, dim: int) -> Tensor:
    result, size = torch.full_like(pixels_BYXC, 255), pixels_BYXC.shape[1]
    for moved, image, pixels in zip(result, pixels_BYXC, magnitudes.tolist(), strict=True):
        shift = max(-size, min(size, int(pixels)))
        kept = size - abs(shift)
        moved.narrow(dim, max(0, shift), kept).copy_(image.narrow(dim, max(0, -shift), kept))
    return result


Matrix = list[list[float]]  # 2x3, from output to input positions, in coordinates from -1 to 1 over the image


def _shear_x(slope: float) -> Matrix:
    return [[1, slope, slope], [0, 1, 0]]  # about the top left corner


def _shear_y(slope: float) -> Matrix:
    return [[1, 0, 0], [slope, 1, slope]]


def _rotation(degrees: float) -> Matrix:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return [[cosine, -sine, 0], [sine, cosine, 0]]


def _warp(pixels_BYXC: Tensor, magnitudes: Tensor, matrix: Callable[[float], Matrix]) -> Tensor:
    """Resample bilinearly at the input position to which an image's `matrix` maps each output position."""
    size = pixels_BYXC.shape[1]
    matrices = torch.tensor([matrix(magnitude) for magnitude in magnitudes.tolist()], dtype=torch.float32)
    matrices = matrices.to(pixels_BYXC.device, non_blocking=True)
    position = (torch.arange(size, device=pixels_BYXC.device) * 2 + 1) / size - 1
    # Positions as complex numbers: one addition computes x and y.
    along_x, along_y, offset = torch.view_as_complex(matrices.transpose(1, 2).contiguous()).unsqueeze(-1).unbind(1)
    grid = torch.view_as_real((along_x * position)[:, None, :] + (along_y * position + offset)[:, :, None])
    images = pixels_BYXC.float().permute(0, 3, 1, 2)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1).contiguous()
    outside = torch.maximum(*grid.abs().unbind(-1)).ge(1).to(torch.uint8).mul_(255)
    # Pillow rounds down; the small number outweighs the rounding of float32.
    return _levels(moved.add_(1 / 64)).bitwise_or_(torch.stack([outside] * 3, dim=-1))


def _levels(values: Tensor) -> Tensor:
    """Convert floats to uint8, rounded down; overwrites them."""
    # A direct conversion to uint8 takes five times as long.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _on_device(change: Callable[[Tensor, Tensor], Tensor], pixels_BYXC: Tensor, magnitudes: Tensor) -> Tensor:
    """Perform a colour operation, which takes the magnitudes as [B, 1, 1, 1] on the device of the pixels."""
    return change(pixels_BYXC, magnitudes.to(pixels_BYXC.device, non_blocking=True).view(-1, 1, 1, 1))


def _grey(planes: Sequence[Tensor]) -> Tensor:
    """Return the grey levels of red, green and blue planes, whole numbers in float32, as Pillow rounds them."""
    red, green, blue = planes
    weights = (19595 / 2**16, 38470 / 2**16, 7471 / 2**16)  # the sums are exact in float32
    return (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2]).add_(0.5).floor_()


def _blend(levels: Tensor, others: Tensor, strength: Tensor) -> Tensor:
    """Move levels away from others by `strength` times the difference; overwrites the levels."""
    return _levels(levels.sub_(others).mul_(1 + strength).add_(others))


def _planes(pixels_BYXC: Tensor) -> list[Tensor]:
    return [plane.float() for plane in pixels_BYXC.unbind(-1)]


def _brightness(pixels_BYXC: Tensor, strength: Tensor) -> Tensor:
    return _levels(pixels_BYXC.float().mul_(1 + strength))


def _color(pixels_BYXC: Tensor, strength: Tensor) -> Tensor:
    planes, strength = _planes(pixels_BYXC), strength.squeeze(-1)
    grey = _grey(planes)
    return torch.stack([_blend(plane, grey, strength) for plane in planes], dim=-1)


def _contrast(pixels_BYXC: Tensor, strength: Tensor) -> Tensor:
    mean = _grey(_planes(pixels_BYXC)).mean(dim=(1, 2)).add_(0.5).floor_().view_as(strength)
    return _blend(pixels_BYXC.float(), mean, strength)


def _sharpness(pixels_BYXC: Tensor, strength: Tensor) -> Tensor:
    """Blend with the image blurred by a 3x3 kernel of ones with 5 at its center; border pixels stay unchanged."""
    result = pixels_BYXC.clone()
    levels = pixels_BYXC.to(torch.int16)
    rows = (levels[:, :-2] + levels[:, 1:-1]).add_(levels[:, 2:])
    inner = levels[:, 1:-1, 1:-1]
    sums = (rows[:, :, :-2] + rows[:, :, 1:-1]).add_(rows[:, :, 2:]).add_(inner, alpha=4)
    blurred = sums.float().mul_(1 / 13).round_()
    result[:, 1:-1, 1:-1] = _blend(inner.float(), blurred, strength)
    return result


def _posterize(pixels_BYXC: Tensor, bits: Tensor) -> Tensor:
    return pixels_BYXC & (256 - 2 ** (8 - bits)).to(torch.uint8)


def _solarize(pixels_BYXC: Tensor, threshold: Tensor) -> Tensor:
    below = threshold.ceil().to(torch.int16) - 1
    bright = (below - pixels_BYXC) >> 15  # the sign bit: all ones at or above the threshold, else zero
    return pixels_BYXC ^ bright.to(torch.uint8)


def _autocontrast(pixels_BYXC: Tensor, _: Tensor) -> Tensor:
    rows = pixels_BYXC.flatten(2)
    low, high = (f(f(rows, dim=1).view(len(rows), -1, 3), dim=1).float() for f in (torch.amin, torch.amax))
    flat = high == low
    low, scale = torch.where(flat, 0, low), torch.where(flat, 1, 255 / (high - low))
    low, scale = (value.repeat(1, pixels_BYXC.shape[2]).unsqueeze(1) for value in (low, scale))
    return _levels((rows - low).mul_(scale)).view_as(pixels_BYXC)


def _equalize(pixels_BYXC: Tensor, _: Tensor) -> Tensor:
    """Map each channel through its cumulative histogram, as Pillow's ImageOps.equalize does."""
    batch, height, width, channels = pixels_BYXC.shape
    first = torch.arange(0, batch * channels * 256, 256, device=pixels_BYXC.device, dtype=torch.int32)
    bins = (pixels_BYXC.flatten(2) + first.view(batch, 1, channels).repeat(1, 1, width)).flatten()
    histogram = _histogram(bins, batch * channels * 256).view(batch, channels, 256)
    occurs = histogram > 0
    last = histogram.gather(2, 255 - occurs.flip(2).int().argmax(dim=2, keepdim=True))
    step = (height * width - last) // 255
    before = histogram.cumsum(dim=2) - histogram
    table = (before + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=table.device), table).to(torch.uint8)
    return table.flatten().index_select(0, bins).view_as(pixels_BYXC)


def _histogram(bins: Tensor, length: int) -> Tensor:
    """Count each bin; int64 [length]."""
    if bins.device.type == "cpu":  # on a GPU bincount would wait for the device
        return torch.bincount(bins, minlength=length)
    zeros = torch.zeros(length, dtype=torch.int64, device=bins.device)
    return zeros.scatter_add_(0, bins.long(), torch.ones_like(bins, dtype=torch.int64))


class Operation(NamedTuple):
    """An operation of TrivialAugment and RandAugment.

    `change` takes uint8 pixels_BYXC and float32 magnitudes [B] on the CPU, and returns the changed pixels; None leaves
    images unchanged. `strongest` is the field of Space with its strongest magnitude, which gets a random sign; "" for
    an operation without a sign.
    """

    change: Callable[[Tensor, Tensor], Tensor] | None
    strongest: str = ""


OPERATIONS = {  # in this order: Draws refer to rows
    "identity": Operation(None),
    "shear_x": Operation(partial(_warp, matrix=_shear_x), "shear"),
    "shear_y": Operation(partial(_warp, matrix=_shear_y), "shear"),
    "translate_x": Operation(partial(_translate, dim=1), "translate"),
    "translate_y": Operation(partial(_translate, dim=0), "translate"),
    "rotate": Operation(partial(_warp, matrix=_rotation), "rotate"),
    "brightness": Operation(partial(_on_device, _brightness), "blend"),
    "color": Operation(partial(_on_device, _color), "blend"),
    "contrast": Operation(partial(_on_device, _contrast), "blend"),
    "sharpness": Operation(partial(_on_device, _sharpness), "blend"),
    "posterize": Operation(partial(_on_device, _posterize)),
    "solarize": Operation(partial(_on_device, _solarize)),
    "autocontrast": Operation(partial(_on_device, _autocontrast)),
    "equalize": Operation(partial(_on_device, _equalize)),
}


def mixup(images: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each pair of neighbours, images [B, 3, S, S] and labels [B, N], both float; B is even.

    Each image keeps its share, float32 `shares` [B], and takes the rest from its neighbour (Zhang et al. 2018,
    arXiv:1710.09412).
    """
    mixed = []
    for values in (images, labels):
        neighbours = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        mixed.append(torch.lerp(neighbours, values, shares.view(-1, *[1] * (values.dim() - 1))))
    return mixed[0], mixed[1]

"""Losses for multi-label logits [B, N]: float32 scalars, or float64 ones for float64 logits.

Targets are 0 or 1, or values between them for mixed or smoothed labels; `without_unknown` deals with unknown ones.
LOSSES lists those that a config can name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

CERTAIN_NO = -1e4  # a logit in the range of fp16, whose sigmoid is 0 in float64, too


def binary_cross_entropy(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy; `positive_weight` [N] multiplies the loss of each tag's positives."""
    logits, targets = _precise(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weight)


def frequency_weight(frequencies: Tensor, power: float) -> Tensor:
    """Return the weight of each tag's positives, float32 [N]: its odds to the power `-power`.

    `frequencies` [N] are the tags' shares of the images. At power 1 the positives of a tag weigh as much as its
    negatives, in total; at 0 every weight is 1.
    """
    return ((1 - frequencies) / frequencies).pow(power).float()


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss without class weights (Lin et al. 2017, arXiv:1708.02002, equation 4).

    Each element's cross-entropy is weighted by (1 - p_t) ** gamma, where p_t is the predicted probability
    of the correct answer.
    """
    logits, targets = _precise(logits, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = torch.lerp(torch.sigmoid(logits), torch.sigmoid(-logits), targets)  # 1 - p_t, exact for tiny values too
    return (wrong.pow(gamma) * cross_entropy).mean()


def asymmetric(
    logits: Tensor, targets: Tensor, gamma_positive: float = 1.0, gamma_negative: float = 4.0, margin: float = 0.05
) -> Tensor:
    """Mean asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119, equation 7).

    Negatives are focused with `gamma_negative` after their probability is lowered by `margin`, which is positive;
    positives with `gamma_positive`. As in the paper's experiments, no gradient flows through the focusing weights
    (`disable_torch_grad_focal_loss` in its code).
    """
    logits, targets = _precise(logits, targets)
    p_negative = (torch.sigmoid(logits) - margin).clamp(min=0)
    positive_weight = torch.sigmoid(-logits.detach()).pow(gamma_positive)
    negative_weight = p_negative.detach().pow(gamma_negative)
    positive = targets * positive_weight * F.logsigmoid(logits)
    negative = (1 - targets) * negative_weight * torch.log1p(-p_negative)
    return -(positive + negative).mean()


def without_unknown(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets to which entries with an unknown target, NaN, add neither loss nor gradient.

    They become a certain, right no, whose loss is 0 in every loss here, so the mean is still over all entries: the
    partial BCE of Durand et al. 2019 (arXiv:1902.09720) with g = 1, where an image's labels do not weigh more because
    it has few. In a mean over known entries one label of an otherwise unknown image would weigh as much as all the
    thousands of a known one. With g = 1 a known entry has the same gradient whatever else is known, so `multiplier`
    keeps it in the range of fp16, and the gradient does not depend on how micro-batches and processes divide a batch.
    """
    unknown = targets.isnan()
    return logits.masked_fill(unknown, CERTAIN_NO), targets.masked_fill(unknown, 0.0)


def smooth(targets: Tensor, share: float) -> Tensor:
    """Move targets towards 1/2, by `share` of the distance (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    return targets * (1 - share) + share / 2


def _precise(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), targets.to(dtype)


Criterion = Callable[[Tensor, Tensor], Tensor]  # logits and targets to a scalar


@dataclass(frozen=True)
class Loss:
    """A loss that a config can name.

    `build` takes the tags' shares of the training images (float64 [N]), the device and, by name, the settings in
    `options`. `loss_type` is the name in a release's config.json.
    """

    build: Callable[..., Criterion]
    loss_type: str
    options: tuple[str, ...] = ()


def _build_bce(frequencies: Tensor, device: torch.device, frequency_power: float) -> Criterion:
    if not frequency_power:
        return binary_cross_entropy
    return partial(binary_cross_entropy, positive_weight=frequency_weight(frequencies, frequency_power).to(device))


LOSSES = {
    "focal": Loss(lambda frequencies, device, gamma: partial(focal, gamma=gamma), "focal2", ("gamma",)),
    "bce": Loss(_build_bce, "ce", ("frequency_power",)),
    "asymmetric": Loss(
        lambda frequencies, device, gamma_positive: partial(asymmetric, gamma_positive=gamma_positive),
        "asl",
        ("gamma_positive",),
    ),
}

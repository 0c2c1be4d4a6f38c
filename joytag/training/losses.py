"""Losses for multi-label logits [B, N]: float32 scalars, or float64 ones for float64 logits.

Targets are {0, 1}, or between them where labels are mixed or smoothed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, targets: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy; `positive_weight` [N] multiplies what each tag's positives cost."""
    logits, targets = _precise(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weight)


def frequency_weight(frequencies: Tensor, power: float) -> Tensor:
    """The weight of each tag's positives, float32 [N], of its share among images: its odds to the power `-power`.

    At 1 positives and negatives of a tag weigh the same in all, at 0 each image does.
    """
    return ((1 - frequencies) / frequencies).pow(power).float()


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss without class weights (Lin et al. 2017, arXiv:1708.02002, equation 4).

    Each element's cross-entropy is weighted by (1 - p_t) ** gamma, where p_t is the probability
    given to the right answer.
    """
    logits, targets = _precise(logits, targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = torch.lerp(torch.sigmoid(logits), torch.sigmoid(-logits), targets)  # 1 - p_t, exact for tiny values too
    return (wrong.pow(gamma) * cross_entropy).mean()


def asymmetric(
    logits: Tensor, targets: Tensor, gamma_positive: float = 0.0, gamma_negative: float = 4.0, margin: float = 0.05
) -> Tensor:
    """Mean asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119, equation 7).

    Negatives are focused with `gamma_negative` after their probability is lowered by `margin`;
    positives with `gamma_positive`.
    """
    logits, targets = _precise(logits, targets)
    p = torch.sigmoid(logits)
    p_negative = (p - margin).clamp(min=0)
    positive = targets * (1 - p).pow(gamma_positive) * F.logsigmoid(logits)
    negative = (1 - targets) * p_negative.pow(gamma_negative) * torch.log1p(-p_negative.clamp(max=1 - 1e-8))
    return -(positive + negative).mean()


def smooth(targets: Tensor, share: float) -> Tensor:
    """Targets moved towards 1/2, `share` of the way (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    return targets * (1 - share) + share / 2


def _precise(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), targets.to(dtype)

"""Losses for multi-label logits, and the multiplier that half precision needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy, a float32 scalar, of [B, N] logits and {0, 1} targets."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss without class weights (Lin et al. 2017, arXiv:1708.02002, equation 4).

    Each element's cross-entropy is weighted by (1 - p_t) ** gamma, where p_t is the probability
    given to the right answer. Takes [B, N] logits and {0, 1} targets, returns a float32 scalar.
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = torch.sigmoid(torch.where(targets > 0, -logits, logits))  # 1 - p_t, exact for tiny values too
    return (wrong.pow(gamma) * cross_entropy).mean()


def asymmetric(
    logits: Tensor, targets: Tensor, gamma_positive: float = 0.0, gamma_negative: float = 4.0, margin: float = 0.05
) -> Tensor:
    """Mean asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119, equation 7).

    Negatives are focused with `gamma_negative` after their probability is lowered by `margin`;
    positives with `gamma_positive`. Takes [B, N] logits and {0, 1} targets, returns a float32 scalar.
    """
    logits, targets = logits.float(), targets.float()
    p = torch.sigmoid(logits)
    p_negative = (p - margin).clamp(min=0)
    positive = targets * (1 - p).pow(gamma_positive) * F.logsigmoid(logits)
    negative = (1 - targets) * p_negative.pow(gamma_negative) * torch.log1p(-p_negative.clamp(max=1 - 1e-8))
    return -(positive + negative).mean()


LOSSES = {"focal": focal, "bce": binary_cross_entropy, "asymmetric": asymmetric}

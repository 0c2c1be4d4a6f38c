"""Parameters and settings to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
import torch_optimizer


def build(
    parameters: Iterable[Any],
    name: str,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Build `lamb`, `torch_optimizer_lamb` or `adamw` over parameters, or dicts of groups of them.

    As in the recipe nothing is excluded from weight decay. Both LAMBs (You et al. 2020,
    arXiv:1904.00962) leave clipping to the training step. timm's corrects the moments' bias and puts
    decay inside the trust ratio; torch_optimizer's follows the paper, with weight norms clamped at 10.
    """
    parameters = list(parameters)
    if name == "lamb":
        return timm.optim.Lamb(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=None)
    if name == "torch_optimizer_lamb":
        return torch_optimizer.Lamb(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    assert name == "adamw", name
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True)

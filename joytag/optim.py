"""Parameters and settings to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import timm.optim
import torch
import torch_optimizer
from torch import Tensor


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


@torch.no_grad()
def trust_ratios(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter that LAMB has stepped, and the ratio of its norm to its update's, by which it scales the rate.

    For timm's LAMB it is worked out again from the moments, with the weights as they are after the step.
    Nothing for other optimizers.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(optimizer, torch_optimizer.Lamb) and state:
                yield parameter, torch.as_tensor(state["trust_ratio"], device=parameter.device)
            if isinstance(optimizer, timm.optim.Lamb) and state:
                first, second = (1 - beta ** float(group["step"]) for beta in group["betas"])
                update = state["exp_avg"] / first / ((state["exp_avg_sq"] / second).sqrt() + group["eps"])
                update += group["weight_decay"] * parameter
                norm, length = parameter.norm(), update.norm()
                yield parameter, torch.where((norm > 0) & (length > 0), norm / length, 1.0)

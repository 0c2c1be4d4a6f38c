"""Parameters and settings to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch_optimizer
from torch import Tensor


class Lamb(torch.optim.AdamW):
    """LAMB (You et al. 2020, arXiv:1904.00962) with the moments' bias corrected and decay inside the trust ratio.

    A step goes the way that AdamW's would go at rate 1, but as far as the rate times the tensor's norm; so torch's
    fused AdamW does most of the work.
    """

    def __init__(self, parameters: Iterable[Any], **settings: Any) -> None:
        super().__init__(parameters, **settings, fused=True)
        self.trust_ratios: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        assert closure is None
        rates = [group["lr"] for group in self.param_groups]
        moved = [
            (parameter, parameter.clone(), rate)
            for rate, group in zip(rates, self.param_groups, strict=True)
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for group in self.param_groups:
            group["lr"] = 1.0
        super().step()
        for rate, group in zip(rates, self.param_groups, strict=True):
            group["lr"] = rate
        # A GPU wants few and large operations, a CPU those on what is in its cache.
        at_once = len(moved) if moved and moved[0][0].is_cuda else 1
        for first in range(0, len(moved), at_once):
            self._scale(*map(list, zip(*moved[first : first + at_once], strict=True)))

    def _scale(self, parameters: list[Tensor], before: list[Tensor], rates: list[float]) -> None:
        """Multiply the way from `before` to the parameters by the rates and trust ratios."""
        torch._foreach_sub_(parameters, before)
        norms, lengths = torch.stack(torch._foreach_norm(before)), torch.stack(torch._foreach_norm(parameters))
        ratios = torch.where((norms > 0) & (lengths > 0), norms / lengths, 1.0)
        rates_there = torch.tensor(rates, dtype=ratios.dtype).to(ratios.device, non_blocking=True)
        torch._foreach_mul_(parameters, (ratios * rates_there).unbind())
        torch._foreach_add_(parameters, before)
        self.trust_ratios.update(zip(parameters, ratios.unbind(), strict=True))


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
    arXiv:1904.00962) leave clipping to the training step. `lamb` corrects the moments' bias and puts
    decay inside the trust ratio, as timm's does; torch_optimizer's follows the paper, with weight norms clamped at 10.
    """
    parameters = list(parameters)
    if name == "lamb":
        return Lamb(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    if name == "torch_optimizer_lamb":
        return torch_optimizer.Lamb(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    assert name == "adamw", name
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True)


def trust_ratios(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter that LAMB has stepped, and the ratio of its norm to its update's, by which it scales the rate.

    Nothing for other optimizers.
    """
    if isinstance(optimizer, Lamb):
        yield from optimizer.trust_ratios.items()
    if isinstance(optimizer, torch_optimizer.Lamb):
        for parameter, state in optimizer.state.items():
            yield parameter, torch.as_tensor(state["trust_ratio"], device=parameter.device)

"""Optimizers; OPTIMIZERS lists those that a config can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch_optimizer
from torch import Tensor

CACHED = 1 << 18  # elements that a CPU updates at once, so that they stay in its cache
Update = tuple[Tensor, Tensor, float]  # a parameter, its value before, its learning rate


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose methods do not first import torch's compiler, for seconds: steps are not compiled here."""

    add_param_group, zero_grad, state_dict, load_state_dict = (
        inspect.unwrap(getattr(torch.optim.AdamW, name))
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    )
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Lamb(AdamW):
    """LAMB (You et al. 2020, arXiv:1904.00962) as timm implements it.

    The moments' bias is corrected, and weight decay is inside the trust ratio. A step has the direction of an AdamW
    step at rate 1 and the length `lr` times the tensor's norm, so torch's fused AdamW does most of the work.
    """

    def __init__(self, parameters: Iterable[Any], **settings: Any) -> None:
        super().__init__(parameters, **settings, fused=True)
        self.trust_ratios: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        assert closure is None
        rates = [group["lr"] for group in self.param_groups]
        updates = [
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
        for block in _blocks(updates):
            self._scale(*map(list, zip(*block, strict=True)))

    def _scale(self, parameters: list[Tensor], before: list[Tensor], rates: list[float]) -> None:
        """Multiply the update, the difference between the parameters and `before`, by rates and trust ratios."""
        torch._foreach_sub_(parameters, before)
        norms, lengths = torch.stack(torch._foreach_norm(before)), torch.stack(torch._foreach_norm(parameters))
        ratios = torch.where((norms > 0) & (lengths > 0), norms / lengths, 1.0)
        device_rates = torch.tensor(rates, dtype=ratios.dtype).to(ratios.device, non_blocking=True)
        torch._foreach_mul_(parameters, (ratios * device_rates).unbind())
        torch._foreach_add_(parameters, before)
        self.trust_ratios.update(zip(parameters, ratios.unbind(), strict=True))


def _blocks(updates: Iterable[Update]) -> Iterator[list[Update]]:
    """Divide updates into blocks to compute at once: few large operations, but on a CPU only while they are cached."""
    block: list[Update] = []
    elements = 0
    for update in updates:
        block.append(update)
        elements += update[0].numel()
        if elements >= CACHED and not update[0].is_cuda:
            yield block
            block, elements = [], 0
    if block:
        yield block


# What a config can name. torch_optimizer's LAMB follows the paper: no bias correction, weight norms clamped at 10.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lamb": Lamb,
    "torch_optimizer_lamb": torch_optimizer.Lamb,
    "adamw": partial(AdamW, foreach=True),
}


def build(
    parameters: Iterable[Any],
    name: str,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Build one of OPTIMIZERS over parameters, or over dicts of parameter groups.

    As in the recipe, weight decay applies to all parameters. The training step clips gradients, not the optimizer.
    """
    return OPTIMIZERS[name](list(parameters), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def trust_ratios(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter that LAMB has updated, and its trust ratio: its norm over the norm of its update.

    Yields nothing for other optimizers.
    """
    if isinstance(optimizer, Lamb):
        yield from optimizer.trust_ratios.items()
    if isinstance(optimizer, torch_optimizer.Lamb):
        for parameter, state in optimizer.state.items():
            yield parameter, torch.as_tensor(state["trust_ratio"], device=parameter.device)

"""Optimizers against their formulas, written plainly."""

import pytest
import torch

from joytag import optim

RECIPE = dict(lr=0.004, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)


def steps(name: str, count: int = 5) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """The gradients given, the parameters after each step, and the start."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 3
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optim.build([parameter], name, **RECIPE)
    gradients = [torch.randn(6, 4, generator=generator, dtype=torch.float64) * 5 for _ in range(count)]
    after = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    return gradients, after, start


def reference(name: str, gradients: list[torch.Tensor], p: torch.Tensor) -> list[torch.Tensor]:
    """LAMB (You et al. 2020, algorithm 2) and AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    (beta1, beta2), eps, decay, lr = RECIPE["betas"], RECIPE["eps"], RECIPE["weight_decay"], RECIPE["lr"]
    m, v, after = torch.zeros_like(p), torch.zeros_like(p), []
    for t, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        corrected = name != "torch_optimizer_lamb"
        m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
        update = m_hat / (v_hat.sqrt() + eps) + decay * p
        if name == "adamw":
            p = p - lr * update
        else:
            weight = p.norm().clamp(max=10) if name == "torch_optimizer_lamb" else p.norm()
            p = p - lr * weight / update.norm() * update
        after.append(p)
    return after


@pytest.mark.parametrize("name", ["lamb", "torch_optimizer_lamb", "adamw"])
def test_steps_follow_the_formula(name):
    gradients, after, start = steps(name)
    for ours, expected in zip(after, reference(name, gradients, start), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)

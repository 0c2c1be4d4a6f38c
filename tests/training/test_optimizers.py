"""Optimizers against their formulas in plain code."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm.optim
import torch
from paths import ROOT

from joytag.training import optimizers

RECIPE: dict[str, Any] = dict(lr=0.004, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)


def steps(name: str, count: int = 5) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Take steps with random gradients; returns these, the parameters after each step, and the start."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 3
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizers.build([parameter], name, **RECIPE)
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


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_trust_ratios_match_the_step(name):
    """Computed from the length of a step, in the direction that the moments give."""
    generator = torch.Generator().manual_seed(2)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64)) for size in (3, 50)]
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = optimizers.build([*parameters, unused], name, **RECIPE | {"lr": 1e-9})
    gradients, starts = [], [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.randn(len(parameter), generator=generator, dtype=torch.float64)
        gradients.append([parameter.grad.clone()])
    optimizer.step()
    ratios = dict(optimizers.trust_ratios(optimizer))
    if name == "adamw":
        assert ratios == {}
        return
    assert ratios.keys() == set(parameters)
    for parameter, start, gradient in zip(parameters, starts, gradients, strict=True):
        [after] = reference(name, gradient, start)
        (beta1, beta2), eps, decay = RECIPE["betas"], RECIPE["eps"], RECIPE["weight_decay"]
        m, v = (1 - beta1) * gradient[0], (1 - beta2) * gradient[0] ** 2
        if name == "lamb":
            m, v = gradient[0], gradient[0] ** 2
        update = m / (v.sqrt() + eps) + decay * start
        expected = (after - start).norm() / update.norm() / RECIPE["lr"]
        assert float(ratios[parameter]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_steps_follow_the_formula(name):
    gradients, after, start = steps(name)
    for ours, expected in zip(after, reference(name, gradients, start), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cached", [1, 25, 1 << 18])
def test_lamb_matches_timm(cached, monkeypatch):
    """With groups of different rates, a parameter without a gradient, one that is zero, and blocks of several."""
    monkeypatch.setattr(optimizers, "CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    sizes: list[tuple[int, ...]] = [(6, 4), (3,), (2, 2), (5,)]
    runs = []
    starts = [torch.randn(size, generator=generator) for size in sizes[:3]] + [torch.zeros(5)]
    gradients = [[torch.randn(size, generator=generator) for size in sizes] for _ in range(20)]
    builders: list[Callable[[Any], torch.optim.Optimizer]] = [
        partial(optimizers.build, name="lamb", **RECIPE),
        partial(timm.optim.Lamb, max_grad_norm=None, **RECIPE),
    ]
    for build in builders:
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = build([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.02}])
        for step in gradients:
            for number, (parameter, gradient) in enumerate(zip(parameters, step, strict=True)):
                parameter.grad = None if number == 1 else gradient.clone()
            optimizer.step()
        runs.append([parameter.detach() for parameter in parameters])
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-7)


def test_steps_do_not_import_the_compiler():
    """Which would take seconds at the start of every run."""
    code = """
import sys, torch
from joytag.training import optimizers
for name in ("lamb", "adamw"):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizers.build([parameter], name, lr=1.0, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1)
    parameter.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert parameter.grad is None and "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""The shares of a CPU's time are those of the operations that ran."""

from dataclasses import replace

import pytest
import torch
from small_steps import SETTINGS

from joytag.benchmarks import cpu, shares, tagging
from joytag.models.vit import ViTConfig


def test_a_work_of_one_kind_is_all_of_that_kind():
    x = torch.randn(512, 512)
    found = shares.shares(lambda: x @ x, 3)
    assert sum(found.values()) == pytest.approx(1)
    assert found["products"] > 0.9


def test_what_the_optimizer_calls_is_the_optimizers():
    parameter = torch.randn(1000, 1000, requires_grad=True)
    parameter.grad = torch.randn(1000, 1000)
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    found = shares.shares(optimizer.step, 3)
    assert found[shares.OPTIMIZER] > 0.9


@pytest.mark.benchmarks
def test_each_work_is_a_row(monkeypatch):
    small = replace(cpu.CASE, size=16, settings=(*cpu.CASE.settings, *SETTINGS))
    tiny = ViTConfig(
        n_tags=20, image_size=32, num_blocks=1, patch_size=16, d_model=32, mlp_dim=32, num_heads=2, cnn_stem=None
    )
    monkeypatch.setattr(shares, "CASE", small)
    monkeypatch.setattr(shares, "SIZES", (16,))
    monkeypatch.setattr(shares, "Case", lambda *arguments: small)
    monkeypatch.setattr(tagging, "ViTConfig", lambda n_tags: replace(tiny, n_tags=n_tags))
    threads = torch.get_num_threads()
    rows = shares.measure(1).splitlines()
    assert torch.get_num_threads() == threads
    assert [row.split("  ")[0] for row in rows[1:4]] == [
        "step of 32 at 16 px",
        "B/16, step of 8 at 224 px",
        "predict 64 at 16 px",
    ]
    for row in rows[1:-1]:
        assert 95 <= sum(map(int, row[32:].split())) <= 105

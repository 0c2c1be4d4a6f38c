"""The CPU's benchmark runs on a small model, and compares what it says."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from small_steps import SETTINGS, Local

from joytag.benchmarks import cpu
from joytag.core import spinning
from joytag.models import matmul
from joytag.training.config import RunSettings


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cpu, "CASE", replace(cpu.CASE, size=16, settings=(*cpu.CASE.settings, *SETTINGS)))
    monkeypatch.setattr(cpu, "SIZES", (16,))
    for name, value in {"STEPS": 2, "PREDICTED": 4, "INTERVAL": 0.01}.items():
        monkeypatch.setattr(cpu, name, value)
    monkeypatch.setattr(cpu, "Remote", Local)


def test_products_and_waiting_threads_are_compared(small):
    text = cpu.measure(rounds=1)
    rows = ("step of 32 at 16 px", "predict at 16 px", "step on idle cores", "step beside a busy program")
    assert [row for row in rows if row in text] == [*rows]
    assert "float32 products by " in text
    assert all(f"  {reference}" in text for reference in cpu.REFERENCES)
    assert text.count("apart on average") == 2
    assert "scores at most" in text


def test_the_reference_uses_torchs_own_library(small, monkeypatch):
    used = []
    monkeypatch.setattr(matmul, "use", lambda library, *models: used.append(library))
    monkeypatch.setattr(matmul, "pick", lambda model, device, dtype, wanted=None: wanted or "onednn")
    cpu.compare_steps(cpu.CASE, 1, "torch's library")
    assert sorted(set(used)) == ["blas", "onednn"]
    assert RunSettings.model_fields["matmul"].default == "auto"


def test_threads_are_allowed_to_sleep_in_ours_alone(small, monkeypatch):
    entered = []

    @contextmanager
    def watched():
        entered.append(True)
        with spinning.sleeping_when_busy():
            yield

    monkeypatch.setattr(cpu, "sleeping_when_busy", watched)
    idle, busy = cpu.compare_waiting(rounds=2)
    assert len(entered) == 2 * 3
    assert len(idle.timings.ours) == len(busy.timings.reference) == 2

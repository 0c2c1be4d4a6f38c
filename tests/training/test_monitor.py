"""Throughput, data wait and memory of a run."""

import sys

import torch

from joytag.training.monitor import Meter


def test_a_meter_measures_the_wait_for_data(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 5.0, 10.0])  # a step of 10 s, in which the batch came after 3
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter(torch.device("cpu"), lambda: 10, 1)
    batches = meter.timed(iter([1]))
    with meter.step(30):
        assert next(batches) == 1
        next(now)
    metrics = meter.metrics()
    assert (metrics["samples_per_s"], metrics["data_wait"]) == (3.0, 0.3)
    assert "memory_gb" not in metrics or metrics["memory_gb"] > 0
    assert "mfu" not in metrics


def test_memory_is_left_out_where_it_cannot_be_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    meter = Meter(torch.device("cpu"), lambda: 10, 1)
    with meter.step(30):
        pass
    assert meter.metrics().keys() == {"samples_per_s", "data_wait"}

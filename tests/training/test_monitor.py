"""Loss spikes are detected, normal losses are not; the meter measures the wait for data."""

import numpy as np
import pytest
import torch

from joytag.training.anomalies import SpikeDetector
from joytag.training.monitor import Meter


def test_a_thousandfold_loss_is_a_spike_and_noise_is_not():
    rng = np.random.default_rng(0)
    losses = 1 / np.sqrt(1 + np.arange(1000) / 50) * np.exp(rng.normal(0, 0.1, 1000))
    spikes = SpikeDetector()
    assert [spikes.score(loss) for loss in losses] == [None] * 1000
    score = spikes.score(1000 * losses[-1])
    assert score is not None
    assert score > 100
    assert spikes.score(losses[-1]) is None


def test_the_score_is_the_robust_z_score():
    spikes = SpikeDetector(limit=0)
    for loss in range(101):
        spikes.score(float(loss))
    assert spikes.score(150.0) == pytest.approx(0.6745 * (150 - 50) / 25)


def test_equal_and_falling_losses_are_no_spikes():
    spikes = SpikeDetector()
    assert all(spikes.score(loss) is None for loss in [1.0] * 100 + [1.001] * 100 + [0.1] * 100)


def test_a_meter_measures_the_wait_for_data(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 5.0, 10.0])  # a step of 10 s, in which the batch came after 3
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter(torch.device("cpu"), 10, 1)
    batches = meter.timed(iter([1]))
    with meter.step(30):
        assert next(batches) == 1
        next(now)
    metrics = meter.metrics()
    assert (metrics["samples_per_s"], metrics["data_wait"]) == (3.0, 0.3)
    assert metrics["memory_gb"] > 0
    assert "mfu" not in metrics

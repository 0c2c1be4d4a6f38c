"""Training monitor: throughput, data wait, share of the peak, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

# Peak FLOP/s of dense fp16 by the data sheets, by a part of the device's name.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the device's peak in half precision, FLOP/s, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


class Meter:
    """Measures samples per second, the share of time spent waiting for data, memory, and model FLOP utilization.

    `flop` returns the cost of a sample. It is not asked, and the utilization left out, where the device's peak is
    unknown. A CPU's memory is left out on Windows.
    """

    def __init__(self, device: torch.device, flop: Callable[[], int], processes: int) -> None:
        peak = peak_flops(device)
        self.device, self.utilization = device, flop() / (processes * peak) if peak else None
        self.elapsed, self.waited, self.samples = 0.0, 0.0, 0

    @contextmanager
    def step(self, samples: int) -> Iterator[None]:
        """Measure a step; `samples` counts those of all processes."""
        before = time.perf_counter()
        yield
        self.elapsed += time.perf_counter() - before
        self.samples += samples

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, and measure the wait for each."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def metrics(self) -> dict[str, float]:
        """Return what was measured since the last call: samples_per_s, data_wait, memory_gb, mfu."""
        rate = self.samples / self.elapsed
        metrics = {"samples_per_s": rate, "data_wait": self.waited / self.elapsed} | self._memory()
        if self.utilization is not None:
            metrics["mfu"] = rate * self.utilization
        self.elapsed, self.waited, self.samples = 0.0, 0.0, 0
        return metrics

    def _memory(self) -> dict[str, float]:
        if self.device.type == "cuda":
            return {"memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
        try:
            import resource
        except ModuleNotFoundError:  # on Windows
            return {}
        unit = 1e9 if sys.platform == "darwin" else 1e6
        return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}

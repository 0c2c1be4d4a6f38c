"""Whether a run is well: its speed, what it waits for, and losses out of the ordinary."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

# Dense fp16 operations a second that the makers promise, by what the device calls itself.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
         "V100": 125e12, "T4": 65e12, "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in half precision, operations a second, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


class Meter:
    """Samples a second, the share of time spent waiting for data, the share of the device's peak, and memory."""

    def __init__(self, device: torch.device, flop: int, processes: int) -> None:
        peak = peak_flops(device)
        self.device, self.utilization = device, flop / (processes * peak) if peak else None
        self.elapsed, self.waited, self.samples = 0.0, 0.0, 0

    @contextmanager
    def step(self, samples: int) -> Iterator[None]:
        """Measure a step, of so many samples of all processes."""
        before = time.perf_counter()
        yield
        self.elapsed += time.perf_counter() - before
        self.samples += samples

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, the time that each takes to arrive noted."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def figures(self) -> dict[str, float]:
        """What was measured in the steps since the last figures."""
        rate = self.samples / self.elapsed
        figures = {"samples_per_s": rate, "data_wait": self.waited / self.elapsed, "memory_gb": self._memory()}
        if self.utilization is not None:
            figures["mfu"] = rate * self.utilization
        self.elapsed, self.waited, self.samples = 0.0, 0.0, 0
        return figures

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)

"""Two pieces of work timed side by side, since a bare time means nothing on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Seconds of ours and of a reference, round by round."""

    ours: list[float]
    reference: list[float]

    def __str__(self) -> str:
        """How many times faster ours is: `2.19 (median; 2.10 to 2.46)`."""
        ratios = [theirs / mine for mine, theirs in zip(self.ours, self.reference, strict=True)]
        return f"{statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})"

    def rates(self, count: int) -> tuple[float, float]:
        """Items a second of ours and of the reference, each of which did `count` a round."""
        return count / statistics.median(self.ours), count / statistics.median(self.reference)


def side_by_side(ours: Callable[[], object], reference: Callable[[], object], rounds: int) -> Timings:
    """Time both, round by round, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        marks = [time.perf_counter()]
        for run in (reference, ours):
            run()
            marks.append(time.perf_counter())
        times.append((marks[2] - marks[1], marks[1] - marks[0]))
    return Timings([ours for ours, _ in times[1:]], [reference for _, reference in times[1:]])

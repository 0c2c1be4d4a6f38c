"""Side-by-side timing: on a noisy machine only the ratio of two times is meaningful."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timings:
    """Seconds of our implementation and of a reference in each round."""

    ours: list[float]
    reference: list[float]

    def __str__(self) -> str:
        """Format how many times faster ours is: `2.19 (median; 2.10 to 2.46)`."""
        return "{median:.2f} (median; {least:.2f} to {most:.2f})".format(**spread(self.ratios))

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours is, round by round."""
        return [theirs / mine for mine, theirs in zip(self.ours, self.reference, strict=True)]

    def rates(self, count: int) -> tuple[float, float]:
        """Return items per second of ours and of the reference, which each process `count` items a round."""
        return count / statistics.median(self.ours), count / statistics.median(self.reference)


@dataclass(frozen=True)
class Comparison:
    """Timings of ours and of a named reference at the same work: `count` units (`images`, `steps`) a round."""

    work: str
    reference: str
    count: int
    unit: str
    timings: Timings
    note: str = ""

    def rates(self) -> tuple[float, float]:
        """Return the median units per second of ours and of the reference."""
        return self.timings.rates(self.count)

    def summary(self) -> dict[str, Any]:
        """Return units per second of both and their ratio, each as `spread`, for JSON."""
        ours, theirs = (
            [self.count / second for second in seconds] for seconds in (self.timings.ours, self.timings.reference)
        )
        return {
            "work": self.work,
            "reference": self.reference,
            "unit": f"{self.unit}/s",
            "ours_rate": spread(ours),
            "reference_rate": spread(theirs),
            "ratio": spread(self.timings.ratios),
            "note": self.note,
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum (`least`) and the maximum (`most`) of some values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(comparisons: Sequence[Comparison]) -> str:
    """Format comparisons as a table of medians, each with the minimum and the maximum of all rounds."""
    rows: list[tuple[str, ...]] = [("work", "ours", "reference", "ratio", "the reference")]
    for comparison in comparisons:
        summary = comparison.summary()
        cells = [
            "{median:.4g} ({least:.4g} to {most:.4g})".format(**summary[name]) + unit
            for name, unit in (("ours_rate", f" {summary['unit']}"), ("reference_rate", ""))
        ]
        ratio = "{median:.2f} ({least:.2f} to {most:.2f})".format(**summary["ratio"])
        rows.append((comparison.work, *cells, ratio, comparison.reference))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def side_by_side(ours: Callable[[], object], reference: Callable[[], object], rounds: int) -> Timings:
    """Time both alternately, round by round, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        marks = [time.perf_counter()]
        for run in (reference, ours):
            run()
            marks.append(time.perf_counter())
        times.append((marks[2] - marks[1], marks[1] - marks[0]))
    return Timings([ours for ours, _ in times[1:]], [reference for _, reference in times[1:]])

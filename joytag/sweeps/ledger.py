"""What happened in a sweep: an append-only file of starts, ends and reasons."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joytag.core import jsonl

FILE = "ledger.jsonl"
ATTEMPTS = 3  # of a trial that fails, in one call


class Ledger:
    """The rows of `ledger.jsonl` in a sweep's directory; only the process that holds the directory's lock appends.

    Events: `called` (the sweep began or went on), `planned` (points that came together), `proposed` (a sampler chose a
    point), `started`, `interrupted`, `failed` (an attempt), `ended`, once a trial, with `outcome` done, diverged or
    stopped and the metric's `value`, and `lost` (someone has removed what an ended trial had written).
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.rows = jsonl.read(self.path)

    def append(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Record an event. Raises OSError."""
        row = {"time": round(time.time(), 3), "event": event} | ({"trial": trial} if trial else {}) | details
        jsonl.append(self.path, row)
        self.rows.append(row)

    def events(self, event: str, trial: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of an event, of one trial or of all."""
        yield from (row for row in self.rows if row["event"] == event and trial in (None, row.get("trial")))

    def end(self, trial: str) -> dict[str, Any] | None:
        """Return the row that ended a trial, None also when its directory was lost since."""
        rows = [row for row in self.rows if row.get("trial") == trial and row["event"] in ("ended", "lost")]
        return rows[-1] if rows and rows[-1]["event"] == "ended" else None

    def is_over(self, trial: str) -> bool:
        """Whether a trial has ended, or has failed too often."""
        return self.end(trial) is not None or len(self.failures(trial)) >= ATTEMPTS

    def value(self, trial: str) -> float:
        """Return the metric of a trial, 0 if it diverged or was stopped before it was measured, NaN if it has none."""
        end = self.end(trial)
        return math.nan if end is None else float(end["value"] or 0)

    def failures(self, trial: str) -> list[str]:
        """Return the reasons of a trial's failed attempts since the sweep was last called."""
        last = max((i for i, row in enumerate(self.rows) if row["event"] == "called"), default=0)
        return [row["reason"] for row in self.rows[last:] if row["event"] == "failed" and row["trial"] == trial]

    def state(self, trial: str) -> str:
        """Return done, diverged, stopped, failed, running (or cut off while it ran) or pending."""
        if end := self.end(trial):
            return str(end["outcome"])
        if len(self.failures(trial)) >= ATTEMPTS:
            return "failed"
        last = [row["event"] for row in self.rows if row.get("trial") == trial]
        return "running" if last and last[-1] == "started" else "pending"

"""What happened in a sweep: an append-only file of starts, ends and reasons."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from joytag.core import jsonl

FILE = "ledger.jsonl"
ATTEMPTS = 3  # of a trial that fails, in one call
ENDS = ("done", "diverged", "stopped")


class Ledger:
    """The rows of `ledger.jsonl` in a sweep's directory; only the process that holds the directory's lock appends.

    Events: `called` (the sweep began or went on), `proposed` (a sampler chose a point); and of a trial `started`,
    `interrupted`, `failed` (an attempt), one of ENDS, once a trial, and `lost` (someone has removed what a trial that
    was done had written). A trial's last row in `last` says how far it is, and `failures` has the reasons of its failed
    attempts since the sweep was last called.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self.rows = directory / FILE, list[dict[str, Any]]()
        self.last, self.failures = dict[str, dict[str, Any]](), defaultdict[str, list[str]](list)
        for row in jsonl.read(self.path):
            self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if row["event"] == "called":
            self.failures.clear()
        elif row["event"] == "failed":
            self.failures[row["trial"]].append(row["reason"])
        if "trial" in row:
            self.last[row["trial"]] = row

    def append(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Record an event. Raises OSError."""
        row = {"time": round(time.time(), 3), "event": event} | ({"trial": trial} if trial else {}) | details
        jsonl.append(self.path, row)
        self._add(row)

    def events(self, *events: str) -> list[dict[str, Any]]:
        """Return the rows of some events."""
        return [row for row in self.rows if row["event"] in events]

    def state(self, trial: str) -> str:
        """Return one of ENDS, failed, running (or cut off while it ran) or pending."""
        if len(self.failures[trial]) >= ATTEMPTS:
            return "failed"
        event = self.last.get(trial, {"event": ""})["event"]
        return event if event in ENDS else "running" if event == "started" else "pending"

    def is_over(self, trial: str) -> bool:
        """Whether a trial has ended, or has failed too often."""
        return self.state(trial) in (*ENDS, "failed")

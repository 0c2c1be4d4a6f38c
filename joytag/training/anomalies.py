"""Skipped steps, loss spikes and undecodable images: record them, and end the run when there are too many."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from joytag.core import jsonl
from joytag.core.errors import GradientsDiverged
from joytag.data import order
from joytag.training import schedule
from joytag.training.run import Run
from joytag.training.state import TrainState, save_state
from joytag.training.step import Step
from joytag.training.tracker import Tracker, append_line


def rows_of_step(samples: int, skipped: int, run: Run) -> list[int]:
    """Return the rows of the images of the global batch that begins after so many samples."""
    index, done = schedule.locate(samples, run.stages)
    keys = order.training_keys(
        run.config.seed, index, len(run.images), done + skipped, run.config.batch_size, run.config.batch_size, 0, 1
    )
    return [row for _, row in next(keys)]


@dataclass
class AnomalyMonitor:
    """Records a run's anomalies, and ends the run when there are too many."""

    run: Run
    tracker: Tracker
    quarantine: Quarantine
    spikes: SpikeDetector
    skips: int = 0  # in a row

    def check(self, step: Step, state: TrainState) -> None:
        """Check the step just taken. Raises GradientsDiverged after `max_skips`, ValueError above `data.max_bad`."""
        config = self.run.config
        if step.bad:
            share = self.quarantine.add(state.samples, step.bad) / len(self.run.images)
            if share > config.data.max_bad:
                raise ValueError(
                    f"data.max_bad: {share:.1%} of the images cannot be decoded, see {self.quarantine.path}; "
                    "build the dataset again, or raise the limit"
                )
        score = None if step.skipped else self.spikes.score(step.loss)
        if score is not None:
            self.record(state, step, "loss spike", score=score)
        # Overflows are normal while the scaler searches for a scale.
        harmless = not step.skipped or (state.scaler.is_enabled() and state.scaler.get_scale() >= 1)
        self.skips = 0 if harmless else self.skips + 1
        if step.skipped:
            self.record(state, step, "skipped step", scale=state.scaler.get_scale())
        if self.skips == config.max_skips:
            save_state(state, self.run, required=True)
            raise GradientsDiverged(
                f"{self.run.root}: {self.skips} steps in a row had no finite gradients; the last good state is saved, "
                f"the images are listed in {self.tracker.events}"
            )

    def record(self, state: TrainState, step: Step, kind: str, **metrics: float) -> None:
        """Record an event with the ids and the original files of the step's images."""
        if not self.tracker.enabled:
            return
        skipped_before = state.skipped - self.run.config.batch_size * step.skipped
        rows = rows_of_step(step.start, skipped_before, self.run)
        details: dict[str, Any] = {"loss": step.loss, "grad_norm": step.norm, **metrics}
        details["ids"] = self.run.images.ids[rows].tolist()
        if self.run.originals is not None:
            details["paths"] = self.run.originals.take(rows).to_pylist()
        self.tracker.event(state.samples, kind, details)


class SpikeDetector:
    """Detects losses far above the last ones, by the robust z-score (Iglewicz and Hoaglin 1993, section 3).

    The score is 0.6745 times the distance from the median of the last `window` losses, over their median absolute
    deviation. A loss is a spike when its score exceeds `limit`; the first `warmup` losses never are.
    """

    def __init__(self, limit: float = 12.0, window: int = 256, warmup: int = 32) -> None:
        self.limit, self.warmup = limit, warmup
        self.losses: deque[float] = deque(maxlen=window)

    def score(self, loss: float) -> float | None:
        """Return the score of a finite loss if it is a spike, else None."""
        score = None
        if len(self.losses) >= self.warmup:
            median = float(np.median(self.losses))
            spread = float(np.median(np.abs(np.array(self.losses) - median)))
            score = 0.6745 * (loss - median) / max(spread, 1e-3 * abs(median), 1e-12)
        self.losses.append(loss)
        return score if score is not None and score > self.limit else None


class Quarantine:
    """The images of a run that cannot be decoded; the tracker's process lists each once in quarantine.jsonl."""

    def __init__(self, run: Run, tracker: Tracker) -> None:
        self.run, self.enabled = run, tracker.enabled
        self.path = tracker.path.with_name("quarantine.jsonl")
        self.rows = {int(line["row"]) for line in jsonl.read(self.path)}

    def add(self, samples: int, bad: list[tuple[int, str]]) -> int:
        """Add rows that cannot be decoded, with the reasons; returns how many there are so far."""
        for row, reason in bad:
            if row not in self.rows and self.enabled:
                posts, originals = self.run.images, self.run.originals
                source = self.run.dataset.sources[posts.sources[row]]
                line = {"samples": samples, "row": row, "post_id": int(posts.ids[row]), "source": source}
                path = {} if originals is None else {"path": originals[row].as_py()}
                append_line(self.path, line | path | {"reason": reason})
            self.rows.add(row)
        return len(self.rows)

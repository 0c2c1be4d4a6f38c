"""Skipped steps, loss spikes and undecodable images: recorded, and the run ended when there are too many."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from joytag.core import jsonl
from joytag.core.errors import Exit, ExitCode
from joytag.data import loader
from joytag.data.dataset import Dataset, Posts
from joytag.training import schedule
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
    save_state,
)
from joytag.training.step import Step
from joytag.training.tracker import Tracker, _append


def ids_of_step(samples: int, skipped: int, run: Run) -> list[int]:
    """The ids of the images of the global batch that begins there."""
    index, done = schedule.locate(samples, run.stages)
    keys = loader.training_keys(
        run.config.seed, index, len(run.images), done + skipped, run.config.batch_size, run.config.batch_size, 0, 1
    )
    return run.images.ids[[row for _, row in next(keys)]].tolist()


@dataclass
class Watch:
    """Records what is out of the ordinary in a run, and ends the run when it is too much."""

    run: Run
    tracker: Tracker
    quarantine: Quarantine
    spikes: Spikes
    skips: int = 0  # in a row

    def heed(self, step: Step, state: TrainState) -> None:
        """Note a step that has just been done. Raises Exit after the last skip allowed, ValueError for bad images."""
        config = self.run.config
        if step.bad:
            share = self.quarantine.add(state.samples, step.bad) / len(self.run.images)
            if share > config.data.max_bad:
                raise ValueError(
                    f"data.max_bad: {share:.1%} of the images cannot be decoded, see {self.quarantine.path}; "
                    "build the dataset again, or raise it"
                )
        score = self.spikes.score(step.loss) if step.taken else None
        if score is not None:
            self.tell(state, step, "loss spike", score=score)
        # While the scaler is looking for a scale, overflows are its business.
        harmless = step.taken or (state.scaler.is_enabled() and state.scaler.get_scale() >= 1)
        self.skips = 0 if harmless else self.skips + 1
        if not step.taken:
            self.tell(state, step, "skipped step", scale=state.scaler.get_scale())
        if self.skips == config.max_skips:
            save_state(state, self.run, required=True)
            raise Exit(
                f"{self.run.root}: {self.skips} steps in a row had no finite gradients; the last good state is saved, "
                f"the images' ids are in {self.tracker.events}; --resume auto goes on after them, --resume PATH "
                "output=DIR branches off an older checkpoint, perhaps with a lower optimizer.lr",
                ExitCode.DIVERGED,
            )

    def tell(self, state: TrainState, step: Step, what: str, **figures: float) -> None:
        """Record an event with the ids of the step's images."""
        ids = ids_of_step(step.begun, state.skipped - self.run.config.batch_size * (not step.taken), self.run)
        facts = {"loss": step.loss, "grad_norm": step.norm, **figures, "ids": ids}
        self.tracker.event(state.samples, what, facts)


class Spikes:
    """Finds losses far above the last ones, by the robust z-score (Iglewicz and Hoaglin 1993, section 3).

    The score is 0.6745 times the distance from the median of the last `window` losses, over their median absolute
    deviation. It is told only after `least` losses, and never below the median.
    """

    def __init__(self, limit: float = 12.0, window: int = 256, least: int = 32) -> None:
        self.limit, self.least = limit, least
        self.losses: deque[float] = deque(maxlen=window)

    def score(self, loss: float) -> float | None:
        """The score of a finite loss if it is a spike, else None."""
        score = None
        if len(self.losses) >= self.least:
            median = float(np.median(self.losses))
            spread = float(np.median(np.abs(np.array(self.losses) - median)))
            score = 0.6745 * (loss - median) / max(spread, 1e-3 * abs(median), 1e-12)
        self.losses.append(loss)
        return score if score is not None and score > self.limit else None


class Quarantine:
    """Images of a run that cannot be decoded, each once in quarantine.jsonl; written where the tracker writes."""

    def __init__(self, dataset: Dataset, posts: Posts, tracker: Tracker) -> None:
        self.dataset, self.posts, self.enabled = dataset, posts, tracker.enabled
        self.path = tracker.path.with_name("quarantine.jsonl")
        self.rows = {int(line["row"]) for line in jsonl.read(self.path)}

    def add(self, samples: int, bad: list[tuple[int, str]]) -> int:
        """Note rows that cannot be decoded, and why; returns how many there are by now."""
        for row, reason in bad:
            if row not in self.rows and self.enabled:
                post_id, source = int(self.posts.ids[row]), self.dataset.sources[self.posts.sources[row]]
                facts = {"samples": samples, "row": row, "post_id": post_id, "source": source, "reason": reason}
                _append(self.path, facts)
            self.rows.add(row)
        return len(self.rows)

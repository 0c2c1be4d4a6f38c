"""Which points a sweep tries: all of a grid, random ones, or those that a sampler of Optuna proposes."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from joytag.core.rng import Purpose, generator
from joytag.sweeps.config import SAMPLERS, Axis, Label

Labels = Mapping[str, Label]


def grid(axes: Sequence[Axis], seed: int) -> list[Labels]:
    """Return all points, in a random order that is always the same: early stopping compares with what came before."""
    names = [axis.name for axis in axes]
    points = [dict(zip(names, row, strict=True)) for row in itertools.product(*(axis.labels for axis in axes))]
    return [points[i] for i in generator(Purpose.SWEEP, 0, seed).permutation(len(points))]


def draw(axes: Sequence[Axis], seed: int, number: int) -> Labels:
    """Return the random point of a number, which depends on nothing else."""
    rng = generator(Purpose.SWEEP, 1, seed, number)
    return {axis.name: axis.range.at(rng.random()) if axis.range else str(rng.choice(axis.labels)) for axis in axes}


class Proposer:
    """A sampler of Optuna, which remembers nothing: it is fed what the ledger holds, in the order of the ledger.

    Each proposal comes from a new sampler with a seed of its own, so what it proposes follows from the events before
    it alone. Points that run are known to it. Raises ModuleNotFoundError when optuna is not installed.
    """

    def __init__(self, search: str, axes: Sequence[Axis], seed: int) -> None:
        import optuna  # here, since it is an optional package

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sampler, self.seed, self.distributions = (
            getattr(optuna.samplers, SAMPLERS[search]),
            seed,
            distributions(axes),
        )
        self.study, self.trials = optuna.create_study(direction="maximize"), list[Any]()
        self.fed, self.values, self.runs = 0, dict[str, float](), list[list[str]]()

    def propose(self, recorded: Labels | None = None) -> Labels:
        """Return the next point; a `recorded` one was proposed before, and wins over this version's choice."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            seed = int(generator(Purpose.SWEEP, 2, self.seed, len(self.trials)).integers(2**31))
            self.study.sampler = self.sampler(seed=seed)
            trial = self.study.ask(self.distributions)
            if recorded is not None and trial.params != recorded:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                self.study.enqueue_trial(dict(recorded))
                trial = self.study.ask(self.distributions)
        self.trials.append(trial)
        return trial.params

    def feed(self, rows: Sequence[Mapping[str, Any]], runs: Callable[[Labels], list[str]]) -> None:
        """Take in the new rows of a ledger; `runs` returns the trials of a point, [] when it left the axes since.

        A point's value is the mean over its trials, once all have ended.
        """
        for row in rows[self.fed :]:
            asked = [number for number, names in enumerate(self.runs) if row.get("trial") in names]
            if row["event"] == "proposed" and (names := runs(row["labels"])):
                if len(self.runs) == len(self.trials):  # else it was proposed just now
                    self.propose(row["labels"])
                asked = [len(self.runs)]
                self.runs.append(names)
            elif row["event"] == "ended":
                self.values[row["trial"]] = float(row["value"] or 0)
            for number in asked:
                if row["event"] in ("proposed", "ended") and self.values.keys() >= set(self.runs[number]):
                    self.study.tell(
                        self.trials[number], statistics.mean(self.values[name] for name in self.runs[number])
                    )
        self.fed = len(rows)


def distributions(axes: Sequence[Axis]) -> dict[str, Any]:
    """Return the axes as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        axis.name: FloatDistribution(*axis.range.log, log=True)
        if axis.range
        else CategoricalDistribution(list(axis.choices))
        for axis in axes
    }

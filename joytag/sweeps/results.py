"""A sweep's results, read from its run directories, of a half-finished sweep too: what the report starts from."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from joytag.core import jsonl
from joytag.evaluation import predictions
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.comparison import Resampled
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.thresholds import random_half
from joytag.sweeps import statistics
from joytag.sweeps.config import Sweep, Trial
from joytag.sweeps.early_stopping import Curve
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.statistics import Finding
from joytag.training import dry_run
from joytag.training.tracker import LOG


@dataclass(frozen=True)
class PointResult:
    """A point with its trials; `confirmed` and `flattery` only if it ran on fresh seeds; `curve` is of its seeds' mean.

    `flop` is the cost of one training run.
    """

    trials: Sequence[Trial]
    states: Sequence[str]  # of the trials
    finding: Finding
    confirmed: Finding | None
    flattery: Interval | None
    curve: Curve
    flop: float

    @property
    def name(self) -> str:
        """The point in words."""
        return self.trials[0].describe().rpartition(" ")[0]

    @property
    def complete(self) -> bool:
        """Whether the search has finished the point on all seeds."""
        searched = zip(self.trials, self.states, strict=True)
        return all(state == "done" for trial, state in searched if trial.phase == "search")


@dataclass(frozen=True)
class Results:
    """A sweep's points, the base first, then the best first. `floor` is the sd of the base over seeds.

    `values`: the metric of each finished trial by its id, on the images that choose or that confirm. `comparisons`: how
    many points the intervals correct for.
    """

    sweep: Sweep
    points: Sequence[PointResult]
    floor: Interval
    values: dict[str, float]
    comparisons: int
    over: int  # trials

    @property
    def trials(self) -> list[Trial]:
        """All trials that are known so far."""
        return [trial for point in self.points for trial in point.trials]

    @property
    def winner(self) -> PointResult | None:
        """The best of the points that beat the base by more than noise, on fresh seeds if any were run on them."""
        confirmed = [point for point in self.points if point.confirmed]
        judged = [(p.confirmed or p.finding, p) for p in (confirmed or self.points)]
        better = [(finding.mean, point) for finding, point in judged if finding.is_better]
        return max(better, key=lambda pair: pair[0])[1] if better else None


def read(sweep: Sweep, trials: Sequence[Trial], ledger: Ledger) -> Results:
    """Read the results of trials, the base's first. Raises PredictionsError when a finished one's are damaged."""
    known: dict[str, list[Trial]] = {}
    for trial in trials:
        known.setdefault(trial.point, []).append(trial)
    measured = {phase: _measure_all(sweep, trials, ledger, phase) for phase in ("search", "confirm")}
    comparisons = max(len(known) - 1, sweep.settings.trials or 0)
    findings = statistics.compare(measured["search"], comparisons)
    fresh = {point: seeds for point, seeds in measured["confirm"].items() if seeds}
    confirmed = statistics.compare(fresh, len(measured["confirm"]) - 1)
    points, n_tags = [], dry_run.vocabulary_size(sweep.base)
    for point, runs in known.items():
        again = confirmed.get(point) if runs[0].changes else None
        curves = [curve(trial, sweep.settings.metric) for trial in runs if trial.phase == "search"]
        flattery = statistics.flattery(findings[point], again) if again else None
        states = [ledger.state(trial.id) for trial in runs]
        flop = dry_run.cost(runs[0].config, n_tags, None)[0]
        points.append(PointResult(runs, states, findings[point], again, flattery, _mean(curves), flop))
    floor = statistics.noise_floor(np.array([seed.value for seed in next(iter(measured["search"].values())).values()]))
    values = {
        trial.id: seeds[trial.seed].value
        for trial in trials
        if trial.seed in (seeds := measured[trial.phase].get(trial.point, {}))
    }
    points[1:] = sorted(points[1:], key=_order)
    return Results(sweep, points, floor, values, comparisons, sum(ledger.is_over(trial.id) for trial in trials))


def best(sweep: Sweep, trials: Sequence[Trial], ledger: Ledger, n: int) -> list[str]:
    """Return the `n` points, done on all seeds, with the highest means on the images that choose, the best first."""
    measured = _measure_all(sweep, trials, ledger, "search")
    means = {
        point: np.mean([resampled.value for resampled in measured[point].values()])
        for point in list(measured)[1:]
        if len(measured[point]) == len(sweep.seeds("search"))
    }
    return sorted(means, key=lambda point: -means[point])[:n]


def curve(trial: Trial, metric: str) -> Curve:
    """Return a trial's validation curve, so far as it was logged."""
    rows = jsonl.read(trial.directory / LOG)
    return [(row["samples"], row[key]) for row in rows if (key := f"val_{metric}") in row]


def _measure_all(sweep: Sweep, trials: Iterable[Trial], ledger: Ledger, phase: str) -> dict[str, dict[int, Resampled]]:
    """Return the metric of the finished trials of a phase by point and seed, where it is defined."""
    measured: dict[str, dict[int, Resampled]] = {}
    for trial in trials:
        if trial.phase == phase:
            seeds = measured.setdefault(trial.point, {})
            if ledger.state(trial.id) == "done":
                half = None if sweep.settings.confirm is None else phase == "search"
                directory = trial.results / predictions.DIRECTORY
                resampled = _measure(directory, sweep.settings.metric, trial.config.threshold, half)
                if not math.isnan(resampled.value):
                    seeds[trial.seed] = resampled
    return measured


@functools.cache
def _measure(directory: Path, metric: str, threshold: float, half: bool | None) -> Resampled:
    """Measure predictions on all images (None), the half that chooses (True) or the half that confirms (False)."""
    opened = Predictions.open(directory)
    rows = None if half is None else random_half(len(opened)) == half
    return statistics.measure(opened.scores, opened.labels, metric, threshold, rows)


def _mean(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at the samples of the first, as far as all of them go."""
    begun = [curve for curve in curves if curve]
    end = min((curve[-1][0] for curve in begun), default=0)
    samples = [at for at, _ in begun[0] if at <= end] if begun else []
    means = np.mean([np.interp(samples, *np.transpose(curve)) for curve in begun], axis=0) if begun else []
    return list(zip(samples, means, strict=True))


def _order(point: PointResult) -> tuple[bool, float]:
    """Sort finished points by their mean, the best first, and before the others."""
    return not point.complete, -np.nan_to_num(point.finding.mean)

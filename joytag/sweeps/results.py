"""A sweep's results, read from its run directories, of a half-finished sweep too: what the report starts from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import resampled
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.predictions import DIRECTORY, PROVENANCE, Predictions, read_provenance
from joytag.evaluation.thresholds import random_half
from joytag.sweeps import statistics
from joytag.sweeps.config import Point, Sweep, Trial
from joytag.sweeps.early_stopping import Curve
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.statistics import Finding
from joytag.training import dry_run, tracker

RESAMPLES = 200  # of the images: enough for a covariance


@dataclass(frozen=True)
class PointResult:
    """A point; `confirmed` and `optimism` only if it ran on fresh seeds; `curve` is the mean over the other seeds.

    `comparable`: whether it was measured on the images of the base, as far as it was measured. `values`: the metric of
    its finished trials by seed, on the images that choose or that confirm. `states`: of its trials. `flop` is the cost
    of one training run.
    """

    point: Point
    comparable: bool
    values: dict[int, float]
    states: Sequence[str]
    search: Finding
    confirmed: Finding | None
    optimism: Interval | None
    curve: Curve
    flop: float

    @property
    def complete(self) -> bool:
        """Whether the point is measured on all seeds of the search, on the images of the base."""
        return self.comparable and {trial.seed for trial in self.point.search} <= self.values.keys()

    @property
    def judged(self) -> Finding:
        """What was found last: on fresh seeds if it ran there."""
        return self.confirmed or self.search


@dataclass(frozen=True)
class Results:
    """A sweep's points, the base first, then the best first. `noise_floor` is the sd of the base over seeds.

    `comparisons`: how many points the intervals correct for.
    """

    points: Sequence[PointResult]
    noise_floor: Interval
    comparisons: int

    @property
    def winner(self) -> PointResult | None:
        """The best of the points that beat the base by more than noise, on fresh seeds if any were run on them."""
        judged = [point for point in self.points if point.confirmed] or self.points
        return max((p for p in judged if p.judged.is_better), key=lambda p: p.judged.mean, default=None)


def check_datasets(points: Sequence[Point], ledger: Ledger) -> None:
    """Raise DatasetError when a trial is to run on a dataset that is not there.

    Raise ValueError when a trial was measured on other images than its dataset has now that it was built again.
    """
    validation_hash = functools.cache(_validation_hash)
    for point in points:
        data = Path(point.config.data.directory)
        for trial in point.trials:
            if ledger.state(trial.id) != "done":
                validation_hash(data)
            elif data.is_dir() and _images_hash(trial) not in (None, validation_hash(data)):
                raise ValueError(
                    f"{trial.directory}: its validation images, tags or labels are not those that {data} has now, "
                    "so new trials can't be compared with it; set output to another directory, or remove the sweep's"
                )


def _validation_hash(directory: Path) -> str:
    dataset = Dataset.open(directory)
    return dataset.content_hash(dataset.posts("validation"))


def _images_hash(trial: Trial) -> str | None:
    """Return the hash of the images, tags and labels that a trial was measured on; None if it has no predictions."""
    predictions = trial.results / DIRECTORY
    return read_provenance(predictions)["split_sha256"] if (predictions / PROVENANCE).exists() else None


def _comparable(points: Sequence[Point]) -> list[Point]:
    """Return the points that were measured on the images of the first, the base, or have not been measured yet."""
    measured = {point.id: {_images_hash(trial) for trial in point.trials} - {None} for point in points}
    return [point for point in points if measured[point.id] <= (measured[points[0].id] or measured[point.id])]


def read(sweep: Sweep, points: Sequence[Point], ledger: Ledger) -> Results:
    """Read the results of points, the base first. Raises PredictionsError when a finished trial's are damaged."""
    chosen = {point.id: _by_seed(sweep, point.search, ledger) for point in points}
    paired = [point.id for point in _comparable(points)]
    fresh = {point.id: _by_seed(sweep, point.fresh, ledger) for point in points if point.fresh and point.id in paired}
    comparisons = max(len(points) - 1, sweep.settings.trials or 0)
    found = {point: statistics.summarize(seeds) for point, seeds in chosen.items()}
    found |= statistics.compare({point: chosen[point] for point in paired}, comparisons)
    confirmed = statistics.compare(fresh, len(fresh) - 1)
    n_tags, rows = dry_run.vocabulary_size(sweep.base), list[PointResult]()
    for point in points:
        search = found[point.id]
        again = confirmed[point.id] if point.changes and fresh.get(point.id) else None
        measured = chosen[point.id] | fresh.get(point.id, {})
        values = {seed: of_seed.value for seed, of_seed in measured.items()}
        states = [ledger.state(trial.id) for trial in point.trials]
        optimism = statistics.optimism(search, again) if again else None
        flop, _ = dry_run.cost(point.config, n_tags, None)
        mean_curve = _mean_curve(sweep, point.search)
        rows.append(PointResult(point, point.id in paired, values, states, search, again, optimism, mean_curve, flop))
    floor = statistics.noise_floor([seed.value for seed in chosen[points[0].id].values()])
    rows[1:] = sorted(rows[1:], key=lambda row: (not row.complete, -np.nan_to_num(row.search.mean)))
    return Results(rows, floor, comparisons)


def best(sweep: Sweep, points: Sequence[Point], ledger: Ledger) -> list[Point]:
    """Return the points to confirm, or the best one: those with the highest means, done on all seeds, but the base."""
    others = _comparable(points)[1:]
    done = [point for point in others if all(ledger.state(trial.id) == "done" for trial in point.search)]
    done.sort(key=lambda point: -sum(value(sweep, trial, ledger) for trial in point.search))
    return done[: sweep.settings.confirm.best if sweep.settings.confirm else 1]


def value(sweep: Sweep, trial: Trial, ledger: Ledger) -> float:
    """Return the score of a trial that is over, at its last evaluation if it lost, 0 if it diverged; else NaN."""
    row = ledger.last.get(trial.id, {})
    if row.get("event") == "done" and row["of"] != sweep.measure:  # the file has changed since
        return score(sweep, trial)
    return float(row.get("value") or 0) if ledger.is_over(trial.id) else np.nan


def score(sweep: Sweep, trial: Trial) -> float:
    """Return the metric of a trial that is done, 0 where it is undefined."""
    return float(np.nan_to_num(measure(sweep, trial).value))


def measure(sweep: Sweep, trial: Trial) -> resampled.Resampled:
    """Measure a trial that is done: on all images or, if the sweep confirms, on the half that chooses or confirms."""
    half = None if sweep.settings.confirm is None else trial.seed in sweep.seeds
    return _measure(trial.results / DIRECTORY, sweep.settings.metric, trial.threshold, half)


@functools.cache
def _measure(directory: Path, metric: str, threshold: float, half: bool | None) -> resampled.Resampled:
    opened = Predictions.open(directory)
    rows = slice(None) if half is None else random_half(len(opened), families=opened.families) == half
    return measure_rows(opened, rows, metric, threshold)


def measure_rows(
    opened: Predictions, rows: slice | NDArray[np.bool_], metric: str = "map", threshold: float = DEFAULT_THRESHOLD
) -> resampled.Resampled:
    """Measure a metric on some of the images of predictions, and in RESAMPLES of them."""
    scores, labels, families = opened.scores[rows], opened.labels[rows].tocsc(), opened.families[rows]
    return resampled.measure(scores, labels, metric, threshold, RESAMPLES, families)


def curve(sweep: Sweep, trial: Trial) -> Curve:
    """Return the metric by samples that a trial has logged."""
    return tracker.curve(trial.directory / tracker.LOG, f"val_{sweep.settings.metric}")


def _by_seed(sweep: Sweep, trials: Sequence[Trial], ledger: Ledger) -> dict[int, resampled.Resampled]:
    """Return the metric of the trials that are done by seed, where it is defined."""
    measured = {trial.seed: measure(sweep, trial) for trial in trials if ledger.state(trial.id) == "done"}
    return {seed: of_seed for seed, of_seed in measured.items() if not np.isnan(of_seed.value)}


def _mean_curve(sweep: Sweep, trials: Sequence[Trial]) -> Curve:
    """Return the mean of the curves that have begun, at the samples that all of them have."""
    begun = [dict(of_trial) for trial in trials if (of_trial := curve(sweep, trial))]
    samples = [at for at in begun[0] if all(at in values for values in begun)] if begun else []
    return [(at, float(np.mean([values[at] for values in begun]))) for at in samples]

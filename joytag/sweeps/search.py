"""Which points a sweep tries: all of a grid, random ones, or those that a sampler of Optuna proposes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from joytag.core.rng import Purpose, generator
from joytag.sweeps import results
from joytag.sweeps.config import SAMPLERS, Axes, Labels, Point, Sweep
from joytag.sweeps.ledger import ENDS, Ledger

Rows = Sequence[Mapping[str, Any]]
Values = Callable[[Labels], Mapping[str, float]]


def plan(sweep: Sweep, ledger: Ledger) -> list[Point]:
    """Return all points that are known so far, the base first; once the search is over, the best with fresh trials."""
    search, count, seed = sweep.settings.search, sweep.settings.trials or 0, sweep.base.seed
    if search == "grid":
        labels = grid(sweep.axes, seed)
    elif search == "random":
        labels = [draw(sweep.axes, seed, number) for number in range(20 * count)]  # a small space has fewer points
    else:
        labels = proposed(sweep, ledger)
    points: dict[str, Point] = {}
    for point in map(sweep.point, [{}, *labels]):
        if point.id not in points or not point.changes:  # the base has labels where it lies on the axes
            points[point.id] = point
        if count and len(points) > count:
            break
    is_open = search in SAMPLERS and len(labels) < count
    if sweep.settings.confirm and not is_open and all(ledger.is_over(t.id) for p in points.values() for t in p.search):
        base, *_ = known = list(points.values())
        points |= {p.id: sweep.point(p.labels, is_confirmed=True) for p in (base, *results.best(sweep, known, ledger))}
    return list(points.values())


def proposed(sweep: Sweep, ledger: Ledger) -> list[Labels]:
    """Return what a sampler has proposed, as far as it lies within the axes, which may have changed since."""
    labels = [row["labels"] for row in ledger.events("proposed") if sweep.has(row["labels"])]
    return labels[: sweep.settings.trials]


def grid(axes: Axes, seed: int) -> list[Labels]:
    """Return all points, in a random order that is always the same: early stopping compares with what came before."""
    points = [dict(zip(axes, row, strict=True)) for row in itertools.product(*(axis.choices for axis in axes.values()))]
    return [points[i] for i in generator(Purpose.SWEEP, 0, seed).permutation(len(points))]


def draw(axes: Axes, seed: int, number: int) -> Labels:
    """Return the random point of a number, which depends on nothing else."""
    rng = generator(Purpose.SWEEP, 1, seed, number)
    return {name: axis.draw(rng) for name, axis in axes.items()}


def propose(search: str, axes: Axes, seed: int, rows: Rows, values: Values) -> Labels:
    """Return the point that a sampler of Optuna proposes after the rows of a ledger.

    The sampler keeps no state. Each proposal comes from a new one with a seed of its own, which gets the points that
    the ledger lists as proposed and ended, in their order, and those that still run. `values` returns the values of a
    point's trials, NaN for one that has not ended, and {} when the point has left the axes since. A point's value is
    the mean over its trials. Raises ModuleNotFoundError without optuna.
    """
    import optuna  # here, since it is an optional package

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, known = optuna.create_study(direction="maximize"), distributions(axes)
    asked, ended = list[tuple[Any, Mapping[str, float]]](), set[str]()

    def ask() -> Any:
        seed_of_this = int(generator(Purpose.SWEEP, 2, seed, len(asked)).integers(2**31))
        study.sampler = getattr(optuna.samplers, f"{SAMPLERS[search]}Sampler")(seed=seed_of_this)
        return study.ask(known)

    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        for row in rows:
            if row["event"] == "proposed" and (of_point := values(row["labels"])):
                if (trial := ask()).params != row["labels"]:  # another version chose it
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    study.enqueue_trial(dict(row["labels"]))
                    trial = ask()
                asked.append((trial, of_point))
            elif row["event"] in ENDS:
                ended.add(row["trial"])
            for number, (trial, of_point) in enumerate(asked):
                if of_point and ended >= of_point.keys() and not np.isnan(sum(of_point.values())):
                    study.tell(trial, float(np.mean([*of_point.values()])))
                    asked[number] = trial, {}
        return ask().params


def distributions(axes: Axes) -> dict[str, Any]:
    """Return the axes as Optuna's distributions. Raises ModuleNotFoundError without optuna."""
    from optuna import distributions as of

    numbers, names = of.FloatDistribution, of.CategoricalDistribution
    return {n: numbers(*axis.range.log, log=True) if axis.range else names([*axis.choices]) for n, axis in axes.items()}

"""Early stopping: successive halving (Jamieson and Talwalkar 2016) that is recomputed from the runs' logs.

Points come in cohorts: those that were planned together, such as a whole grid. At each rung, a number of samples, a
cohort is compared once all of its points have got there, with itself and with earlier cohorts. So neither the time at
which a run arrives nor points that are added later change a decision: it needs no memory and survives every restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curve = Sequence[tuple[float, float]]  # (samples, metric), by samples


@dataclass(frozen=True)
class Decisions:
    """`stopped`: points that lost, with the rung at which they did. `waiting`: others, with the rung to wait at.

    A point in neither may run to its end. A run that goes on beyond the rung wastes its samples if its point loses, but
    changes no decision.
    """

    stopped: dict[str, float]
    waiting: dict[str, float]


def decide(cohorts: Iterable[Mapping[str, Mapping[int, Curve]]], rungs: Iterable[float], keep: float) -> Decisions:
    """Decide which points go on, from the curves of each point's seeds by cohort; the very first point is the base.

    All points have the same seeds; one that was not started has an empty curve. A point's score at a rung is the mean
    over its seeds, so equal seeds are compared at equal samples. Of n points that reached the rung, those among the
    best `keep` n, rounded up, go on, and the base in any case. NaN, for a run that diverged or failed, always loses.
    """
    cohorts, decisions = list(cohorts), Decisions({}, {})
    base = next(iter(cohorts[0]), "") if cohorts else ""
    for rung in sorted(rungs):
        reached: list[float] = []
        for number, cohort in enumerate(cohorts):
            scores = {point: _score(seeds.values(), rung) for point, seeds in cohort.items()}
            running = {point: score for point, score in scores.items() if point not in decisions.stopped}
            if None in running.values():
                later = (point for cohort in cohorts[number:] for point in cohort)
                decisions.waiting.update({p: rung for p in later if p not in decisions.stopped and p != base})
                del cohorts[number:]
                break
            reached += [np.nan if score is None else score for score in running.values()]
            ranked = sorted((score for score in reached if not np.isnan(score)), reverse=True)
            best = ranked[: int(np.ceil(keep * len(reached)))] or [np.nan]
            losers = (point for point, score in running.items() if score is None or not score >= best[-1])
            decisions.stopped.update({p: rung for p in losers if p != base})
    return decisions


def _score(curves: Iterable[Curve], rung: float) -> float | None:
    """Return the mean over curves at a rung, between two evaluations linearly; None until all have reached it."""
    values = [float(np.interp(rung, *np.transpose(c))) if c and c[-1][0] >= rung else None for c in curves]
    reached = [value for value in values if value is not None]
    return float(np.mean(reached)) if len(reached) == len(values) or np.isnan(reached).any() else None

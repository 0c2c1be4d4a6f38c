"""Which axes of a sweep matter, beside the seed."""

from __future__ import annotations

import warnings

import numpy as np

from joytag.evaluation.bootstrap import Interval
from joytag.sweeps import search
from joytag.sweeps.results import Results

RESAMPLES = 20  # of the points
TREES = 32
SEED = "seed"  # its name beside those of the axes


def importance(found: Results) -> dict[str, Interval]:
    """Return each axis' share of the metric's variance, and the seed's, with its 95 % interval over resampled points.

    By Optuna's fANOVA (Hutter et al. 2014): a random forest predicts the metric of a trial from the axes and the seed.
    Empty with fewer than four finished points, or without Optuna.
    """
    points = [point for point in found.points[1:] if point.complete]
    try:
        import optuna
    except ModuleNotFoundError:
        return {}
    if len(points) < 4:
        return {}
    seeds = [str(seed) for seed in found.sweep.seeds("search")]
    known = {**search.distributions(found.sweep.axes), SEED: optuna.distributions.CategoricalDistribution(seeds)}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng, shares = np.random.default_rng(0), []
    for draw in range(1 + RESAMPLES):
        study = optuna.create_study(direction="maximize")
        for number in rng.integers(len(points), size=len(points)) if draw else range(len(points)):
            for trial in points[number].trials:
                if trial.phase == "search":
                    params = {**trial.labels, SEED: str(trial.seed)}
                    value = found.values[trial.id]
                    study.add_trial(optuna.create_trial(params=params, distributions=known, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
    drawn = {name: [share[name] for share in shares] for name in known}
    return {name: Interval(of[0], *map(float, np.percentile(of[1:], (2.5, 97.5)))) for name, of in drawn.items()}

"""A sweep's results as a study of Optuna, an optional package: which axes matter, and a journal for its dashboard."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from joytag.evaluation.bootstrap import Interval
from joytag.sweeps.config import Sweep
from joytag.sweeps.results import Results
from joytag.sweeps.search import distributions

RESAMPLES = 20  # of the points, for the importance of axes
TREES = 32


def importance(found: Results, sweep: Sweep) -> dict[str, Interval]:
    """Return each axis' share of the metric's variance, and the seed's, with its 95 % interval over resampled points.

    By Optuna's fANOVA (Hutter et al. 2014): a random forest predicts the metric of a trial from the axes and the seed.
    Empty with fewer than four finished points, or without Optuna.
    """
    rows = [row for row in found.points if row.complete and row.point.labels]
    if len(rows) < 4 or find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seeds = optuna.distributions.CategoricalDistribution([str(seed) for seed in sweep.seeds])
    known, rng, shares = {**distributions(sweep.axes), "seed": seeds}, np.random.default_rng(0), []
    for draw in range(1 + RESAMPLES):
        study = optuna.create_study(direction="maximize")
        for row in [rows[i] for i in rng.integers(len(rows), size=len(rows))] if draw else rows:
            for seed in sweep.seeds:
                params = {**row.point.labels, "seed": str(seed)}
                study.add_trial(optuna.create_trial(params=params, distributions=known, value=row.values[seed]))
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=draw)
        with warnings.catch_warnings(action="ignore"):
            shares.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
    drawn = {name: [share[name] for share in shares] for name in known}
    return {name: Interval(of[0], *map(float, np.percentile(of[1:], (2.5, 97.5)))) for name, of in drawn.items()}


def write_journal(found: Results, sweep: Sweep) -> Path:
    """Write each point as a trial of a study, in a new journal; the value of one that is done is the mean over seeds.

    Raises ModuleNotFoundError without optuna.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path, known = sweep.output / "optuna.journal", distributions(sweep.axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name=sweep.name, direction="maximize")
    for row in found.points:
        state = "COMPLETE" if row.complete else "WAITING" if "pending" in row.states else "FAIL"
        trial = optuna.create_trial(
            state=optuna.trial.TrialState[state],
            value=row.search.mean if row.complete else None,
            params=dict(row.point.labels),
            distributions={name: known[name] for name in row.point.labels},
            user_attrs=dict(zip([run.id for run in row.point.trials], row.states, strict=True)),
        )
        study.add_trial(trial)
    return path

"""A sweep in the files of other programs: a journal for optuna-dashboard, a sweep for wandb's agents."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from joytag.core.files import write_text
from joytag.sweeps.config import Sweep, Trial
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import distributions


def optuna(sweep: Sweep, trials: Sequence[Trial], ledger: Ledger) -> Path:
    """Write each point as a trial of a study, in a new journal; its value is the mean over the seeds that have ended.

    Raises ModuleNotFoundError when optuna is not installed.
    """
    from optuna import create_study, create_trial  # here, since it is an optional package
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    path, known = sweep.output / "optuna.journal", distributions(sweep.axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = create_study(storage=storage, study_name=sweep.name, direction="maximize")
    search = [trial for trial in trials if trial.phase == "search"]
    for point in dict.fromkeys(trial.point for trial in search):
        runs = [trial for trial in search if trial.point == point]
        values = [ledger.value(run.id) for run in runs if ledger.end(run.id)]
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if values else TrialState.WAITING,
                value=statistics.mean(values) if values else None,
                params=dict(runs[0].labels),
                distributions={name: known[name] for name in runs[0].labels},
                user_attrs={run.id: f"{run.describe()}: {ledger.state(run.id)}" for run in runs},
            )
        )
    return path


def wandb(sweep: Sweep, trials: Sequence[Trial]) -> Path:
    """Write a sweep file whose agents run one trial of this sweep each, so that both can work on the same sweep."""
    values = {
        "name": sweep.name,
        "method": "grid",
        "metric": {"name": f"val_{sweep.settings.metric}", "goal": "maximize"},
        "parameters": {"trial": {"values": [trial.id for trial in trials]}},
        "command": ["joytag", "sweep", "--config", str(sweep.path), "${args}"],
    }
    path = sweep.output / "wandb-sweep.yaml"
    write_text(path, yaml.safe_dump(values, sort_keys=False))
    return path

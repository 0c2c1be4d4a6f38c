"""Optuna's samplers, fed from a ledger."""

import math
import statistics
from importlib.util import find_spec
from typing import Any

import pytest
from requirements import require

from joytag.core.rng import Purpose, generator
from joytag.sweeps.config import SAMPLERS, Axis, Labels, Range
from joytag.sweeps.search import distributions, draw, grid, propose


def numbers(name: str) -> Axis:
    numbers = Range(log=(0.001, 1.0), points=3)
    return Axis({number: {name: number} for number in (0.001, 0.03162, 1.0)}, numbers)


AXES = {
    "lr": numbers("lr"),
    "decay": numbers("decay"),
    "stem": Axis({"cnn": {}, "patch": {"model.cnn_stem": None}}),
}


@pytest.fixture(autouse=True)
def optuna():
    require(find_spec("optuna") is not None, "optuna: pip install 'joytag[sweep]'")


def quality(labels: Labels) -> float:
    """Best, 0, at a rate of 0.03 and a decay of 0.3 with the CNN stem."""
    far = [math.log10(float(labels["lr"]) / 0.03), math.log10(float(labels["decay"]) / 0.3)]
    return -sum(value**2 for value in far) - 0.5 * (labels["stem"] != "cnn")


class Simulated:
    """A ledger of a sweep whose points are measured at once, two or more at a time."""

    def __init__(self, search: str, seed: int) -> None:
        self.search, self.seed, self.rows, self.ended = search, seed, list[dict](), set[str]()

    def values(self, labels: Labels) -> dict[str, float]:
        names = [f"{sorted(labels.items())} {seed}" for seed in (0, 1)]
        return {name: quality(labels) if name in self.ended else math.nan for name in names}

    def propose(self) -> Labels:
        return propose(self.search, AXES, self.seed, self.rows, self.values)

    def begin(self) -> Labels:
        labels = self.propose()
        self.rows.append({"event": "proposed", "labels": labels})
        return labels

    def end(self, labels: Labels) -> None:
        for run in self.values(labels):
            self.ended.add(run)
            self.rows.append({"event": "done", "trial": run})


@pytest.fixture
def told(monkeypatch) -> list:
    """The studies that samplers were asked for."""
    import optuna

    studies, create = list[optuna.Study](), optuna.create_study

    def create_study(**options) -> optuna.Study:
        studies.append(create(**options))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", create_study)
    return studies


@pytest.mark.parametrize("search", SAMPLERS)
def test_a_rebuilt_sampler_proposes_what_it_would_have_proposed(search):
    """As one study of Optuna that is asked and told without a break."""
    import optuna

    if search == "cmaes":
        require(find_spec("cmaes") is not None, "cmaes: pip install 'joytag[sweep]'")
    study, running, simulated = optuna.create_study(direction="maximize"), list[Any](), Simulated(search, 0)
    for number in range(15):
        seed = int(generator(Purpose.SWEEP, 2, 0, number).integers(2**31))
        study.sampler = getattr(optuna.samplers, f"{SAMPLERS[search]}Sampler")(seed=seed)
        trial = study.ask(distributions(AXES))
        if number in (0, 1, 6, 11, 12, 14):
            assert simulated.propose() == trial.params, number
        simulated.rows.append({"event": "proposed", "labels": trial.params})
        running.append(trial)
        if len(running) == 3:
            ended = running.pop(number % 3)
            study.tell(ended, quality(ended.params))
            simulated.end(ended.params)


def test_what_the_ledger_holds_wins_over_what_another_version_proposes(told):
    recorded: Labels = {"lr": 0.5, "decay": 0.5, "stem": "patch"}
    simulated = Simulated("tpe", 0)
    simulated.rows.append({"event": "proposed", "labels": recorded})
    simulated.propose()
    assert [trial.params for trial in told[-1].trials if trial.state.name != "FAIL"][:-1] == [recorded]
    simulated.end(recorded)
    simulated.propose()
    assert told[-1].best_value == quality(recorded)


def test_running_points_are_known_and_points_outside_the_axes_are_forgotten(told):
    simulated = Simulated("tpe", 0)
    first = simulated.begin()
    simulated.propose()
    assert [trial.state.name for trial in told[-1].trials[:-1]] == ["RUNNING"]
    simulated.end(first)
    simulated.propose()
    assert [trial.state.name for trial in told[-1].trials[:-1]] == ["COMPLETE"]
    propose("tpe", AXES, 0, simulated.rows, lambda labels: {})
    assert len(told[-1].trials) == 1


@pytest.mark.statistics
def test_tpe_needs_fewer_trials_than_random():
    def needed(points) -> int:
        return next((n for n, labels in enumerate(points, 1) if quality(labels) > -0.15), 60)

    def proposed(seed: int):
        simulated = Simulated("tpe", seed)
        for _ in range(59):
            labels = simulated.begin()
            yield labels
            simulated.end(labels)

    tpe = [needed(proposed(seed)) for seed in range(20)]
    chance = [needed(draw(AXES, seed, number) for number in range(59)) for seed in range(20)]
    assert statistics.median(tpe) < statistics.median(chance), (tpe, chance)


def test_a_grid_has_every_point_once_in_an_order_that_stays():
    points = grid(AXES, 0)
    assert len({str(sorted(labels.items())) for labels in points}) == len(points) == 18
    assert points == grid(AXES, 0) != grid(AXES, 1)

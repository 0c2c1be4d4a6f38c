"""Optuna's samplers, fed from a ledger."""

import math
import statistics
from importlib.util import find_spec

import pytest
from requirements import require

from joytag.sweeps.config import SAMPLERS, Axis, Range
from joytag.sweeps.search import Labels, Proposer, draw, grid

AXES = [
    Axis("lr", Range(log=(0.001, 1.0), points=3), {}),
    Axis("decay", Range(log=(0.001, 1.0), points=3), {}),
    Axis("stem", None, {"cnn": {}, "patch": {"model.cnn_stem": None}}),
]


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
        self.proposer, self.rows, self.points = Proposer(search, AXES, seed), list[dict](), dict[str, Labels]()

    def runs(self, labels: Labels) -> list[str]:
        return [f"{sorted(labels.items())} {seed}" for seed in (0, 1)]

    def propose(self) -> Labels:
        labels = self.proposer.propose()
        self.rows.append({"event": "proposed", "labels": labels})
        self.proposer.feed(self.rows, self.runs)
        return labels

    def end(self, labels: Labels) -> None:
        for run in self.runs(labels):
            self.rows.append({"event": "ended", "trial": run, "value": quality(labels)})
        self.proposer.feed(self.rows, self.runs)


@pytest.mark.parametrize("search", SAMPLERS)
def test_a_rebuilt_sampler_proposes_what_it_would_have_proposed(search):
    if search == "cmaes":
        require(find_spec("cmaes") is not None, "cmaes: pip install 'joytag[sweep]'")
    live, running, expected, rows = Simulated(search, 0), list[Labels](), list[Labels](), list[list[dict]]()
    for number in range(15):
        rows.append(list(live.rows))
        expected.append(live.propose())
        running.append(expected[-1])
        if len(running) == 3:
            live.end(running.pop(number % 3))
    for number in (1, 6, 11, 12, 14):
        rebuilt = Proposer(search, AXES, 0)
        rebuilt.feed(rows[number], live.runs)
        assert rebuilt.propose() == expected[number], number


def test_what_the_ledger_holds_wins_over_what_another_version_proposes():
    recorded: Labels = {"lr": 0.5, "decay": 0.5, "stem": "patch"}
    proposer = Proposer("tpe", AXES, 0)
    simulated = Simulated("tpe", 0)
    proposer.feed([{"event": "proposed", "labels": recorded}], simulated.runs)
    assert [trial.params for trial in proposer.trials] == [recorded]
    ended = [{"event": "ended", "trial": run, "value": 1.0} for run in simulated.runs(recorded)]
    proposer.feed([{"event": "proposed", "labels": recorded}, *ended], simulated.runs)
    assert proposer.study.best_value == 1.0


def test_running_points_are_known_and_points_outside_the_axes_are_forgotten():
    simulated = Simulated("tpe", 0)
    first = simulated.propose()
    assert [trial.state.name for trial in simulated.proposer.study.trials] == ["RUNNING"]
    simulated.end(first)
    assert [trial.state.name for trial in simulated.proposer.study.trials] == ["COMPLETE"]
    other = Proposer("tpe", AXES, 0)
    other.feed(simulated.rows, lambda labels: [])
    assert other.study.trials == []


def test_tpe_needs_fewer_trials_than_random():
    def needed(points) -> int:
        return next((n for n, labels in enumerate(points, 1) if quality(labels) > -0.15), 60)

    def proposed(seed: int):
        simulated = Simulated("tpe", seed)
        for _ in range(59):
            labels = simulated.propose()
            yield labels
            simulated.end(labels)

    tpe = [needed(proposed(seed)) for seed in range(20)]
    chance = [needed(draw(AXES, seed, number) for number in range(59)) for seed in range(20)]
    assert statistics.median(tpe) < statistics.median(chance), (tpe, chance)


def test_a_grid_has_every_point_once_in_an_order_that_stays():
    points = grid(AXES, 0)
    assert len({str(sorted(labels.items())) for labels in points}) == len(points) == 18
    assert points == grid(AXES, 0) != grid(AXES, 1)

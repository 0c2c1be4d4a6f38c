"""Results of sweeps, read from run directories."""

import numpy as np
import pytest
from sweeps import finish, finish_all, open_sweep

from joytag.core import jsonl
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.thresholds import random_half
from joytag.sweeps import results, statistics
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.supervisor import plan

CONFIRM = {"best": 2, "seeds": 2}


@pytest.fixture
def sweep(tmp_path, run_values):
    return open_sweep(tmp_path / "sweep", run_values, confirm=CONFIRM)


def test_one_half_of_the_images_chooses_and_the_other_confirms(sweep):
    trials, ledger = finish_all(sweep)
    found = results.read(sweep, trials, ledger)
    assert len(found.points) == 6  # 3 rates and 2 stems, of which the base is one
    assert found.over == len(trials) == 6 * 3 + 3 * 2
    for trial in trials:
        predicted = Predictions.open(trial.results / "predictions")
        half = random_half(240) if trial.phase == "search" else ~random_half(240)
        expected = statistics.measure(predicted.scores, predicted.labels, "macro_f1", trial.config.threshold, half)
        assert found.values[trial.id] == expected.value
    again = [point for point in found.points if point.confirmed]
    assert len(again) == 2
    for point in again:
        assert point.confirmed
        assert point.flattery
        assert point.flattery.value == point.finding.difference.value - point.confirmed.difference.value
    assert found.winner
    assert found.winner.trials[0].labels["optimizer.lr"] == 0.1


def test_points_are_ordered_and_the_base_is_first(sweep):
    trials, ledger = finish_all(sweep)
    found = results.read(sweep, trials, ledger)
    assert found.points[0].name == "base"
    means = [point.finding.mean for point in found.points[1:]]
    assert means == sorted(means, reverse=True)
    assert results.best(sweep, trials, ledger, 2) == [point.trials[0].point for point in found.points[1:3]]
    base = [found.values[trial.id] for trial in found.points[0].trials if trial.phase == "search"]
    assert found.floor.value == pytest.approx(np.std(base, ddof=1))


def test_equal_settings_give_no_winner(sweep):
    trials, ledger = finish_all(sweep, gain=0)
    assert results.read(sweep, trials, ledger).winner is None


def test_a_half_finished_sweep_claims_nothing_of_unfinished_points(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    trials = plan(sweep, ledger)
    assert results.read(sweep, trials, ledger).winner is None
    for trial in trials[:7]:  # the base, a point, and one seed of another
        finish(trial, ledger)
    ledger.append("ended", trials[7].id, outcome="diverged", value=None)
    found = results.read(sweep, trials, ledger)
    assert found.over == 8
    assert [point.complete for point in found.points] == [True, True, False, False, False, False]
    partial = next(point for point in found.points if trials[6] in point.trials)
    assert partial.states == ["done", "diverged", "pending"]
    assert np.isfinite(partial.finding.mean)
    assert np.isnan(partial.finding.difference.low)
    assert found.comparisons == 5
    assert len(results.best(sweep, trials, ledger, 9)) == 1


def test_curves_are_means_over_seeds_as_far_as_all_go(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    first, second, third, *_ = trials = plan(sweep, ledger)
    for trial, values in ((first, {48: 0.1, 96: 0.2, 144: 0.3}), (second, {96: 0.4, 120: 0.5})):
        trial.directory.mkdir(parents=True)
        for samples, value in values.items():
            jsonl.append(trial.directory / "log.jsonl", {"samples": samples, "val_macro_f1": value})
            jsonl.append(trial.directory / "log.jsonl", {"samples": samples, "loss": 1})
    assert results.curve(third, "macro_f1") == []
    assert results.curve(second, "macro_f1") == [(96, 0.4), (120, 0.5)]
    assert results.read(sweep, trials, ledger).points[0].curve == [(48, 0.25), (96, pytest.approx(0.3))]


def test_costs_differ_with_the_model(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    found = results.read(sweep, plan(sweep, ledger), ledger)
    costs = {point.trials[0].config.model.cnn_stem: point.flop for point in found.points}
    assert len(costs) == len({*costs.values()}) == 2

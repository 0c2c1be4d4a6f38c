"""Results of sweeps, read from run directories."""

import numpy as np
import pytest
from sweeps import finish, finish_all, open_sweep, trials

from joytag.core import jsonl
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.resampled import measure
from joytag.evaluation.thresholds import random_half
from joytag.sweeps import results
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import plan
from joytag.training.tracker import curve

CONFIRM = {"best": 2, "seeds": 2}


@pytest.fixture
def sweep(tmp_path, run_values):
    return open_sweep(tmp_path / "sweep", run_values, confirm=CONFIRM)


def test_one_half_of_the_images_chooses_and_the_other_confirms(sweep):
    points, ledger = finish_all(sweep)
    found = results.read(sweep, points, ledger)
    assert len(found.points) == 6  # 3 rates and 2 stems, of which the base is one
    assert sum(len(row.states) for row in found.points) == len(trials(points)) == 6 * 3 + 3 * 2
    for row in found.points:
        for trial in row.point.trials:
            predicted = Predictions.open(trial.results / "predictions")
            half = random_half(240) if trial in row.point.search else ~random_half(240)
            chosen = predicted.scores[half], predicted.labels[half].tocsc()
            expected = measure(*chosen, "macro_f1", trial.threshold, results.RESAMPLES)
            assert row.values[trial.seed] == expected.value
    again = [point for point in found.points if point.confirmed]
    assert len(again) == 2
    for point in again:
        assert point.confirmed
        assert point.optimism
        assert point.optimism.value == point.search.difference.value - point.confirmed.difference.value
    assert found.winner
    assert found.winner.point.labels["optimizer.lr"] == 0.1


def test_points_are_ordered_and_the_base_is_first(sweep):
    points, ledger = finish_all(sweep)
    found = results.read(sweep, points, ledger)
    assert found.points[0].point.name == "base"
    assert found.points[0].point.labels == {"optimizer.lr": 0.01, "stem": "convolutions"}, "it lies on the axes"
    means = [row.search.mean for row in found.points[1:]]
    assert means == sorted(means, reverse=True)
    assert results.best(sweep, points, ledger) == [row.point for row in found.points[1:3]]
    base = [found.points[0].values[seed] for seed in sweep.seeds]
    assert found.noise_floor.value == pytest.approx(np.std(base, ddof=1))


def test_equal_settings_give_no_winner(sweep):
    assert results.read(sweep, *finish_all(sweep, gain=0)).winner is None


def test_points_measured_on_other_images_than_the_base_are_not_compared_with_it(tmp_path, run_values):
    sweep = open_sweep(tmp_path / "sweep", run_values)
    points, ledger = finish_all(sweep)
    best = results.best(sweep, points, ledger)[0]
    before = {row.point.id: row for row in results.read(sweep, points, ledger).points}
    for trial in best.trials:
        path = trial.results / "predictions/provenance.json"
        path.write_text(path.read_text().replace("of these images", "of others"))
    found = results.read(sweep, points, ledger)
    row = next(row for row in found.points if row.point == best)
    assert (row.values, row.search.mean) == (before[best.id].values, before[best.id].search.mean)
    assert np.isnan([row.search.difference.value, row.search.difference.low, row.search.p]).all()
    assert not row.complete
    assert found.winner != row
    assert best not in results.best(sweep, points, ledger)
    assert [row.point for row in found.points if not row.comparable] == [best]


def test_a_half_finished_sweep_claims_nothing_of_unfinished_points(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    points = plan(sweep, ledger)
    assert results.read(sweep, points, ledger).winner is None
    for trial in trials(points)[:7]:  # the base, a point, and one seed of another
        finish(sweep, trial, ledger)
    ledger.append("diverged", trials(points)[7].id)
    found = results.read(sweep, points, ledger)
    assert [row.complete for row in found.points] == [True, True, False, False, False, False]
    partial = next(row for row in found.points if row.point == points[2])
    assert partial.states == ["done", "diverged", "pending"]
    assert np.isfinite(partial.search.mean)
    assert np.isnan(partial.search.difference.low)
    assert found.comparisons == 5
    assert len(results.best(sweep, points, ledger)) == 1


def test_without_a_base_on_fresh_seeds_nothing_is_confirmed(sweep):
    """Its trials failed: then no other point takes its place."""
    points, ledger = finish_all(sweep)
    for trial in points[0].fresh:
        ledger.append("diverged", trial.id)
    found = results.read(sweep, points, ledger)
    again = [row.confirmed for row in found.points if row.confirmed]
    assert len(again) == 2
    assert np.isnan([finding.difference.value for finding in again]).all()
    assert found.winner is None


def test_values_follow_the_metric_and_the_half_of_the_file(tmp_path, run_values):
    """A metric that is changed, or `confirm` that is added, after trials have ended."""
    sweep = open_sweep(tmp_path / "sweep", run_values)
    points, ledger = finish_all(sweep)
    for change in ({"metric": "map"}, {"confirm": CONFIRM}):
        changed = open_sweep(tmp_path / "sweep", run_values, **change)
        for trial in points[1].search:
            assert results.value(changed, trial, ledger) == results.measure(changed, trial).value
            assert results.value(changed, trial, ledger) != ledger.last[trial.id]["value"]


def test_curves_are_means_over_seeds_where_all_have_values(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    points = plan(sweep, ledger)
    first, second, third = points[0].search
    for trial, values in ((first, {48: 0.1, 96: 0.2, 144: 0.3}), (second, {96: 0.4, 120: 0.5})):
        trial.directory.mkdir(parents=True)
        for samples, value in values.items():
            jsonl.append(trial.directory / "log.jsonl", {"samples": samples, "val_macro_f1": value})
            jsonl.append(trial.directory / "log.jsonl", {"samples": samples, "loss": 1})
    assert curve(third.directory / "log.jsonl", "val_macro_f1") == []
    assert curve(second.directory / "log.jsonl", "val_macro_f1") == [(96, 0.4), (120, 0.5)]
    (point,) = results.read(sweep, points, ledger).points[0].curve
    assert point == pytest.approx((96, 0.3))


def test_costs_differ_with_the_model(sweep):
    sweep.output.mkdir()
    ledger = Ledger(sweep.output)
    found = results.read(sweep, plan(sweep, ledger), ledger)
    costs = {row.point.config.model.cnn_stem: row.flop for row in found.points}
    assert len(costs) == len({*costs.values()}) == 2

"""Statistics of sweeps: against SciPy and scikit-learn, and on simulated sweeps whose truth is known."""

import numpy as np
import pytest
from scipy import stats
from sweeps import SD, Points, Rates, find, image_effects, simulate, winner

from joytag.evaluation.resampled import Resampled
from joytag.sweeps.dunnett import adjusted_p
from joytag.sweeps.statistics import compare, noise_floor, optimism


def points_of(values: np.ndarray, noise: float = 0) -> Points:
    """Return points from values [points, seeds], which other images would change by `noise` alike for all seeds."""
    common = np.random.default_rng(0).normal(0, noise, (len(values), 100))
    return {
        f"p{p}": {seed: Resampled(value, value + common[p]) for seed, value in enumerate(row)}
        for p, row in enumerate(values)
    }


def test_with_one_point_it_is_the_paired_t_test():
    values = np.array([[0.50, 0.52, 0.47, 0.51], [0.53, 0.54, 0.52, 0.52]])
    finding = compare(points_of(values), 1)["p1"]
    expected = stats.ttest_rel(values[1], values[0])
    bounds = expected.confidence_interval()
    assert finding.p == pytest.approx(expected.pvalue, abs=1e-5)
    assert (finding.difference.low, finding.difference.high) == pytest.approx((bounds.low, bounds.high), abs=1e-5)
    assert finding.mean == pytest.approx(values[1].mean())
    assert finding.deviation == pytest.approx(values[1].std(ddof=1))


def test_the_pool_is_the_residual_of_a_two_way_analysis_of_variance():
    values = np.random.default_rng(1).normal(0.5, 0.02, (5, 3))
    fitted = values.mean(1, keepdims=True) + values.mean(0) - values.mean()
    variance = ((values - fitted) ** 2).sum() / (4 * 2)
    findings = compare(points_of(values), 4)
    for point, row in zip(findings, values, strict=True):
        own = np.var(row - values[0], ddof=1)
        if point != "p0":
            error = np.sqrt(max(2 * variance, own) / 3)
            assert findings[point].p == pytest.approx(adjusted_p((row - values[0]).mean() / error, 4, 8))


def test_what_images_add_widens_intervals_and_more_points_too():
    values = np.random.default_rng(2).normal(0.5, 0.02, (4, 3))

    def widths(noise: float, comparisons: int) -> np.ndarray:
        found = compare(points_of(values, noise), comparisons)
        return np.array([f.difference.high - f.difference.low for p, f in found.items() if p != "p0"])

    assert (widths(0.03, 3) > 1.2 * widths(0, 3)).all()
    assert (widths(0, 30) > 1.2 * widths(0, 3)).all()
    assert widths(0, 0) == pytest.approx(widths(0, 3))  # never fewer than the points at hand


def test_points_with_missing_seeds_and_a_single_seed_claim_nothing():
    points = points_of(np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [0.9, 0.91, 0.92]]))
    del points["p2"][0]
    findings = compare(points, 2)
    assert findings["p1"].is_better
    assert not findings["p2"].is_better
    assert findings["p2"].difference.value == pytest.approx(np.mean([0.71, 0.62]))  # of the seeds it has
    single = compare(points_of(np.array([[0.1], [0.9]])), 1)["p1"]
    assert single.mean == 0.9
    assert np.isnan([single.deviation, single.difference.low, single.p]).all()
    assert compare({}, 0) == {}
    assert np.isnan(compare({"p0": {}, "p1": {}}, 1)["p1"].mean)
    same = compare(points_of(np.full((2, 3), 0.5)), 1)["p1"]
    assert (same.difference.low, same.difference.high, same.is_better) == (0, 0, False)


def test_the_noise_floor_covers_the_true_deviation():
    rng = np.random.default_rng(3)
    floors = [noise_floor(rng.normal(0.5, SD, 3)) for _ in range(2000)]
    assert np.mean([floor.low <= SD <= floor.high for floor in floors]) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(noise_floor(np.array([0.5])).value)


@pytest.mark.statistics
def test_equal_points_rarely_win():
    """100 simulated sweeps of 8 equal points with 3 seeds; `test_what_sweeps_find` simulates more."""
    claims = sum(winner(find([0.0] * 8, 3, sweep)) is not None for sweep in range(100))
    assert claims <= 0.05 * 100


@pytest.mark.statistics
@pytest.mark.parametrize("points", [5, 15])
@pytest.mark.parametrize("seeds", [3, 5])
def test_what_sweeps_find(points, seeds):
    """300 simulated sweeps for each row of the table in docs/sweeps.md."""
    rows = {}
    for gain in range(4):
        winners = [winner(find([float(gain), *[0.0] * (points - 1)], seeds, sweep)) for sweep in range(300)]
        rows[gain] = Rates(sum(w == "p1" if gain else w is not None for w in winners), 300)
        assert sum(w not in (None, "p1") for w in winners) <= 0.05 * 300
    print(f"\n{points} points, {seeds} seeds: " + "; ".join(f"{gain} sd {rate}" for gain, rate in rows.items()))
    assert rows[0].happened <= 0.05 * 300
    assert rows[1].happened <= rows[2].happened <= rows[3].happened
    uneven = sum(winner(find([0.0] * points, seeds, sweep, spread=2.5)) is not None for sweep in range(300))
    print(f"half of the points vary 2.5 times as much: {Rates(uneven, 300)}")


@pytest.mark.statistics
def test_intervals_hold_for_all_points_at_once():
    gains = np.array([0.0, 1, 2, -1, 0, 3]) * SD
    held = 0
    for sweep in range(100):
        found = find([*(gains / SD)], 3, sweep)
        intervals = [found[f"p{p + 1}"].difference for p in range(len(gains))]
        held += all(i.low <= gain <= i.high for i, gain in zip(intervals, gains, strict=True))
    assert held >= 0.93 * 100


def test_large_gains_are_found():
    assert sum(winner(find([0, 0, 5, 0], 3, sweep)) == "p3" for sweep in range(40)) >= 38


@pytest.mark.statistics
def test_optimism_agrees_with_the_truth():
    """The best of 8 equal points looks better than it is: by how much is what fresh seeds and images show."""
    reported, true, held, sweeps = [], [], 0, 100
    for sweep in range(sweeps):
        rng = np.random.default_rng(sweep)
        chosen = compare(simulate([0.0] * 8, range(3), rng, image_effects(9, rng)), 8)
        best = max((point for point in chosen if point != "p0"), key=lambda point: chosen[point].mean)
        confirmed = compare(simulate([0.0], range(5), rng, image_effects(2, rng)), 1)["p1"]
        interval = optimism(chosen[best], confirmed)
        reported.append(interval.value)
        true.append(chosen[best].difference.value)  # since its true difference is 0
        held += interval.low <= true[-1] <= interval.high
    error = np.std(np.subtract(reported, true)) / np.sqrt(sweeps)
    assert np.mean(reported) == pytest.approx(np.mean(true), abs=3 * error)
    assert np.mean(true) > 0.8 * SD  # it is not small
    assert held >= 0.92 * sweeps

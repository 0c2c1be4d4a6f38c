"""Early stopping, as a pure function of curves, on simulated sweeps and on ones cut short at any moment."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import curves

from joytag.sweeps.early_stopping import decide

RUNGS = (0.25, 0.5)


def flat(values: dict[str, float]) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """Return curves of one seed that are constant."""
    return {point: {0: [(0.1, value), (1.0, value)]} for point, value in values.items()}


def test_the_best_half_and_the_base_go_on_at_each_rung():
    values = {"base": 0.1, "a": 0.5, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.25}
    decisions = decide([flat(values)], RUNGS, keep=0.5)
    assert decisions.stopped == {"b": 0.25, "e": 0.25, "c": 0.5}  # 3 of 6, then 2 of the 4 with the base
    assert decisions.waiting == {}


def test_equal_seeds_are_compared_at_equal_samples():
    """By the mean over seeds, between two evaluations linearly, whatever comes after the rung."""
    even = [(0.0, 0.0), (1.0, 1.0)]
    late = [(0.0, 0.0), (0.4, 0.0), (0.41, 5.0), (1.0, 5.0)]
    points = {"base": {0: even, 1: even}, "mixed": {0: even, 1: late}, "ahead": {0: [(0.2, 0.3), (0.3, 0.32)], 1: even}}
    assert decide([points], [0.3], keep=0.5).stopped == {"mixed": 0.3}


def test_all_of_a_cohort_waits_until_the_last_has_reached_the_rung():
    points = {"base": {0: [(1.0, 0.1)]}, "a": {0: [(1.0, 0.5)], 1: []}, "b": {0: [(0.3, 0.0)]}}
    decisions = decide([points], RUNGS, keep=0.5)
    assert decisions.stopped == {}
    assert decisions.waiting == {"a": 0.25, "b": 0.25}
    assert decide([], RUNGS, keep=0.5).waiting == {}


def test_a_diverged_seed_loses_before_the_others_have_arrived():
    points = flat({"base": 0.1, "good": 0.2}) | {"diverged": {0: [(0.2, 0.9), (1.0, math.nan)], 1: []}}
    assert decide([points], RUNGS, keep=0.99).stopped == {"diverged": 0.25}
    assert decide([{"base": points["diverged"]}], RUNGS, keep=0.5).stopped == {}


cohorts_of_curves = st.integers(0, 1000).map(
    lambda seed: [
        {f"{cohort}{name}": by_seed for name, by_seed in curves(5, 2, np.random.default_rng([seed, cohort]))[0].items()}
        for cohort in range(3)
    ]
)


@given(cohorts_of_curves, st.sampled_from([0.3, 0.5, 0.8]), st.data())
def test_no_decision_changes_later(cohorts, keep, data):
    """Neither by more of the curves, nor by added cohorts: decisions at any moment are among the final ones."""
    final = decide(cohorts, RUNGS, keep)
    assert final.waiting == {}
    so_far = [
        {
            point: {seed: curve[: data.draw(st.integers(0, len(curve)))] for seed, curve in by_seed.items()}
            for point, by_seed in cohort.items()
        }
        for cohort in cohorts[: data.draw(st.integers(1, 3))]
    ]
    early = decide(so_far, RUNGS, keep)
    assert early.stopped.items() <= final.stopped.items()
    assert early == decide(so_far, RUNGS, keep)
    for point, rung in early.waiting.items():
        assert final.stopped.get(point, math.inf) >= rung  # it waits where it may still lose, and not beyond


def test_half_of_the_samples_are_saved_and_the_best_point_is_kept():
    """200 simulated sweeps of 24 points and 3 seeds."""
    saved, kept = [], 0
    for sweep in range(200):
        points, best = curves(24, 3, np.random.default_rng(sweep))
        stopped = decide([points], RUNGS, keep=0.4).stopped
        saved.append(1 - np.mean([stopped.get(point, 1.0) for point in points]))
        kept += best not in stopped
    assert np.mean(saved) >= 0.5
    assert kept >= 0.9 * 200
    print(f"saved {np.mean(saved):.1%}, kept {kept / 200:.1%}")


@pytest.mark.parametrize("keep", [0.01, 0.99])
def test_at_least_one_point_goes_on(keep):
    decisions = decide([flat({"base": 0.1, "a": 0.5, "b": 0.2})], RUNGS, keep)
    assert "a" not in decisions.stopped

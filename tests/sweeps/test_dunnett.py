"""Dunnett's test against SciPy's, Student's, and a published table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from joytag.sweeps.dunnett import adjusted_p, critical_value


@given(st.floats(0, 20), st.sampled_from([1, 2, 3, 8, 40]))
def test_one_comparison_is_students_test(t, freedom):
    assert adjusted_p(t, 1, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=2e-5)


def test_several_comparisons_are_dunnetts_test():
    rng = np.random.default_rng(0)
    groups = [rng.normal(0.6 * i, 1, size=4) for i in range(6)]
    expected = stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0)).pvalue
    variance = np.mean([group.var(ddof=1) for group in groups])
    t = [(group.mean() - groups[0].mean()) / np.sqrt(2 * variance / 4) for group in groups[1:]]
    assert [adjusted_p(value, 5, 18) for value in t] == pytest.approx(expected, abs=2e-3)
    assert critical_value(5, 20) == pytest.approx(2.73, abs=0.01)  # of Dunnett's table


@pytest.mark.parametrize("comparisons", [1, 2, 50])
@pytest.mark.parametrize("freedom", [1, 2, 7.5, np.inf])
def test_the_critical_value_is_where_p_is_five_percent(comparisons, freedom):
    assert adjusted_p(critical_value(comparisons, freedom), comparisons, freedom) == pytest.approx(0.05, abs=1e-4)

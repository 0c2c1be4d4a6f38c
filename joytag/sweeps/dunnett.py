"""Dunnett's test (1955): which of several means differ from that of one control."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

LEVEL = 0.05  # probability that any mean is called different though none is


def adjusted_p(t: float, comparisons: int, freedom: float) -> float:
    """Return the probability that one of several t statistics is as far from 0 as `t` (Dunnett 1955, two-sided).

    All compare equally many values with the same control, so each two correlate by 1/2.
    """
    (control, weights), (quantiles, parts) = _nodes()
    scale = np.sqrt(special.chdtri(freedom, (1 - quantiles) / 2) / freedom) if np.isfinite(freedom) else np.ones(100)
    reach = abs(t) * np.sqrt(2) * scale[:, None]
    within = special.ndtr(control + reach) - special.ndtr(control - reach)
    return float(np.clip(1 - parts / 2 @ within**comparisons @ weights / weights.sum(), 0, 1))


@cache
def _nodes() -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
    """Return points and weights of Gaussian quadrature for the normal distribution, and for quantiles."""
    return np.polynomial.hermite_e.hermegauss(40), np.polynomial.legendre.leggauss(100)


def critical_value(comparisons: int, freedom: float) -> float:
    """Return the t statistic whose `adjusted_p` is LEVEL: between that of one comparison and Bonferroni's."""
    low, high = (float(stats.t.isf(LEVEL / 2 / n, freedom)) for n in (1, comparisons))
    t = optimize.brentq(lambda t: adjusted_p(t, comparisons, freedom) - LEVEL, 0.99 * low, 1.01 * high, xtol=1e-5)
    return float(t)

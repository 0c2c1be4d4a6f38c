"""An exact randomization test of whether the F1 of two taggers on a tag differs by more than chance."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array
from scipy.stats import binom


def randomization_test(labels: csc_array, first: csc_array, second: csc_array) -> NDArray[np.float64]:
    """Return the two-sided p-value of each tag's difference in F1: float64 [N], NaN without positives.

    Takes labels and the decisions of two taggers, bool [P, N]. The test is approximate randomization (Yeh 2000, More
    accurate tests for the statistical significance of result differences), computed exactly: under the null hypothesis
    the two decisions on each image are swapped with probability 1/2, so the number of differing true positives, and of
    differing false positives, that belong to the first tagger is binomial.
    """
    both = first.multiply(second).tocsc()
    true = [labels.multiply(decisions).sum(axis=0) for decisions in (first, second, both)]
    false = [np.diff(d.indptr) - tp for d, tp in zip((first, second, both), true, strict=True)]
    positives = np.diff(labels.indptr)
    return np.array([_p_value(*counts) for counts in zip(positives, *true, *false, strict=True)])


def _p_value(n: int, tp1: int, tp2: int, tp: int, fp1: int, fp2: int, fp: int) -> float:
    """Return the p-value of one tag with `n` positives; `tp` and `fp` are common to both taggers."""
    if n == 0:
        return np.nan
    differing_tp, differing_fp = tp1 + tp2 - 2 * tp, fp1 + fp2 - 2 * fp
    x, probability_x = _binomial(int(differing_tp))
    y, probability_y = _binomial(int(differing_fp))
    x, probability_x = x[:, None], probability_x[:, None]

    def difference(x: Any, y: Any) -> Any:
        """Return the difference in F1 when x true and y false positives that differ belong to the first tagger."""
        first = 2 * (tp + x) / (tp + x + fp + y + n)
        return first - 2 * (tp + differing_tp - x) / (tp + differing_tp - x + fp + differing_fp - y + n)

    as_large = np.abs(difference(x, y)) >= abs(difference(tp1 - tp, fp1 - fp)) - 1e-12
    return float(min(1.0, np.sum(probability_x * probability_y, where=as_large)))


@lru_cache(maxsize=4096)
def _binomial(n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return counts of heads of `n` fair coins and their probabilities, without tails of less than 1e-22 in total."""
    reach = int(5 * np.sqrt(n)) + 1
    heads = np.arange(max(0, n // 2 - reach), min(n, n // 2 + reach) + 1)
    return heads, binom.pmf(heads, n, 0.5)

"""Whether two taggers differ on a tag by more than chance: an exact randomization test of F1."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csc_array
from scipy.stats import binom


def randomization_test(labels: csc_array, first: csc_array, second: csc_array) -> np.ndarray:
    """How probable a difference in F1 as large is by chance alone: float64 [N], NaN without positives.

    Takes labels and decisions, bool [P, N]. Two-sided approximate randomization (Yeh 2000, More accurate tests for the
    statistical significance of result differences), made exact: each image's two decisions change places with
    probability 1/2, so the hits and the false positives in which the two differ fall to either binomially.
    """
    both = first.multiply(second)
    hits = [labels.multiply(decisions).sum(axis=0) for decisions in (first, second, both)]
    alarms = [np.diff(of.indptr) - hit for of, hit in zip((first, second, both.tocsc()), hits, strict=True)]
    positives = np.diff(labels.indptr)
    return np.array([_p_value(*numbers) for numbers in zip(positives, *hits, *alarms, strict=True)])


def _p_value(n: int, tp1: int, tp2: int, tp: int, fp1: int, fp2: int, fp: int) -> float:
    """`swap_test` of one tag with `n` positives; `tp` and `fp` are common to both."""
    if n == 0:
        return np.nan
    hits, alarms = tp1 + tp2 - 2 * tp, fp1 + fp2 - 2 * fp  # in which they differ
    x, of_x = _binomial(int(hits))
    y, of_y = _binomial(int(alarms))
    x, of_x = x[:, None], of_x[:, None]

    def difference(x: Any, y: Any) -> Any:
        of_first = 2 * (tp + x) / (tp + x + fp + y + n)
        return of_first - 2 * (tp + hits - x) / (tp + hits - x + fp + alarms - y + n)

    as_large = np.abs(difference(x, y)) >= abs(difference(tp1 - tp, fp1 - fp)) - 1e-12
    return float(min(1.0, np.sum(of_x * of_y, where=as_large)))


@lru_cache(maxsize=4096)
def _binomial(n: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of `n` coins may show heads, and how probably; less than 1e-22 in all is left out."""
    reach = int(5 * np.sqrt(n)) + 1
    heads = np.arange(max(0, n // 2 - reach), min(n, n // 2 + reach) + 1)
    return heads, binom.pmf(heads, n, 0.5)

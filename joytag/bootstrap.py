"""Intervals over pictures: what the figures would be, had other pictures of the same kind been drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array

from joytag.metrics import Counts, averages

RESAMPLES = 1000
Measure = Callable[[Counts], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95 % percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than noise: its whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(value: float, replicates: np.ndarray) -> Interval:
    """A figure with the 2.5th and 97.5th percentile of its replicates [R], NaN among them left out."""
    raise NotImplementedError


def weights(pictures: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each resample holds each picture, float32 [P, some resamples], block by block."""
    raise NotImplementedError


def replicates(
    labels: csc_array,
    predicted: Mapping[str, csc_array],
    measure: Measure = averages,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, np.ndarray]]:
    """Figures of each of several sets of decisions in every resample: name -> figure -> float64 [R].

    Takes bool [P, N] labels and, by name (thresholds of a model, or models), what was predicted. All are counted in
    the same resamples, so differences between them are paired: `a["macro_f1"] - b["macro_f1"]`, into `interval`.
    `measure` makes the figures of Counts [N, R]; it is `metrics.averages` or a function of its kind.
    """
    raise NotImplementedError


def ap_influence(scores: np.ndarray, labels: csc_array, tags: np.ndarray) -> np.ndarray:
    """The derivative of mean average precision, over these tags, by each picture's weight: float64 [P]."""
    raise NotImplementedError


def ap_replicates(value: float, influence: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Mean average precision in every resample, linearised: float64 [R]; the resamples are those of `replicates`."""
    raise NotImplementedError

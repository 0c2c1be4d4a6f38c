"""A metric with its values in resamples of the images, so that differences between models are paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation import bootstrap, metrics
from joytag.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class Resampled:
    """A metric, and its value in every resample, float64 [R]."""

    value: float
    replicates: NDArray[np.float64]

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(self.value - other.value, self.replicates - other.replicates)

    @property
    def interval(self) -> Interval:
        """The metric with its interval."""
        return bootstrap.interval(self.value, self.replicates)


def measure(
    scores: NDArray[np.float16],
    labels: csc_array,
    metric: str,
    threshold: float,
    resamples: int = bootstrap.RESAMPLES,
    families: NDArray[np.int64] | None = None,
) -> Resampled:
    """Measure a metric of comparison.METRICS on all images, and in resamples of them.

    Takes scores float16 [P, N], labels bool [P, N] and `families` as `bootstrap.resample_weights`. `map` is the mean
    over the tags with a positive. Different scores for the same images are measured in the same resamples.
    """
    if metric == "map":
        positives = np.diff(labels.indptr)
        precision = metrics.average_precision(table for _, table in metrics.histograms(scores, labels))
        value, _ = metrics.mean_average_precision(precision, positives)
        influence = bootstrap.ap_influence(scores, labels, np.flatnonzero(positives))
        return Resampled(value, bootstrap.ap_replicates(value, influence, resamples=resamples, families=families))
    decisions = metrics.predicted(scores, threshold)
    value = metrics.averages(metrics.count(labels, decisions))[metric]
    replicates = bootstrap.replicates(labels, {"": decisions}, resamples=resamples, families=families)
    return Resampled(value, replicates[""][metric])

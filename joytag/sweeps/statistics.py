"""What a sweep can claim: how each point differs from the base, over seeds and over validation images.

Seeds are few, and all of them see the same images. So the variance of a point's mean difference from the base has two
parts, as in studies where a few readers rate the same cases (Obuchowski and Rockette 1995; Hillis 2007): that of the
paired differences over seeds, divided by the number of seeds, and the covariance, over resamples of the images, between
the differences of two seeds. The degrees of freedom are Satterthwaite's. Three seeds alone would leave two of them, so
the variance over seeds is pooled over all points, as in Dunnett's test (1955), which also corrects for their number. A
point that varies more than the pool counts with its own variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from scipy.sparse import csc_array

from joytag.evaluation import bootstrap, metrics
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.comparison import Resampled

RESAMPLES = 200  # of the images: enough for a covariance
LEVEL = 0.05  # probability that any of the points is called different from the base though none is


@dataclass(frozen=True)
class Finding:
    """A point's metric, and how it differs from the base; NaN where undefined.

    `mean` and `deviation` are over its seeds. `difference` has an interval that holds for all points at once; it
    excludes 0 where `p`, corrected for the number of points, is below LEVEL.
    """

    mean: float
    deviation: float
    difference: Interval
    p: float

    @property
    def is_better(self) -> bool:
        """Whether the point beats the base by more than noise."""
        return self.difference.low > 0


def measure(
    scores: NDArray[np.float16], labels: csc_array, metric: str, threshold: float, rows: NDArray[np.bool_] | slice
) -> Resampled:
    """Measure a metric of comparison.METRICS on some rows, bool [P] or a slice, and in resamples of them.

    Takes scores float16 [P, N] and labels bool [P, N]. `map` is the mean over the tags with a positive in the rows.
    Different scores for the same images are measured in the same resamples.
    """
    scores, labels = scores[rows], labels[rows].tocsc()
    if metric == "map":
        positives = np.diff(labels.indptr)
        precision = metrics.average_precision(table for _, table in metrics.histograms(scores, labels))
        value, _ = metrics.mean_average_precision(precision, positives)
        influence = bootstrap.ap_influence(scores, labels, np.flatnonzero(positives))
        return Resampled(value, bootstrap.ap_replicates(value, influence, resamples=RESAMPLES))
    decisions = metrics.predicted(scores, threshold)
    value = metrics.averages(metrics.count(labels, decisions))[metric]
    return Resampled(value, bootstrap.replicates(labels, {"": decisions}, resamples=RESAMPLES)[""][metric])


def noise_floor(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return the standard deviation of a metric over seeds, with its 95 % interval (normal distribution)."""
    freedom = len(values) - 1
    if freedom < 1:
        return Interval(np.nan, np.nan, np.nan)
    factors = [1, *np.sqrt(freedom / stats.chi2.ppf([0.975, 0.025], freedom))]
    return Interval(*(float(np.std(values, ddof=1) * factor) for factor in factors))


def compare(points: Mapping[str, Mapping[int, Resampled]], comparisons: int) -> dict[str, Finding]:
    """Compare each point with the first, the base, from the metric by seed; corrected for a number of comparisons.

    Only points with all seeds of the base are tested: fewer would flatter a point whose bad seeds failed. The findings
    of others, and with a single seed all, have NaN for what is undefined. `comparisons` is the number of points that
    were tried, stopped ones included.
    """
    base = next(iter(points.values()), {})
    complete = [point for point, seeds in points.items() if base and base.keys() <= seeds.keys()]
    freedom, pooled = (len(complete) - 1) * (len(base) - 1), np.nan
    if len(complete) > 1 and len(base) > 1:
        values = np.array([[points[point][seed].value for seed in base] for point in complete])
        residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
        pooled = 2 * (residuals**2).sum() / freedom
    findings = {}
    for point, seeds in points.items():
        own = np.array([resampled.value for resampled in seeds.values()])
        shared = [seeds[seed] - base[seed] for seed in base if seed in seeds]
        mean, deviation = own.mean() if len(own) else np.nan, own.std(ddof=1) if len(own) > 1 else np.nan
        value = float(np.mean([d.value for d in shared])) if shared else np.nan
        difference, p = Interval(value, np.nan, np.nan), np.nan
        if point in complete and seeds is not base and not np.isnan(pooled):
            difference, p = _test(shared, pooled, freedom, max(comparisons, len(complete) - 1))
        findings[point] = Finding(float(mean), float(deviation), difference, p)
    return findings


def flattery(chosen: Finding, confirmed: Finding) -> Interval:
    """Return by how much a point's difference from the base, when it was chosen, exceeded the confirmed one."""
    value, fresh = chosen.difference.value, confirmed.difference
    return Interval(value - fresh.value, value - fresh.high, value - fresh.low)


def _test(differences: list[Resampled], pooled: float, freedom: int, comparisons: int) -> tuple[Interval, float]:
    """Return the interval and p of a point from its paired differences by seed and their pooled variance."""
    values = np.array([d.value for d in differences])
    over_seeds = max(float(values.var(ddof=1)), pooled) / len(values)
    over_images = _covariance(np.array([d.replicates for d in differences]))
    error = float(np.sqrt(over_seeds + over_images))
    if error == 0:  # the same scores
        return Interval(0.0, 0.0, 0.0), 1.0
    freedom_of_sum = freedom * (1 + over_images / over_seeds) ** 2 if over_seeds else np.inf
    value, reach = float(values.mean()), critical_value(comparisons, freedom_of_sum) * error
    return Interval(value, value - reach, value + reach), adjusted_p(value / error, comparisons, freedom_of_sum)


def _covariance(replicates: NDArray[np.float64]) -> float:
    """Return the mean covariance between two rows of replicates [S, R]; at least 0."""
    covariance = np.cov(replicates[:, ~np.isnan(replicates).any(0)])
    off_diagonal = covariance.sum() - np.trace(covariance)
    return max(0.0, float(off_diagonal) / (len(covariance) * (len(covariance) - 1)))


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

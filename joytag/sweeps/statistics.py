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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.resampled import Resampled
from joytag.sweeps.dunnett import adjusted_p, critical_value


@dataclass(frozen=True)
class Finding:
    """A point's metric, and how it differs from the base; NaN where undefined.

    `mean` and `deviation` are over its seeds. `difference` has an interval that holds for all points at once; it
    excludes 0 where `p`, corrected for the number of points, is below dunnett.LEVEL.
    """

    mean: float
    deviation: float
    difference: Interval
    p: float

    @property
    def is_better(self) -> bool:
        """Whether the point beats the base by more than noise."""
        return self.difference.low > 0


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
        shared = [seeds[seed] - base[seed] for seed in base if seed in seeds]
        value = float(np.mean([d.value for d in shared])) if shared else np.nan
        difference, p = Interval(value, np.nan, np.nan), np.nan
        if point in complete and seeds is not base and not np.isnan(pooled):
            difference, p = _test(shared, pooled, freedom, max(comparisons, len(complete) - 1))
        findings[point] = replace(summarize(seeds), difference=difference, p=p)
    return findings


def summarize(seeds: Mapping[int, Resampled]) -> Finding:
    """Return the finding of a point that is compared with nothing, from the metric by seed."""
    values = np.array([of_seed.value for of_seed in seeds.values()])
    mean, deviation = values.mean() if len(values) else np.nan, values.std(ddof=1) if len(values) > 1 else np.nan
    return Finding(float(mean), float(deviation), Interval(np.nan, np.nan, np.nan), np.nan)


def optimism(chosen: Finding, confirmed: Finding) -> Interval:
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

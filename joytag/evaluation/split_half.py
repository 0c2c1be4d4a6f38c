"""The fixed threshold beside thresholds chosen on the other half of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.bootstrap import Interval, Resample, interval
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.thresholds import cross_fit


@dataclass(frozen=True)
class F1Averages:
    """Macro and micro F1 at one choice of thresholds."""

    macro_f1: Interval
    micro_f1: Interval


@dataclass(frozen=True)
class ChosenThresholds(F1Averages):
    """F1 at thresholds chosen on the other half of the images.

    `difference`: macro F1 minus that at the fixed threshold. `directions`: the same difference on each half alone.
    `verdict`: the difference in a sentence.
    """

    difference: Interval
    directions: list[float]
    verdict: str


@dataclass(frozen=True)
class SplitHalf:
    """The fixed threshold against thresholds chosen on the other half: one for all tags, and one per tag."""

    fixed: F1Averages
    shared: ChosenThresholds
    per_tag: ChosenThresholds


def split_half(
    predictions: Predictions,
    scores: NDArray[np.float16],
    fixed: csc_array,
    threshold: float,
    seed: int,
    resample: Resample,
) -> SplitHalf:
    """Compare the `fixed` decisions, those at `threshold`, with decisions at thresholds from the other half."""
    labels = predictions.labels
    fit = cross_fit(scores, labels, seed, predictions.families)
    decisions = {"fixed": fixed, "shared": fit.shared, "per_tag": fit.per_tag}
    averages = {name: metrics.averages(metrics.count(labels, predicted)) for name, predicted in decisions.items()}
    sampled = resample(labels, decisions)
    halves = [np.flatnonzero(half) for half in (fit.first_half, ~fit.first_half)]

    def f1(name: str) -> dict[str, Interval]:
        return {metric: interval(averages[name][metric], sampled[name][metric]) for metric in ("macro_f1", "micro_f1")}

    def macro_f1_by_half(name: str) -> list[float]:
        parts = [(labels[rows].tocsc(), decisions[name][rows].tocsc()) for rows in halves]
        return [metrics.averages(metrics.count(*part))["macro_f1"] for part in parts]

    def chosen(name: str, subject: str) -> ChosenThresholds:
        difference = interval(
            averages[name]["macro_f1"] - averages["fixed"]["macro_f1"],
            sampled[name]["macro_f1"] - sampled["fixed"]["macro_f1"],
        )
        directions = np.subtract(macro_f1_by_half(name), macro_f1_by_half("fixed")).tolist()
        verdict = _verdict(f"{subject}, chosen on the other half,", threshold, difference)
        return ChosenThresholds(**f1(name), difference=difference, directions=directions, verdict=verdict)

    return SplitHalf(
        fixed=F1Averages(**f1("fixed")),
        shared=chosen("shared", "One threshold for all tags"),
        per_tag=chosen("per_tag", "A threshold for each tag"),
    )


def _verdict(subject: str, threshold: float, difference: Interval) -> str:
    if np.isnan(difference.low):
        return f"{subject} cannot be judged: no metric is defined."
    verb = "beats" if difference.low > 0 else "does worse than" if difference.high < 0 else "does not beat"
    return (
        f"{subject} {verb} {threshold:g} in macro F1: {difference.value:+.4f}, "
        f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}."
    )

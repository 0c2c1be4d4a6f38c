"""Several taggers on the same images and tags: their metrics, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csc_array
from scipy.stats import false_discovery_control

from joytag.data import dataset
from joytag.evaluation import bootstrap, metrics
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.curves import Curves, SampledCurves, choose_thresholds, compute_curves
from joytag.evaluation.metrics import Counts
from joytag.evaluation.randomization_test import randomization_test
from joytag.evaluation.resampled import Resampled
from joytag.evaluation.tag_groups import by_category, category_names
from joytag.evaluation.thresholds import predicted_by_half, random_half

METRICS = {
    f"{kind}_{name}": f"{kind} {word}"
    for kind in ("macro", "micro")
    for name, word in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
} | {"map": "mAP"}
F1_METRICS = ("macro_f1", "micro_f1")


class View(NamedTuple):
    """A way to choose thresholds: a short name, a description, and the metrics that may be compared at them."""

    name: str
    words: str
    metrics: Sequence[str]


# A threshold chosen on images varies with them, which the bootstrap does not see. So at crossed thresholds only the
# metric they were chosen for is compared: it is flat where it is best. In 300 simulated pairs of equally good taggers,
# 9 % of these metrics differed by more than noise, but up to 63 % of the others at the same thresholds; of the metrics
# of all other views, 4 to 9 % did.
VIEWS = {
    "own": View("own threshold", "each at its own threshold", [name for name in METRICS if name != "map"]),
    "break_even": View("break-even", "each where its macro precision and macro recall are equal", F1_METRICS),
    "crossed_macro": View("crossed, macro", "each at the best threshold for macro F1 on the other half", ["macro_f1"]),
    "crossed_micro": View("crossed, micro", "each at the best threshold for micro F1 on the other half", ["micro_f1"]),
    "ranking": View("ranking", "without a threshold", ["map"]),
}
DECISIONS = [view for view in VIEWS if view != "ranking"]
FAIR_VIEW = "break_even"  # for comparing tags and categories
HEADLINE = ((FAIR_VIEW, "macro_f1"), (FAIR_VIEW, "micro_f1"), ("ranking", "map"))
CATEGORY = "category "  # prefix of a category's name among the metrics
POINTS = 200  # of a curve
FALSE_DISCOVERIES = 0.05  # expected share of false findings among the tags called won or lost
Threshold = float | tuple[float, float]  # one for all images, or one for the second half and one for the first


@dataclass(frozen=True)
class Contender:
    """A tagger in a comparison: `scores` float16 [P, N] of the common images and tags; `threshold` is its own.

    `letter` stands for it in plots and tables. `provenance` describes the tagger and its predictions by key.
    """

    letter: str
    name: str
    threshold: float
    scores: NDArray[np.float16]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A metric of one contender minus that of another, paired over images; positive if the first is better."""

    first: str
    second: str
    view: str
    metric: str
    interval: Interval

    @property
    def winner(self) -> str:
        """The letter with the higher metric; "" if the difference may be noise or is undefined."""
        return "" if not self.interval.excludes_zero else self.first if self.interval.value > 0 else self.second

    @property
    def verdict(self) -> str:
        """The difference in words."""
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        if np.isnan([value, low, high]).any():
            return "undefined"
        if not self.winner:
            return f"no difference beyond noise ({value:+.4f}, 95 % {low:+.4f} to {high:+.4f})"
        low, high = sorted((abs(low), abs(high)))
        better = "higher" if self.metric.endswith(("precision", "recall")) else "better"
        return f"{self.winner} is {better} by {abs(value):.4f} (95 % {low:.4f} to {high:.4f})"


@dataclass(frozen=True)
class CategoryComparison:
    """One category in the view FAIR_VIEW: `macro_f1` by letter, and the differences of every pair."""

    tags: int
    tags_with_positives: int
    macro_f1: dict[str, Interval]
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """All results of a comparison. NaN means undefined.

    `facts`: images, tags, tags_with_positives, minimum_positives, tags_ranked (over which `map` is the mean),
    resamples, seed, and the caller's additions. `thresholds`: view -> letter. `metrics`: view -> letter -> metric.
    `differences`: of every pair, view and metric. `categories`: by name. `per_tag`: see `tag_table`. `curves`: letter
    -> averages at POINTS thresholds.
    """

    facts: dict[str, Any]
    contenders: Sequence[Contender]
    thresholds: dict[str, dict[str, Threshold]]
    metrics: dict[str, dict[str, dict[str, Interval]]]
    differences: list[Difference]
    categories: dict[str, CategoryComparison]
    per_tag: pa.Table
    curves: dict[str, SampledCurves]

    def difference(self, first: str, second: str, view: str, metric: str) -> Difference:
        """Return one of the differences."""
        key = (first, second, view, metric)
        return next(d for d in self.differences if (d.first, d.second, d.view, d.metric) == key)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the letters of every pair of contenders."""
        return list(combinations([c.letter for c in self.contenders], 2))

    def summary(self, first: str, second: str) -> str:
        """Return a sentence: which of a pair is better at which metric in HEADLINE, at break-even thresholds."""
        won: dict[str, list[str]] = {}
        for view, metric in HEADLINE:
            won.setdefault(self.difference(first, second, view, metric).winner, []).append(METRICS[metric])
        if set(won) == {""}:
            return f"At break-even thresholds: No difference between {first} and {second} beyond noise."
        parts = [f"{w} is better than {first if w == second else second} in {_listed(won[w])}" for w in won if w]
        if "" in won:
            parts.append(f"no difference beyond noise in {_listed(won[''])}")
        return f"At break-even thresholds: {'; '.join(parts)}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class EvaluatedContender:
    """A contender's curves, and by view its threshold, decisions bool [P, N], and their counts [N]."""

    curves: Curves
    thresholds: dict[str, Threshold]
    decisions: dict[str, csc_array]
    counts: dict[str, Counts]


ResampledMetrics = dict[str, dict[str, dict[str, Resampled]]]  # view -> letter -> metric


def compare(
    contenders: Sequence[Contender],
    labels: csc_array,
    tags: dataset.TagTable,
    facts: Mapping[str, Any] | None = None,
    minimum_positives: int = 1,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    families: NDArray[np.int64] | None = None,
) -> Comparison:
    """Compare taggers on labels, bool [P, N], of tags [N]; `facts` are added to those of the comparison.

    `families`, int64 [P], are the same for images that vary one another; None: every image is independent.
    All intervals come from the same resamples of images. They take the thresholds and the tags of mAP as fixed, though
    these were chosen on images, too. Each interval covers 95 % on its own: of a hundred differences that are zero,
    about five will be called more than noise.
    """
    first_half = random_half(labels.shape[0], seed, families)
    evaluated = {c.letter: evaluate_contender(c, labels, first_half) for c in contenders}
    positives = np.diff(labels.indptr).astype(np.int64)
    ranked = np.flatnonzero(positives >= max(1, minimum_positives))
    options = {"seed": seed, "resamples": resamples, "families": families}
    resampled = _resample(contenders, evaluated, labels, tags.categories, ranked, options)
    all_facts = {
        **(facts or {}),
        "images": labels.shape[0],
        "tags": len(tags),
        "tags_with_positives": int(np.count_nonzero(positives)),
        "minimum_positives": minimum_positives,
        "tags_ranked": len(ranked),
        "resamples": resamples,
        "seed": seed,
    }
    return Comparison(
        facts=all_facts,
        contenders=contenders,
        thresholds={view: {letter: e.thresholds[view] for letter, e in evaluated.items()} for view in DECISIONS},
        metrics={name: _intervals(resampled[name], view.metrics) for name, view in VIEWS.items()},
        differences=[
            _difference(resampled, *pair, name, metric)
            for pair in combinations(evaluated, 2)
            for name, view in VIEWS.items()
            for metric in view.metrics
        ],
        categories=_compare_categories(resampled, tags.categories, positives),
        per_tag=tag_table(evaluated, labels, tags),
        curves={letter: _sample_curves(e.curves) for letter, e in evaluated.items()},
    )


def evaluate_contender(contender: Contender, labels: csc_array, first_half: NDArray[np.bool_]) -> EvaluatedContender:
    """Compute a contender's curves, and its decisions in every view; `first_half` of the images, bool [P]."""
    scores = contender.scores
    curves = compute_curves(scores, labels)
    on_first = choose_thresholds(compute_curves(scores, labels, np.flatnonzero(first_half)))
    on_second = choose_thresholds(compute_curves(scores, labels, np.flatnonzero(~first_half)))
    single = {"own": contender.threshold, "break_even": choose_thresholds(curves)["macro_break_even"]}
    decisions = {view: metrics.predicted(scores, threshold) for view, threshold in single.items()}
    thresholds: dict[str, Threshold] = {**single}
    for kind in ("macro", "micro"):
        for_second, for_first = on_first[f"best_{kind}_f1"], on_second[f"best_{kind}_f1"]
        thresholds[f"crossed_{kind}"] = for_second, for_first
        decisions[f"crossed_{kind}"] = predicted_by_half(scores, first_half, for_first, for_second)
    counts = {view: metrics.count(labels, predicted) for view, predicted in decisions.items()}
    return EvaluatedContender(curves, thresholds, decisions, counts)


def _resample(
    contenders: Sequence[Contender],
    evaluated: Mapping[str, EvaluatedContender],
    labels: csc_array,
    categories: NDArray[np.int8],
    ranked: NDArray[np.int64],
    options: Mapping[str, Any],
) -> ResampledMetrics:
    """Resample all metrics; `ranked` are the tags of mAP, int64, `options` those of `bootstrap.replicates`."""
    averages = _averages_by_category(categories)
    decisions = {f"{view} {letter}": e.decisions[view] for letter, e in evaluated.items() for view in DECISIONS}
    replicates = bootstrap.replicates(labels, decisions, averages, **options)
    resampled: ResampledMetrics = {view: {} for view in VIEWS}
    for c in contenders:
        e = evaluated[c.letter]
        for view in DECISIONS:
            values, of_view = averages(e.counts[view]), replicates[f"{view} {c.letter}"]
            resampled[view][c.letter] = {name: Resampled(float(values[name]), of_view[name]) for name in values}
        mean = float(e.curves.ap[ranked].mean()) if len(ranked) else np.nan
        influence = bootstrap.ap_influence(c.scores, labels, ranked)
        mean_ap = Resampled(mean, bootstrap.ap_replicates(mean, influence, **options))
        resampled["ranking"][c.letter] = {"map": mean_ap}
    return resampled


def _averages_by_category(categories: NDArray[np.int8]) -> bootstrap.MetricFunction:
    """Return a function of Counts [N, ...] that gives the averages in METRICS, and each category's macro F1."""
    members = by_category(categories)

    def averages_of(counts: Counts) -> dict[str, NDArray[np.float64]]:
        averages = metrics.averages(counts)
        values = {name: averages[name] for name in METRICS if name in averages}
        for category, tags in members.items():
            values[CATEGORY + category] = metrics.averages(counts[tags])["macro_f1"]
        return values

    return averages_of


def _intervals(
    by_letter: Mapping[str, Mapping[str, Resampled]], names: Sequence[str]
) -> dict[str, dict[str, Interval]]:
    return {letter: {name: values[name].interval for name in names} for letter, values in by_letter.items()}


def _difference(resampled: ResampledMetrics, first: str, second: str, view: str, metric: str) -> Difference:
    difference = resampled[view][first][metric] - resampled[view][second][metric]
    return Difference(first, second, view, metric, difference.interval)


def _compare_categories(
    resampled: ResampledMetrics, categories: NDArray[np.int8], positives: NDArray[np.int64]
) -> dict[str, CategoryComparison]:
    compared, fair = {}, resampled[FAIR_VIEW]
    for category, tags in by_category(categories).items():
        metric = CATEGORY + category
        compared[category] = CategoryComparison(
            tags=len(tags),
            tags_with_positives=int(np.count_nonzero(positives[tags])),
            macro_f1={letter: values[metric].interval for letter, values in fair.items()},
            differences=[_difference(resampled, *pair, FAIR_VIEW, metric) for pair in combinations(fair, 2)],
        )
    return compared


def tag_table(evaluated: Mapping[str, EvaluatedContender], labels: csc_array, tags: dataset.TagTable) -> pa.Table:
    """Build the per-tag table: index, name, category, train_count, positives; null where undefined.

    For each contender, by letter: ap_A, own_f1_A, and in the view FAIR_VIEW precision_A, recall_A, f1_A. For each pair:
    difference_AB of f1; p_AB, the p-value of `randomization_test`; q_AB, the same after Benjamini and Hochberg's
    correction for the number of tags; winner_AB, a letter where q is at most FALSE_DISCOVERIES, else "". About that
    share of the tags won or lost are false findings.
    """
    columns: dict[str, Any] = {
        "index": range(len(tags)),
        "name": tags.names,
        "category": category_names(tags.categories),
        "train_count": tags.counts,
        "positives": np.diff(labels.indptr).astype(np.int64),
    }
    f1 = {}
    for letter, e in evaluated.items():
        fair = metrics.from_counts(e.counts[FAIR_VIEW])
        f1[letter] = fair["f1"]
        columns[f"ap_{letter}"] = e.curves.ap
        columns[f"own_f1_{letter}"] = metrics.from_counts(e.counts["own"])["f1"]
        columns |= {f"{name}_{letter}": fair[name] for name in ("precision", "recall", "f1")}
    for first, second in combinations(evaluated, 2):
        p = randomization_test(labels, *(evaluated[letter].decisions[FAIR_VIEW] for letter in (first, second)))
        q = np.full(len(tags), np.nan)
        q[~np.isnan(p)] = false_discovery_control(p[~np.isnan(p)])
        difference = f1[first] - f1[second]
        columns[f"difference_{first}{second}"] = difference
        columns |= {f"p_{first}{second}": p, f"q_{first}{second}": q}
        winner = np.where(difference > 0, first, second)
        columns[f"winner_{first}{second}"] = np.where(q <= FALSE_DISCOVERIES, winner, "").tolist()
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _sample_curves(curves: Curves) -> SampledCurves:
    thresholds = np.linspace(0, 1, POINTS, endpoint=False)
    return curves.at(metrics.first_level_above(thresholds), thresholds)

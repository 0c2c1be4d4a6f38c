"""Several taggers on the same images and tags: their figures, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import csc_array
from scipy.stats import false_discovery_control

from joytag.data import dataset
from joytag.evaluation import bootstrap, metrics
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.metrics import Counts, Curves
from joytag.evaluation.randomization_test import randomization_test
from joytag.evaluation.thresholds import random_half

METRICS = {
    f"{kind}_{name}": f"{kind} {word}"
    for kind in ("macro", "micro")
    for name, word in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
} | {"map": "mAP"}
F1_METRICS = ("macro_f1", "micro_f1")


class View(NamedTuple):
    """A way to choose thresholds, in few words and in more, and the figures that may be compared at them."""

    name: str
    words: str
    figures: Sequence[str]


# A threshold that is chosen on images scatters with them, which the bootstrap does not see. So of crossed thresholds
# only that figure is compared that they were chosen for: it is flat where it is best. In 300 simulated pairs of equally
# good taggers 9 % of these differed by more than noise, but up to 63 % of the other figures at the same thresholds; of
# all other views' figures 4 to 9 % did.
VIEWS = {
    "own": View("own threshold", "each at its own threshold", [name for name in METRICS if name != "map"]),
    "break_even": View("break-even", "each where its macro precision and macro recall are equal", F1_METRICS),
    "crossed_macro": View(
        "crossed, macro", "each at the best threshold for macro F1 on the other half", F1_METRICS[:1]
    ),
    "crossed_micro": View(
        "crossed, micro", "each at the best threshold for micro F1 on the other half", F1_METRICS[1:]
    ),
    "ranking": View("ranking", "without a threshold", ["map"]),
}
DECISIONS = [view for view in VIEWS if view != "ranking"]
FAIR_VIEW = "break_even"  # where tags and categories are compared
HEADLINE = ((FAIR_VIEW, "macro_f1"), (FAIR_VIEW, "micro_f1"), ("ranking", "map"))
CATEGORY = "category "  # before the names of categories among the figures
POINTS = 200  # of a curve
FALSE_DISCOVERIES = 0.05  # the share that is accepted among the tags that are called won or lost


@dataclass(frozen=True)
class Contender:
    """A tagger in a comparison: `scores` float16 [P, N] of the common images and tags; `threshold` is its own.

    `letter` stands for it in figures and tables; `facts` tell what it is and where it came from.
    """

    letter: str
    name: str
    threshold: float
    scores: np.ndarray
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A figure of one contender minus that of another, paired over images; positive if the first is better."""

    first: str
    second: str
    view: str
    figure: str
    interval: Interval

    @property
    def winner(self) -> str:
        """Whose figure is higher, "" if the difference may be noise or is undefined."""
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
        better = "higher" if self.figure.endswith(("precision", "recall")) else "better"
        return f"{self.winner} is {better} by {abs(value):.4f} (95 % {low:.4f} to {high:.4f})"


@dataclass(frozen=True)
class Comparison:
    """All that a comparison tells. NaN is undefined.

    `facts`: images, tags, tags_with_positives, minimum_positives, tags_ranked (over which `map` is the mean),
    resamples, seed, and what the caller adds. `thresholds`: view -> letter -> the threshold, of crossed views one for
    either half. `figures`: view -> letter -> figure -> Interval. `differences`: of every pair, view and figure.
    `categories`: name -> tags, tags_with_positives, `figures` (letter -> Interval of macro F1 in the view FAIR) and
    `differences`. `per_tag`: see `tag_table`. `curves`: letter -> float64 arrays [POINTS]: `threshold`, and macro_ and
    micro_ precision, recall, f1 there.
    """

    facts: dict[str, Any]
    contenders: Sequence[Contender]
    thresholds: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, dict[str, Interval]]]
    differences: list[Difference]
    categories: dict[str, dict[str, Any]]
    per_tag: pa.Table
    curves: dict[str, dict[str, np.ndarray]]

    def difference(self, first: str, second: str, view: str, figure: str) -> Difference:
        """One of the differences."""
        sought = (first, second, view, figure)
        return next(d for d in self.differences if (d.first, d.second, d.view, d.figure) == sought)

    def pairs(self) -> list[tuple[str, str]]:
        """The letters of those that are compared with each other."""
        return list(combinations([c.letter for c in self.contenders], 2))

    def summary(self, first: str, second: str) -> str:
        """Who is better in what, in a sentence, by the figures in HEADLINE."""
        won: dict[str, list[str]] = {}
        for view, figure in HEADLINE:
            won.setdefault(self.difference(first, second, view, figure).winner, []).append(METRICS[figure])
        if set(won) == {""}:
            return f"No difference between {first} and {second} beyond noise."
        parts = [f"{w} is better than {first if w == second else second} in {_listed(won[w])}" for w in won if w]
        if "" in won:
            parts.append(f"no difference beyond noise in {_listed(won[''])}")
        return "; ".join(parts) + "."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class ContenderMetrics:
    """What is made of one contender: curves; by view thresholds, decisions bool [P, N], and counts of these."""

    curves: Curves
    thresholds: dict[str, Any]
    decisions: dict[str, csc_array]
    counts: dict[str, Counts]


def compare(
    contenders: Sequence[Contender],
    labels: csc_array,
    tags: dataset.TagTable,
    facts: Mapping[str, Any] | None = None,
    minimum_positives: int = 1,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare taggers on labels, bool [P, N], of tags [N]; `facts` are told along.

    All intervals come from the same resamples of images. They hold for the thresholds and the mAP's tags as they
    are: that those were chosen on images, too, they leave out. Each covers 95 % on its own, so of a hundred
    differences that are none about five will be called one.
    """
    upper = random_half(labels.shape[0], seed)
    measured = {c.letter: evaluate_contender(c, labels, upper) for c in contenders}
    positives = np.diff(labels.indptr).astype(np.int64)
    ranked = np.flatnonzero(positives >= max(1, minimum_positives))
    told = {
        **(facts or {}),
        "images": labels.shape[0],
        "tags": len(tags),
        "tags_with_positives": int(np.count_nonzero(positives)),
        "minimum_positives": minimum_positives,
        "tags_ranked": len(ranked),
        "resamples": resamples,
        "seed": seed,
    }
    resampled = _resample(contenders, measured, labels, tags.categories, ranked, resamples, seed)
    figures = {key: {n: bootstrap.interval(*both) for n, both in found.items()} for key, found in resampled.items()}
    differences = _differences(resampled, list(measured))
    return Comparison(
        told,
        contenders,
        {view: {letter: m.thresholds[view] for letter, m in measured.items()} for view in DECISIONS},
        {v: {c: {n: figures[v, c][n] for n in view.figures} for c in measured} for v, view in VIEWS.items()},
        [d for d in differences if d.figure in VIEWS[d.view].figures],
        _categories(figures, differences, tags.categories, positives),
        tag_table(measured, labels, tags),
        {letter: _sampled(m.curves) for letter, m in measured.items()},
    )


def evaluate_contender(contender: Contender, labels: csc_array, upper: np.ndarray) -> ContenderMetrics:
    """The curves of a contender, and its decisions in every view; `upper` are the images of one half, bool [P]."""
    scores = contender.scores
    whole, *parts = (
        metrics.curves(table for _, table in metrics.histograms(scores, labels, rows))
        for rows in (None, np.flatnonzero(~upper), np.flatnonzero(upper))
    )
    lower, higher = map(metrics.thresholds, parts)
    thresholds: dict[str, Any] = {
        "own": contender.threshold,
        "break_even": metrics.thresholds(whole)["macro_break_even"],
        "crossed_macro": (higher["best_macro_f1"], lower["best_macro_f1"]),  # for the lower half, and for the upper
        "crossed_micro": (higher["best_micro_f1"], lower["best_micro_f1"]),
    }
    decisions = {view: decide(scores, chosen, upper) for view, chosen in thresholds.items()}
    return ContenderMetrics(
        whole, thresholds, decisions, {view: count(labels, made) for view, made in decisions.items()}
    )


def decide(scores: np.ndarray, threshold: float | tuple[float, float], upper: np.ndarray) -> csc_array:
    """What is predicted, bool [P, N], at one threshold or at one for either half; nothing where it is undefined."""
    if isinstance(threshold, tuple):
        of_lower, of_upper = (decide(scores, one, upper) for one in threshold)
        rows = upper[:, None]
        return csc_array(of_lower.multiply(~rows) + of_upper.multiply(rows), dtype=bool)
    return metrics.predicted(scores, 1.0 if np.isnan(threshold) else threshold)


def count(labels: csc_array, decisions: csc_array) -> Counts:
    """Counts [N], int64, of labels and decisions, both bool [P, N]."""
    tp = labels.multiply(decisions).sum(axis=0)
    positives, predicted = (np.diff(of.indptr).astype(np.int64) for of in (labels, decisions))
    return Counts(tp, predicted - tp, positives - tp, labels.shape[0] - predicted - positives + tp)


Resampled = dict[str, tuple[float, np.ndarray]]  # figure -> itself, and what it is in every resample, float64 [R]


def _resample(
    contenders: Sequence[Contender],
    measured: Mapping[str, ContenderMetrics],
    labels: csc_array,
    categories: np.ndarray,
    ranked: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[tuple[str, str], Resampled]:
    """All figures by view and letter; `ranked` are the tags of mAP, int64."""
    average = _averages_of(categories)
    decisions = {f"{view} {letter}": m.decisions[view] for letter, m in measured.items() for view in DECISIONS}
    replicates = bootstrap.replicates(labels, decisions, average, seed, resamples)
    found: dict[tuple[str, str], Resampled] = {}
    for c in contenders:
        m = measured[c.letter]
        for view in DECISIONS:
            values = average(m.counts[view])
            of_view = replicates[f"{view} {c.letter}"]
            found[view, c.letter] = {name: (float(value), of_view[name]) for name, value in values.items()}
        mean = float(m.curves.ap[ranked].mean()) if len(ranked) else np.nan
        influence = bootstrap.ap_influence(c.scores, labels, ranked)
        found["ranking", c.letter] = {"map": (mean, bootstrap.ap_replicates(mean, influence, seed, resamples))}
    return found


def _averages_of(categories: np.ndarray) -> bootstrap.MetricFunction:
    """A measure: the averages in FIGURES, and each category's macro F1."""

    def measure(counts: Counts) -> dict[str, np.ndarray]:
        averages = metrics.averages(counts)
        found = {name: averages[name] for name in METRICS if name in averages}
        for number in np.unique(categories):
            found[CATEGORY + _word(number)] = metrics.averages(counts[categories == number])["macro_f1"]
        return found

    return measure


def _word(category: int) -> str:
    return dataset.CATEGORIES.get(int(category), f"category {category}")


def _differences(resampled: Mapping[tuple[str, str], Resampled], letters: Sequence[str]) -> list[Difference]:
    found = []
    for first, second in combinations(letters, 2):
        for view in VIEWS:
            others = resampled[view, second]
            for name, (value, replicates) in resampled[view, first].items():
                interval = bootstrap.interval(value - others[name][0], replicates - others[name][1])
                found.append(Difference(first, second, view, name, interval))
    return found


def _categories(
    figures: Mapping[tuple[str, str], Mapping[str, Interval]],
    differences: Sequence[Difference],
    categories: np.ndarray,
    positives: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """What Comparison says of categories."""
    found = {}
    for number in np.unique(categories):
        key = CATEGORY + _word(number)
        of_models = {letter: by_name[key] for (view, letter), by_name in figures.items() if view == FAIR_VIEW}
        found[_word(number)] = {
            "tags": int(np.count_nonzero(categories == number)),
            "tags_with_positives": int(np.count_nonzero(positives[categories == number])),
            "figures": of_models,
            "differences": [d for d in differences if d.figure == key and d.view == FAIR_VIEW],
        }
    return found


def tag_table(measured: Mapping[str, ContenderMetrics], labels: csc_array, tags: dataset.TagTable) -> pa.Table:
    """A row a tag: index, name, category, train_count, positives, and, of what is undefined, nulls.

    Of each contender, by letter: ap_A, own_f1_A, and in the view FAIR precision_A, recall_A, f1_A. Of each pair:
    difference_AB (of f1), p_AB and q_AB (`swap_test`, and that after Benjamini and Hochberg's correction for the number
    of tags), winner_AB: a letter where q is at most FALSE_DISCOVERIES, else "". Of the tags that are called won or lost
    about that share are so by chance.
    """
    columns: dict[str, Any] = {
        "index": range(len(tags)),
        "name": tags.names,
        "category": [_word(number) for number in tags.categories],
        "train_count": tags.counts,
        "positives": np.diff(labels.indptr).astype(np.int64),
    }
    f1 = {}
    for letter, m in measured.items():
        fair = metrics.from_counts(m.counts[FAIR_VIEW])
        f1[letter] = fair["f1"]
        columns[f"ap_{letter}"] = m.curves.ap
        columns[f"own_f1_{letter}"] = metrics.from_counts(m.counts["own"])["f1"]
        columns |= {f"{name}_{letter}": fair[name] for name in ("precision", "recall", "f1")}
    for first, second in combinations(measured, 2):
        decisions = (measured[letter].decisions[FAIR_VIEW] for letter in (first, second))
        p = randomization_test(labels, *decisions)
        q = np.full(len(tags), np.nan)
        q[~np.isnan(p)] = false_discovery_control(p[~np.isnan(p)])
        difference = f1[first] - f1[second]
        columns[f"difference_{first}{second}"] = difference
        columns |= {f"p_{first}{second}": p, f"q_{first}{second}": q}
        winner = np.where(difference > 0, first, second)
        columns[f"winner_{first}{second}"] = np.where(q <= FALSE_DISCOVERIES, winner, "").tolist()
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _sampled(curves: Curves) -> dict[str, np.ndarray]:
    """What Comparison says of a contender's curves."""
    threshold = np.linspace(0, 1, POINTS, endpoint=False)
    levels = metrics.first_level_above(threshold)
    found = {"threshold": threshold}
    for name in ("precision", "recall", "f1"):
        found[f"macro_{name}"] = getattr(curves, f"macro_{name}")[levels]
        found[f"micro_{name}"] = curves.micro[name][levels]
    return found

"""An analysis of invented predictions, with any number of tags, for tests of reports."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csc_array

from joytag.data.dataset import TagTable
from joytag.evaluation.analysis import HEADLINE, Analysis, Facts, TagCurve
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.curves import Calibration, Curves, PrecisionRecallF1, SampledCurves
from joytag.evaluation.error_analysis import Confusion, Disagreement
from joytag.evaluation.groupings import Gap, Grouping, GroupMetrics
from joytag.evaluation.metrics import Counts
from joytag.evaluation.per_tag import per_tag_table
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.split_half import ChosenThresholds, F1Averages, SplitHalf
from joytag.evaluation.tag_groups import by_count

HOSTILE = ['<script>alert("x")</script>', "' onload='alert(1)", "</title><b>", "=_=", "\u202eevil", "a" * 200]
WORDS = (
    "red", "blue", "long", "short", "hair", "eyes", "hat", "cat", "dog", "sky",
    "tree", "smile", "open", "hand", "dress", "night", "water", "flower", "white", "sword",
)  # fmt: skip
CATEGORIES = ("general", "character", "copyright", "meta")
BANDS = ("under 3k", "3k to 10k", "10k to 100k", "100k or more")


def names(n_tags: int) -> list[str]:
    """Return distinct names; the last six would break unescaped HTML or CSV."""
    distinct = [f"{WORDS[i % 20]}_{WORDS[i // 20 % 20]}" + (f"_{i // 400}" if i >= 400 else "") for i in range(n_tags)]
    return (distinct[: n_tags - len(HOSTILE)] + HOSTILE)[:n_tags]


def around(value: float, width: float = 0.01) -> Interval:
    """Return an interval with a value in its middle."""
    return Interval(float(value), float(value) - width, float(value) + width)


def per_tag(n_tags: int, images: int, rng: np.random.Generator) -> pa.Table:
    """Return a per-tag table with consistent counts; one tag in forty has no positives, some are never predicted."""
    train = np.sort((1200 * rng.pareto(0.7, n_tags) + 1200).clip(max=3_100_000).astype(np.int64))[::-1]
    positives = np.minimum(rng.poisson(train * images / 4e6) + 5, images // 2)
    positives[::40] = 0
    skill = rng.beta(2.5, 2, n_tags)
    tp = rng.binomial(positives, skill)
    fp = rng.poisson(positives * (1 - skill))
    fp[tp == 0] = 0
    counts = Counts(tp=tp, fp=fp, fn=positives - tp, tn=images - positives - fp)
    thresholds = np.where(positives > 0, np.round(rng.uniform(0.2, 0.6, n_tags), 4), np.nan)
    ap, best_f1, best_threshold, ece = (np.where(positives > 0, rng.uniform(size=n_tags), np.nan) for _ in range(4))
    none, empty = np.zeros(0, dtype=np.int64), np.zeros(0)
    macro = PrecisionRecallF1(empty, empty, empty)
    curves = Curves(positives, ap, best_f1, best_threshold, ece, none, none, macro, none)
    tags = TagTable(names(n_tags), rng.choice([0, 4, 3, 5], n_tags, p=[0.6, 0.25, 0.1, 0.05]), train, train)
    return per_tag_table(tags, by_count(train), counts, curves, thresholds)


def group_metrics(rng: np.random.Generator, tags: int, images: int) -> GroupMetrics:
    names = [f"{kind}_{name}" for kind in ("macro", "micro") for name in ("precision", "recall", "f1")]
    averages = {name: float(rng.uniform(0.3, 0.9)) for name in names}
    f1 = averages["macro_f1"]
    return GroupMetrics(
        **averages,
        macro_f1_low=f1 - 0.02,
        macro_f1_high=f1 + 0.02,
        map=f1 + 0.03,
        tags=tags,
        tags_with_positives=tags - 1,
        images=images,
    )


def grouping(rng: np.random.Generator, names: tuple[str, ...], images: int) -> Grouping:
    return Grouping({name: group_metrics(rng, 10, images) for name in names}, Gap(names[0], names[1], around(0.1)))


def undefined(row: GroupMetrics) -> GroupMetrics:
    """Return the metrics of a group of three tags, none of which occurs."""
    values: dict[str, Any] = {field.name: float("nan") for field in fields(row)}
    return GroupMetrics(**(values | {"tags": 3, "tags_with_positives": 0, "images": 0}))


def average_curve(t: np.ndarray, gain: float) -> PrecisionRecallF1:
    precision, recall = 0.2 + gain + 0.7 * t**0.7, (1 - t**1.6) * (0.9 + gain)
    precision[-1] = np.nan
    return PrecisionRecallF1(precision, recall, 2 * precision * recall / (precision + recall))


def analysis(n_tags: int = 60, images: int = 400, seed: int = 0) -> Analysis:
    """Return an Analysis with metrics of the right types and ranges; only those of single tags are consistent.

    It is long because an Analysis has many parts, each of which is one expression here.
    """
    rng = np.random.default_rng(seed)
    table = per_tag(n_tags, images, rng)
    thresholds = {
        "fixed": 0.4,
        "macro_break_even": 0.41,
        "micro_break_even": 0.44,
        "best_micro_f1": 0.38,
        "best_macro_f1": 0.35,
    }
    headline = {name: {metric: around(rng.uniform(0.5, 0.7)) for metric in HEADLINE} for name in thresholds}
    chosen = ChosenThresholds(
        macro_f1=around(0.52),
        micro_f1=around(0.61),
        difference=Interval(0.02, 0.01, 0.03),
        directions=[0.019, 0.021],
        verdict="Better than the fixed threshold: the interval of the difference lies above 0.",
    )
    groups = grouping(rng, ("skin tones", "expressions", "<i>clothes</i>"), images)
    groups.rows["empty"] = undefined(groups.rows["expressions"])
    t = np.linspace(0, 1, 201)
    with_curve = [table["name"][i].as_py() for i in (1, 5, 9, n_tags // 2, n_tags - 2, n_tags - 1)]
    middle = np.linspace(0.03, 0.97, 15)
    order = rng.permutation(n_tags)
    confusions = [
        Confusion(table["name"][int(a)].as_py(), table["name"][int(b)].as_py(), 9, 0.3)
        for a, b in zip(order[:20], order[20:40], strict=False)
    ]
    disagreements = [Disagreement(int(rng.integers(images)), int(tag), 0.9, bool(tag % 2), 0.8) for tag in order[:40]]
    return Analysis(
        facts=Facts(
            provenance={"model": "runs/<b>model</b>", "versions": {"torch": "2.11"}},
            images=images,
            families=images - 100,
            tags=n_tags,
            tags_with_positives=int(np.count_nonzero(table["positives"])),
            labels_per_image=8.6,
            threshold=0.4,
            minimum_positives=1,
            tags_ranked=n_tags - 2,
            resamples=1000,
            seed=0,
        ),
        thresholds=thresholds,
        headline=headline | {"ranking": {"map": around(0.6)}},
        macro_over=dict.fromkeys(thresholds, n_tags - 2),
        split_half=SplitHalf(F1Averages(around(0.5), around(0.6)), chosen, chosen),
        per_tag=table,
        sources=grouping(rng, ("danbooru", "photographs"), images),
        categories=grouping(rng, CATEGORIES, images),
        bands=grouping(rng, BANDS, images),
        groups=groups,
        curves=SampledCurves(t, average_curve(t, 0.0), average_curve(t, 0.1)),
        tag_curves={name: TagCurve(1 - t, t ** (0.1 + 0.2 * i)) for i, name in enumerate(with_curve)},
        calibration=Calibration(
            edges=np.linspace(0, 1, 16),
            mean_score=middle,
            frequency=middle**1.2,
            count=(1e6 * (1 - middle) ** 8).astype(int) + 1,
            ece=0.0123,
        ),
        confusions=confusions,
        confusions_by_share=confusions[::-1],
        false_positives=[d for d in disagreements if not d.labelled],
        misses=[d for d in disagreements if d.labelled],
        label_errors=disagreements,
    )


def predictions(n_tags: int = 60, images: int = 400, seed: int = 0) -> Predictions:
    """Return predictions with random sources and labels; only the first 300 tags have labels, and all scores are 0."""
    rng = np.random.default_rng(seed)
    hashes, sources = rng.integers(0, 256, (images, 32), dtype=np.uint8), rng.integers(0, 2, images)
    labels = csc_array(rng.random((images, min(n_tags, 300))) < 0.05)
    labels.resize(images, n_tags)
    counts = np.arange(n_tags)[::-1]
    return Predictions(
        directory=Path(),
        scores=np.broadcast_to(np.float16(0), (images, n_tags)),
        ids=np.arange(images) * 7,
        hashes=hashes,
        sources=sources,
        families=np.arange(images),
        source_names=["danbooru", "<u>photographs</u>"],
        labels=labels,
        tags=TagTable(names(n_tags), np.zeros(n_tags, dtype=np.int8), counts, counts),
        provenance={"model": "m"},
    )

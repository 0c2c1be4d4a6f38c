"""Analyses against scikit-learn on the same decisions, and analyses of degenerate predictions."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from joytag.data import dataset
from joytag.evaluation import analysis, metrics
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.groupings import GroupMetrics
from joytag.evaluation.predictions import Predictions

IMAGES, TAGS = 500, 40
NAMES = [f"tag_{i}" for i in range(TAGS)]


def predictions(scores, labels, sources=None) -> Predictions:
    images, n_tags = scores.shape
    counts = np.geomspace(10, 10_000, n_tags).astype(np.int64)
    categories = np.resize(np.array([0, 0, 4], dtype=np.int8), n_tags)
    return Predictions(
        directory=Path("predictions"),
        scores=scores,
        ids=np.arange(images),
        hashes=np.zeros((images, 32), dtype=np.uint8),
        sources=np.zeros(images, dtype=np.int64) if sources is None else sources,
        families=np.arange(images),
        source_names=["danbooru", "photographs", "nothing"],
        labels=csc_array(labels),
        tags=dataset.TagTable([f"tag_{i}" for i in range(n_tags)], categories, counts, counts),
        provenance={"model": "runs/test"},
    )


@pytest.fixture(scope="module")
def sample():
    """Rarer tags have lower scores; tag 3 has no label, tag 4 is never predicted, and both are true of tag 5."""
    rng = np.random.default_rng(0)
    labels = rng.random((IMAGES, TAGS)) < np.geomspace(0.02, 0.4, TAGS)
    logits = rng.normal(size=labels.shape) + 2.5 * labels + np.linspace(-3, -1, TAGS)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float16)
    labels[:, [3, 5]], scores[:, [4, 5]], scores[0, 3] = False, 0, 0.9
    labels[0, 4] = True
    return scores, labels, rng.integers(0, 2, IMAGES)


@pytest.fixture(scope="module")
def analysed(sample):
    groups = {"rare": ["tag_0", "tag_1", "tag_4"], "common": ["tag_38", "tag_39"]}
    return analysis.analyse(predictions(*sample), 0.4, groups, resamples=300)


def expected(labels, predicted):
    """Return scikit-learn's macro and micro averages; the macro averages are over tags with a label."""
    result: dict[str, float] = {}
    some = labels.any(0)
    for kind, tags in (("macro", some), ("micro", slice(None))):
        values = precision_recall_fscore_support(
            labels[:, tags], predicted[:, tags], average=kind, zero_division=np.nan
        )
        result |= {f"{kind}_{name}": v for name, v in zip(("precision", "recall", "f1"), values, strict=False)}
    return result


def same(row, wanted):
    assert {name: row[name] for name in wanted} == {name: pytest.approx(v, abs=1e-9) for name, v in wanted.items()}


def same_group(row: GroupMetrics, wanted):
    same(dataclasses.asdict(row), wanted)


def test_headline_matches_scikit_learn_at_every_threshold(sample, analysed):
    scores, labels, _ = sample
    assert list(analysed.thresholds) == [
        "fixed",
        "macro_break_even",
        "micro_break_even",
        "best_micro_f1",
        "best_macro_f1",
    ]
    for name, threshold in analysed.thresholds.items():
        row = analysed.headline[name]
        assert all(i.low < i.value < i.high for i in row.values())
        same({n: i.value for n, i in row.items()}, expected(labels, scores.astype(float) > threshold))
        assert analysed.macro_over[name] == np.sum(labels.any(0) & (scores.astype(float) > threshold).any(0))
    assert {f"{k}_{n}" for k in ("macro", "micro") for n in ("precision", "recall", "f1", "mcc")} == row.keys()
    best = analysed.headline["best_macro_f1"]["macro_f1"].value
    assert best >= max(of["macro_f1"].value for name, of in analysed.headline.items() if name != "ranking")
    enough = labels.sum(0) >= 5
    wanted = average_precision_score(labels[:, enough], scores[:, enough].astype(float), average="macro")
    assert analysed.headline["ranking"]["map"].value == pytest.approx(wanted, abs=1e-9)
    assert analysed.facts.tags_ranked == enough.sum()


def test_groups_match_scikit_learn(sample, analysed):
    scores, labels, sources = sample
    predicted = scores.astype(float) > 0.4
    assert list(analysed.sources.rows) == ["danbooru", "photographs"]  # the third has no images
    for number, row in enumerate(analysed.sources.rows.values()):
        same_group(row, expected(labels[sources == number], predicted[sources == number]))
        assert row.images == np.sum(sources == number)
        assert row.macro_f1_low < row.macro_f1
        enough = labels[sources == number].sum(0) >= 5
        parts = labels[sources == number][:, enough], scores[sources == number][:, enough].astype(float)
        assert row.map == pytest.approx(average_precision_score(*parts, average="macro"), abs=1e-9)
    assert list(analysed.categories.rows) == ["general", "character"]
    for name, tags in (("general", np.arange(TAGS) % 3 < 2), ("character", np.arange(TAGS) % 3 == 2)):
        same_group(analysed.categories.rows[name], expected(labels[:, tags], predicted[:, tags]))
        assert analysed.categories.rows[name].images == labels[:, tags].any(1).sum()
    assert sum(row.tags for row in analysed.bands.rows.values()) == TAGS
    same_group(analysed.groups.rows["rare"], expected(labels[:, [0, 1, 4]], predicted[:, [0, 1, 4]]))
    gap = analysed.groups.gap
    assert gap is not None
    assert (gap.best, gap.worst) == ("common", "rare")
    assert gap.gap.excludes_zero
    assert gap.gap.value == pytest.approx(
        analysed.groups.rows["common"].macro_f1 - analysed.groups.rows["rare"].macro_f1
    )


def test_each_tag_has_a_row_that_names_undefined_metrics(sample, analysed):
    scores, labels, _ = sample
    rows = analysed.per_tag.to_pylist()
    assert [row["name"] for row in rows] == NAMES
    words = {row["index"]: row["undefined"] for row in rows if row["undefined"]}
    assert words == {3: "no positives", 4: "never predicted", 5: "no positives, never predicted"}
    assert (rows[3]["recall"], rows[3]["precision"], rows[3]["f1"], rows[3]["ap"]) == (None, 0, 0, None)
    assert (rows[4]["recall"], rows[4]["precision"], rows[4]["f1"]) == (0, None, 0)
    assert [rows[5][name] for name in ("precision", "recall", "f1", "mcc", "ap", "best_threshold")] == [None] * 6
    for row in rows:
        i = row["index"]
        assert row["tp"] + row["fn"] == row["positives"] == labels[:, i].sum()
        assert row["tp"] + row["fp"] == row["predicted"] == np.sum(scores[:, i].astype(float) > 0.4)
        assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == IMAGES
        assert row["threshold"] is not None
        assert row["band"] in analysed.bands.rows
        assert row["category"] == ("character" if i % 3 == 2 else "general")
        assert row["best_f1"] is None or row["best_f1"] >= row["f1"]


def test_thresholds_from_the_other_half_have_a_verdict(sample, analysed):
    scores, labels, _ = sample
    fixed, per_tag = analysed.split_half.fixed, analysed.split_half.per_tag
    assert fixed.macro_f1.value == pytest.approx(analysed.headline["fixed"]["macro_f1"].value)
    difference = per_tag.difference
    assert difference.value == pytest.approx(per_tag.macro_f1.value - fixed.macro_f1.value)
    assert difference.low > 0
    assert min(per_tag.directions) > 0
    words = f"{difference.value:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}."
    assert per_tag.verdict == f"A threshold for each tag, chosen on the other half, beats 0.4 in macro F1: {words}"
    best = metrics.averages(metrics.count(csc_array(labels), metrics.predicted(scores, analysed.thresholds["fixed"])))
    assert per_tag.macro_f1.value < np.nanmean(analysed.per_tag["best_f1"].to_numpy())
    assert best["macro_f1"] < per_tag.macro_f1.value


def test_thresholds_that_gain_nothing_do_not_beat_the_fixed_one():
    rng = np.random.default_rng(0)
    labels = rng.random((400, 6)) < 0.3
    scores = (0.4 + 0.2 * labels + rng.normal(0, 0.05, labels.shape)).clip(0, 1).astype(np.float16)
    analysed = analysis.analyse(predictions(scores, labels), 0.5, resamples=300).split_half
    for chosen in (analysed.shared, analysed.per_tag):
        assert chosen.difference.high < 0.01
        assert "does not beat 0.5" in chosen.verdict or "does worse than 0.5" in chosen.verdict


def test_curves_equal_the_averages_at_their_thresholds(sample, analysed):
    scores, labels, _ = sample
    curves = analysed.curves
    assert (np.diff(curves.threshold) > 0).all()
    assert 150 < len(curves.threshold) <= 210
    for i in range(0, len(curves.threshold), 30):
        threshold = curves.threshold[i]
        counts = metrics.count(csc_array(labels), metrics.predicted(scores, threshold))
        averages = metrics.averages(counts)
        for kind in ("macro", "micro"):
            sampled = getattr(curves, kind)._asdict()
            same({name: values[i] for name, values in sampled.items()}, {n: averages[f"{kind}_{n}"] for n in sampled})
    assert np.abs(np.diff(curves.macro.recall)).max() < 0.05  # no part of the curve is cut short
    assert len(analysed.tag_curves) == analysis.TAG_CURVES
    assert "tag_39" in analysed.tag_curves
    recall, precision = analysed.tag_curves["tag_39"]
    assert recall[-1] == 1
    assert (np.diff(recall) > 0).all()
    assert precision[-1] == pytest.approx(
        labels[:, 39].sum() / np.sum(scores[:, 39] >= scores[labels[:, 39], 39].min())
    )


def test_the_same_seed_gives_the_same_intervals(sample, analysed):
    again = analysis.analyse(predictions(*sample), 0.4, resamples=300)
    assert again.headline == analysed.headline
    assert again.split_half == analysed.split_half
    assert analysis.analyse(predictions(*sample), 0.4, resamples=300, seed=1).headline != analysed.headline


@pytest.mark.parametrize("kind", ["no labels", "all labels", "equal scores", "one image", "no predictions"])
def test_degenerate_predictions_are_analysed(sample, kind):
    scores, labels, _ = (part.copy() for part in sample)
    scores, labels = scores[:30], labels[:30]
    if kind.endswith("labels"):
        labels[:] = kind == "all labels"
    elif kind == "equal scores":
        scores[:] = 0.5
    elif kind == "one image":
        scores, labels = scores[:1], labels[:1]
    else:
        scores[:] = 0
    analysed = analysis.analyse(predictions(scores, labels), 0.4, resamples=50)
    fixed = analysed.headline["fixed"]
    if kind == "no labels":
        assert all(np.isnan(value) for name, value in analysed.thresholds.items() if name != "fixed")
        assert np.isnan(fixed["macro_f1"].value)
        assert fixed["micro_f1"] == Interval(0, 0, 0)
        assert analysed.split_half.per_tag.verdict.endswith("cannot be judged: no metric is defined.")
        assert analysed.tag_curves == {}
        assert analysed.categories.gap is None
    elif kind == "all labels":
        assert fixed["macro_precision"] == Interval(1, 1, 1)
        assert np.isnan(fixed["macro_mcc"].value)
    elif kind == "no predictions":
        assert np.isnan(fixed["macro_precision"].value)
        assert fixed["macro_recall"].value == 0
        assert analysed.macro_over["fixed"] == 0
    assert len(analysed.per_tag) == TAGS


def test_groups_without_a_known_tag_are_refused(sample):
    with (
        pytest.warns(UserWarning, match="not in the vocabulary: red_hair"),
        pytest.raises(ValueError, match="none of their tags"),
    ):
        analysis.analyse(predictions(*sample), 0.4, {"hair": ["red_hair"]})

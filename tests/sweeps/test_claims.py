"""The published claims: their sweeps, measures and verdicts; against SciPy, scikit-learn and brute force."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from PIL import Image
from scipy import stats
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from sweeps import write_predictions

from joytag.core import jsonl
from joytag.data.dataset import Dataset
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.predictions import Predictions
from joytag.evaluation.resampled import Resampled
from joytag.models import release
from joytag.models.vit import ViT, ViTConfig
from joytag.sweeps import claim_measures, claims, claims_page
from joytag.sweeps.claim_measures import constant
from joytag.sweeps.claims import CLAIMS, FAILS, HOLDS, UNCLEAR, Effect
from joytag.sweeps.config import Trial

CONFIGS = ROOT / "configs/sweeps/claims"


def effect(low: float, high: float, claimed: tuple[float, float], unit: str = "mAP") -> Effect:
    """An effect with this interval, where the claim says that it is within `claimed`."""
    return Effect(unit, ("one", "other"), Interval((low + high) / 2, low, high), *claimed)


def trial(directory: Path, seed: int = 0) -> Trial:
    """A trial whose model and results are in a directory."""
    return Trial("0", "base", seed, 0.4, directory, directory / "release", [])


@pytest.fixture
def invented(monkeypatch) -> dict[str, float]:
    """Replace what is measured on trials by numbers by settings, which are 0 unless set, plus noise by seed."""
    values: dict[str, float] = {}

    def value(of: Trial, *_: Any) -> Resampled:
        added = sum(gain for settings, gain in values.items() if settings in of.name)
        return constant(added + float(np.random.default_rng([of.seed, len(of.name)]).normal(0, 0.001)))

    for name in ("final", "on_source", "on_training_images", "logged", "break_even"):
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(claims, "lowest_loss", lambda trials: 1000 * sum(1 + of.seed for of in trials))
    monkeypatch.setattr(claims.Ledger, "state", lambda self, trial: "done")
    monkeypatch.setattr(claims, "lost_gradients", lambda model, data, multiplier, scale: {"all": 0.5 / multiplier})
    return values


def test_every_sweep_tests_a_claim_on_five_seeds():
    assert {claim.name for claim in CLAIMS} == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert len(CLAIMS) == 14
    for number, claim in enumerate(CLAIMS, 1):
        sweep = claims.sweep(claim)
        title = (CONFIGS / f"{claim.name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# Claim {number}: ")
        assert sweep.output.as_posix() == "runs/claims", "they share their trials"
        assert sweep.settings.metric == "map"
        assert len(sweep.seeds) == 5


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_each_claim_is_measured_on_the_trials_of_its_sweep(claim, invented):
    found = claims.effects(claim)
    assert len(found) == sum(len(comparison.sides) - 1 for comparison in claim.comparisons)
    assert all(not math.isnan(each.difference.low) for each in found)


def test_a_difference_has_the_interval_of_the_paired_t_test(invented):
    invented["model.cnn_stem=null"] = -0.05
    claim = CLAIMS[0]
    (found,) = claims.effects(claim)
    values = [
        [claims.final(of_seed[label]).value for of_seed in claims.trials(claims.sweep(claim)).values()]
        for label in ("cnn", "patches")
    ]
    expected = stats.ttest_rel(*values).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert claims.verdict([found]) == HOLDS


def test_a_claim_about_several_fails_with_one_of_them(invented):
    augmentation = next(claim for claim in CLAIMS if claim.name == "augmentation")
    invented["augment=trivial"] = 0.05
    assert claims.verdict(claims.effects(augmentation)) == HOLDS
    invented["augment=rand"] = 0.1
    rand, none = claims.effects(augmentation)
    assert (rand.verdict, none.verdict) == (FAILS, HOLDS)
    assert rand.difference.value == pytest.approx(-0.05, abs=0.01)
    assert claims.verdict([rand, none]) == FAILS


@pytest.mark.parametrize(
    ("low", "high", "claimed", "expected"),
    [
        (0.02, 0.03, (0.01, math.inf), HOLDS),
        (0.005, 0.03, (0.01, math.inf), UNCLEAR),
        (-0.01, 0.005, (0.01, math.inf), FAILS),
        (-0.005, 0.005, (-0.01, 0.01), HOLDS),
        (-0.005, 0.015, (-0.01, 0.01), UNCLEAR),
        (0.012, 0.015, (-0.01, 0.01), FAILS),
        (0.0, 0.0, (-math.inf, 0), FAILS),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low, high, claimed, expected):
    assert effect(low, high, claimed).verdict == expected


@given(st.lists(st.sampled_from([HOLDS, FAILS, UNCLEAR]), min_size=1))
def test_a_verdict_is_the_worst_of_its_differences(verdicts):
    bounds = {HOLDS: (1, 2), FAILS: (-2, -1), UNCLEAR: (-1, 1)}
    expected = FAILS if FAILS in verdicts else UNCLEAR if UNCLEAR in verdicts else HOLDS
    assert claims.verdict([effect(*bounds[verdict], (0, math.inf)) for verdict in verdicts]) == expected


def test_precision_and_recall_break_even_where_scikit_learn_says(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random((120, 5)) < 0.4
    scores = np.clip(0.2 * labels + 0.7 * rng.random((120, 5)), 0, 1).astype(np.float16)
    write_predictions(tmp_path / "release/predictions", scores, csc_array(labels))
    found = claim_measures.break_even(trial(tmp_path))
    gap = {}
    for threshold in np.unique(scores.astype(np.float64)):
        decisions = scores >= threshold
        precision, recall, *_ = precision_recall_fscore_support(labels, decisions, zero_division=np.nan)
        gap[threshold] = np.nanmean(precision) - np.nanmean(recall)
    first = next(threshold for threshold, difference in gap.items() if difference >= 0)
    assert found.value == pytest.approx(first, abs=0.01)
    assert abs(np.median(found.replicates) - found.value) < 0.1
    assert found.replicates.std() > 0


def test_logs_are_read_where_their_mean_loss_is_lowest_and_at_their_end(tmp_path):
    losses = {"one": (3.0, 2.0, 2.5), "other": (2.5, 2.6, 1.0)}
    for name, of_seed in losses.items():
        (tmp_path / name).mkdir()
        for samples, loss in zip((10, 20, 30), of_seed, strict=True):
            row = {"samples": samples, "val_loss": loss, "val_macro_f1": samples / 100}
            jsonl.append(tmp_path / name / "log.jsonl", row)
    one, other = (trial(tmp_path / name) for name in losses)
    assert [claim_measures.lowest_loss(trials) for trials in ([one], [other], [one, other])] == [20, 30, 30]
    assert claim_measures.logged(one, "val_macro_f1", 20).value == 0.2
    assert claim_measures.logged(one, "val_macro_f1").value == 0.3


def test_the_seed_that_is_measured_does_not_choose_where(invented, monkeypatch):
    """Else its loss would be lowest there by chance, and would always rise to the end."""
    overfitting = next(claim for claim in CLAIMS if claim.name == "overfitting")
    asked = list[set[int]]()

    def choose(trials: list[Trial]) -> int:
        asked.append({of.seed for of in trials})
        return 1

    monkeypatch.setattr(claims, "lowest_loss", choose)
    claims.effects(overfitting)
    assert asked == 2 * [{0, 1, 2, 3, 4} - {seed} for seed in range(5)]


def test_a_claim_whose_trials_are_not_done_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"claims/stem.yaml: 10 of its 10 trials are not done"):
        claims.effects(CLAIMS[0])


def test_a_trial_that_diverged_counts_as_zero(tmp_path):
    assert claim_measures.final(trial(tmp_path)).value == 0


def test_models_are_measured_on_a_source_and_on_what_they_were_trained_on(measured, tmp_path):
    data = measured.with_name("data")
    of = Trial("0", "base", 0, 0.4, tmp_path, measured, [])
    source = Dataset.open(data).sources[0]
    opened = Predictions.open(measured / "predictions")
    rows = opened.sources == 0
    labels, scores = opened.labels.toarray()[rows], opened.scores[rows]
    with_positives = np.flatnonzero(labels.any(0))
    expected = average_precision_score(labels[:, with_positives], scores[:, with_positives])
    assert claim_measures.on_source(of, data, source).value == pytest.approx(expected)
    trained = claim_measures.on_training_images(of, data)
    assert 0 < trained.value <= 1
    assert claim_measures.on_training_images(of, data) == trained, "predicted once"


def test_fp16_loses_what_rounds_to_zero(dataset_directory, tmp_path):
    torch.manual_seed(0)
    stem = "conv:c=8,s=4;ln;relu;conv:c=16,s=4"
    save_release(tmp_path, ViTConfig(6, 32, 2, 16, 16, 32, 2, cnn_stem=stem))
    lost = {
        scale: claim_measures.lost_gradients(tmp_path, dataset_directory, 1.0, scale) for scale in (1e-6, 1.0, 2.0**16)
    }
    assert set(lost[1.0]) == {"all", "stem", "block 1", "block 2", "head"}
    assert lost[1e-6]["all"] > 0.95
    assert lost[1e-6]["all"] > lost[1.0]["all"] > lost[2.0**16]["all"]
    assert lost[2.0**16]["all"] < 0.02
    assert lost[2.0**16] == claim_measures.lost_gradients(tmp_path, dataset_directory, 128.0, 2.0**9), "one factor"


def save_release(directory: Path, config: ViTConfig) -> None:
    """Write a release with random weights."""
    release.save(directory, ViT(config), [f"tag_{i}" for i in range(config.n_tags)], "focal2")


def test_the_page_keeps_what_is_outside_the_markers():
    page = "before\n<!-- results, by make claims -->\nold\n<!-- end -->\nafter"
    filled = claims_page.fill(page, "results", "new")
    assert filled == "before\n<!-- results, by make claims -->\n\nnew\n\n<!-- end -->\nafter"
    assert claims_page.fill(filled, "results", "new") == filled
    for damaged in (page.replace("by make", ""), page.replace("<!-- end -->", "")):
        with pytest.raises(ValueError, match=r"claims.md: lacks the line <!-- results"):
            claims_page.fill(damaged, "results", "new")


def test_the_table_has_a_row_a_claim_and_the_figure_every_effect(tmp_path):
    results = {claim.name: [effect(-0.02, 0.01, (0, math.inf), f"unit {i % 3}")] for i, claim in enumerate(CLAIMS)}
    rows = claims_page.table(CLAIMS, results).splitlines()
    assert len(rows) == 2 + len(CLAIMS)
    assert rows[2] == (
        "| 1 | A CNN stem helps much over plain patches. | unit 0, one − other: −0.005 (−0.020 to +0.010) "
        "| above 0 | too small to tell |"
    )
    ranges = [(-0.01, 0.01), (0.01, math.inf), (-0.01, math.inf), (-math.inf, 0), (-math.inf, 0.01)]
    expected = ["within ±0.01", "above +0.01", "above −0.01", "below 0", "below +0.01"]
    assert [claims_page.claimed(effect(0, 1, each)) for each in ranges] == expected
    claims_page.plot(results, tmp_path / "claims.png")
    with Image.open(tmp_path / "claims.png") as image:
        assert image.height > 300


def test_the_page_names_every_claim_with_its_verdict():
    page = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    for number, claim in enumerate(CLAIMS, 1):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {number} | ")]
        assert claim.text in row
        assert row.endswith(tuple(f"| {verdict} |" for verdict in (HOLDS, FAILS, UNCLEAR)))
        assert f"**{number}. " in page, "a paragraph for each"

"""Invented sweeps whose truth is known: metrics of points by seed, on images that all of them share."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy.sparse import csc_array
from scipy.stats import binomtest
from small_predictions import FACTS, vocabulary

from joytag.core import jsonl
from joytag.data.dataset import Posts
from joytag.evaluation.bootstrap import resample_weights
from joytag.evaluation.predictions_writer import PredictionsWriter
from joytag.evaluation.resampled import Resampled
from joytag.sweeps import results, statistics
from joytag.sweeps.config import Point, Sweep, Trial
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.results import RESAMPLES
from joytag.sweeps.search import plan
from joytag.sweeps.statistics import Finding

SD = 0.02  # of the metric over seeds, of which 0.95 is the training and the rest that a seed suits some images
IMAGES = 400  # of each half
OVER_IMAGES = 0.25  # sd of a point's metric over other images, the same for all of its seeds, in SD

Points = dict[str, dict[int, Resampled]]


def simulate(
    gains: list[float], seeds: range, rng: np.random.Generator, of_images: np.ndarray | None = None, spread: float = 1
) -> Points:
    """Return points whose expected metrics exceed that of the base by 0, for the base itself, and by `gains`.

    The metric is a mean over images of what each contributes: the point's expectation, what the seed adds, what the
    point adds on this image (`of_images` [points, IMAGES], if it differs from zero), and noise. The sd over seeds of
    the last half of the points is `spread` times that of others.
    """
    expected = 0.5 + np.array([0.0, *gains])
    n = len(expected)
    deviation = SD * np.where(np.arange(n) > n // 2, spread, 1.0)[:, None]
    trained = rng.normal(0, np.sqrt(0.9) * deviation, (n, len(seeds)))
    noise = rng.normal(0, np.sqrt(0.1 * IMAGES) * deviation[..., None], (n, len(seeds), IMAGES))
    contributions = (expected[:, None] + trained)[..., None] + noise + rng.normal(0, 0.3, IMAGES)
    if of_images is not None:
        contributions += of_images[:, None]
    weights = np.concatenate(list(resample_weights(IMAGES, resamples=RESAMPLES)), axis=1) / IMAGES
    means, replicates = contributions.mean(-1), contributions @ weights
    return {f"p{p}": {seed: Resampled(means[p, s], replicates[p, s]) for s, seed in enumerate(seeds)} for p in range(n)}


def image_effects(points: int, rng: np.random.Generator) -> np.ndarray:
    """Return what other images would change in each point's metric: [points, IMAGES]."""
    return rng.normal(0, OVER_IMAGES * SD * np.sqrt(IMAGES), (points, IMAGES))


@dataclass(frozen=True)
class Rates:
    """How often something happened, of a number of simulated sweeps, with a 95 % interval (Clopper and Pearson)."""

    happened: int
    sweeps: int

    def __str__(self) -> str:
        interval = binomtest(self.happened, self.sweeps).proportion_ci()
        return f"{self.happened / self.sweeps:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def winner(findings: dict[str, Finding]) -> str | None:
    """Return the point with the highest metric among those that beat the base by more than noise."""
    better = {point: finding.mean for point, finding in findings.items() if finding.is_better}
    return max(better, key=better.__getitem__, default=None)


def find(gains: list[float], seeds: int, seed: int, spread: float = 1) -> dict[str, Finding]:
    """Return the findings of one simulated sweep, `gains` in SD."""
    rng = np.random.default_rng(seed)
    effects = image_effects(len(gains) + 1, rng)
    points = simulate([gain * SD for gain in gains], range(seeds), rng, effects, spread)
    return statistics.compare(points, len(gains))


# Macro F1 of one real run on the emoji dataset, after each twentieth of its 24,000 samples.
RECORDED = """
    0.0030 0.0030 0.0388 0.0853 0.1432 0.1665 0.1766 0.1922 0.2394 0.2608
    0.3125 0.2778 0.3442 0.3609 0.3683 0.3879 0.4097 0.3993 0.4132 0.4103
"""
SHARES = np.arange(1, 21) / 20
SHAPE = np.array([float(value) for value in RECORDED.split()])


def curves(
    points: int, seeds: int, rng: np.random.Generator
) -> tuple[dict[str, dict[int, list[tuple[float, float]]]], str]:
    """Return curves by point and seed, shaped like the recorded one, over shares of the samples; and the best point.

    Points differ in how high they get, by 12 %, and in how fast, by 3 %. Seeds differ by 5 % of the metric, as those of
    the quickstart do, and each evaluation by 2 %.
    """
    height, speed = rng.lognormal(0, 0.12, points), rng.lognormal(0, 0.03, points)
    expected = {f"p{p}": height[p] * np.interp(SHARES * speed[p], [0, *SHARES], [0, *SHAPE]) for p in range(points)}
    curves = {
        point: {
            seed: list(
                zip(
                    SHARES.tolist(),
                    (curve * (1 + rng.normal(0, 0.05) + rng.normal(0, 0.02, len(curve)))).tolist(),
                    strict=True,
                )
            )
            for seed in range(seeds)
        }
        for point, curve in expected.items()
    }
    return curves, max(expected, key=lambda point: expected[point][-1])


def open_sweep(directory: Path, run: dict, **settings: object) -> Sweep:
    """Write a sweep of two axes over a run's settings, and open it."""
    directory.mkdir(exist_ok=True)
    (directory / "base.yaml").write_text(yaml.safe_dump({**run, "optimizer": {"lr": 0.01}}), encoding="utf-8")
    stems = {"convolutions": {}, "<b>patch</b>": {"model.cnn_stem": None}}
    axes = {"optimizer.lr": {"log": [0.001, 0.1], "points": 3}, "stem": stems}
    values = {"base": "base.yaml", "output": str(directory / "lr_and_stem"), "axes": axes, "seeds": 3, **settings}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return Sweep(directory / "sweep.yaml")


def trials(points: list[Point]) -> list[Trial]:
    """Return all trials of points."""
    return [trial for point in points for trial in point.trials]


def strength(name: str) -> float:
    """Return how good a trial's model is, but for its seed: best at the highest rate, worse without convolutions."""
    rate = float(found[1]) if (found := re.search(r"optimizer\.lr=(\S+)", name)) else 0.01
    return 2 + 0.6 * np.log10(rate / 0.01) - 0.5 * ("cnn_stem=null" in name)


def finish(sweep: Sweep, trial: Trial, ledger: Ledger, gain: float = 1.0, positives: float = 0.3) -> None:
    """Write what a finished trial leaves, and record it; `gain` multiplies what points differ by."""
    rng = np.random.default_rng(0)
    labels = csc_array(rng.random((240, 6)) < positives)
    common, own = rng.normal(size=labels.shape), np.random.default_rng(zlib.crc32(trial.name.encode()))
    height = 2 + gain * (strength(trial.name) - 2) + own.normal(0, 0.05)
    logits = height * labels.toarray() + 0.8 * common + 0.3 * own.normal(size=labels.shape) - 2
    write_predictions(trial.results / "predictions", (1 / (1 + np.exp(-logits))).astype(np.float16), labels)
    for samples in (48, 96, 144, 184):
        row = {"samples": samples, "val_macro_f1": 0.2 * height * (samples / 184) ** 0.5}
        jsonl.append(trial.directory / "log.jsonl", row)
    ledger.append("started", trial.id)
    ledger.append("done", trial.id, value=results.measure(sweep, trial).value, of=sweep.measure, seconds=1.0)


def write_predictions(directory: Path, scores: np.ndarray, labels: csc_array) -> None:
    """Write finished predictions: scores float16 [P, N] and labels bool [P, N]."""
    images, n_tags = scores.shape
    by_image = labels.tocsr()
    posts = Posts(
        ids=np.arange(images),
        offsets=by_image.indptr.astype(np.int32),
        tags=by_image.indices.astype(np.int16),
        hashes=np.random.default_rng(0).integers(0, 256, (images, 32), dtype=np.uint8),
        sources=np.zeros(images, dtype=np.int16),
    )
    writer = PredictionsWriter(directory, images, n_tags, images)
    writer.begin(FACTS)
    writer.write(0, np.arange(images), scores, [], 0)
    writer.finish(posts, labels, vocabulary(n_tags))


def finish_all(sweep: Sweep, gain: float = 1.0) -> tuple[list[Point], Ledger]:
    """Finish all trials of a sweep, those that confirm too."""
    sweep.output.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(sweep.output)
    while waiting := [trial for trial in trials(plan(sweep, ledger)) if not ledger.is_over(trial.id)]:
        for trial in waiting:
            finish(sweep, trial, ledger, gain=gain)
    return plan(sweep, ledger), ledger

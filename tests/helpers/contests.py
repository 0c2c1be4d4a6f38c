"""Invented taggers of known strength, for tests of comparisons."""

import numpy as np
from scipy.sparse import csc_array

from joytag.data.dataset import TagTable
from joytag.evaluation.comparison import Comparison, Contender, compare

FACTS = {"kind": "release", "path": "runs/x", "images": 9, "tags": 9, "image_size": 64}


def contest(
    strengths: list[float], images: int = 1500, n_tags: int = 12, seed: int = 0, rarest: float = 0.02
) -> tuple[list[Contender], csc_array, TagTable]:
    """Return taggers, labels and tags; a stronger tagger separates images with and without a tag better.

    Each tagger's scores contain noise of its own and noise that all share. Tags occur on 40 % of the images down to
    `rarest`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.random((images, n_tags)) < np.geomspace(0.4, rarest, n_tags)
    common = rng.normal(size=labels.shape)
    contenders = []
    for letter, strength in zip("ABCD", strengths, strict=False):
        logits = strength * labels + 0.8 * common + 0.6 * rng.normal(size=labels.shape) - 2
        scores = (1 / (1 + np.exp(-logits))).astype(np.float16)
        contenders.append(Contender(letter, f"tagger <{letter}>", 0.4, scores, FACTS))
    names = [f"tag_{i}" for i in range(n_tags)]
    categories = np.where(np.arange(n_tags) < n_tags // 2, 0, 4).astype(np.int8)
    counts = np.arange(n_tags, dtype=np.int64)[::-1] * 100
    return contenders, csc_array(labels), TagTable(names, categories, counts, counts)


def with_scores(contender: Contender, letter: str, scores: np.ndarray) -> Contender:
    return Contender(letter, letter, contender.threshold, scores.astype(np.float16), FACTS)


def clear_and_noisy_comparison() -> Comparison:
    """Compare A, B and C: A is clearly better than B; C is A with negligible noise."""
    (a, b), labels, tags = contest([2.5, 2.0])
    noise = np.random.default_rng(1).normal(0, 0.003, a.scores.shape)
    c = with_scores(a, "C", (a.scores + noise).clip(0, 1))
    return compare([a, b, c], labels, tags, {"labels": "data/x"})

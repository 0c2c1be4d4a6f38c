"""The order in which people are asked about one tag, what their answers say about the others, and when to stop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from joytag.core.settings import Settings

AUDITED = 0.1  # share of the images above the threshold that are asked about in random order
EVERY = 10  # one question in so many is about one of them
ENOUGH = 60  # answers in a row that agree with the model: in 95 % of such cases fewer than 1 in 20 others would not
RELIABLE = 0.9  # precision from which on nobody need look at what is left
CONFIDENCE = 0.95
STEEPNESS = 8  # of the score of an unknown tag: log-odds for a cosine of 1
PART = 4096  # images that are compared at once
WINDOW = 2  # pages of candidates from which one without neighbours is chosen: it delays no image by more than a page
NEIGHBOURS = 0.9  # cosine of the scores of two images from which on they are not shown one after the other

Vectors = Callable[[NDArray[np.int64]], NDArray[np.floating]]  # of some images: [n] to [n, D]


class Precision(Settings):
    """The share of images with the tag among those above its threshold that nobody has decided on, estimated."""

    right: int
    """Images with the tag, of those seen."""
    seen: int
    """Images drawn at random that represent what is left, and are decided."""
    low: float
    """Lower end of the interval, which covers the share in at least 95 % of all cases."""
    high: float
    """Upper end of the interval."""


def logits(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return log-odds; a score that float16 rounds to 0 or 1 has those of the nearest one that it does not."""
    clipped = np.clip(scores.astype(np.float64), 2.0**-24, 1 - 2.0**-11)
    return np.log(clipped / (1 - clipped))


def information(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much a decision on each image is worth, [P]; takes logits beyond the tag's threshold.

    That is the variance of the answer, p (1 - p), as in uncertainty sampling (Lewis & Gale 1994), and what it is worth
    to find an image with the tag, (1 - rate) p / 2: the rarer a tag, the earlier come those that surely seem to have
    it, beside those that seem not to.
    """
    p = 1 / (1 + np.exp(-margins))
    return p * (1 - p) + (1 - (p.mean() if len(p) else 0)) / 2 * p


@dataclass
class TagQueue:
    """The questions about one tag: its `scores`, [P], for the images, and the answers to those that are decided.

    A tenth of the images above the threshold, drawn by a hash of seed, tag and image, is set aside: it is asked about
    in random order, one question in EVERY. `answers` are in the order in which they were given.
    """

    tag: str
    images: Sequence[str]
    scores: NDArray[np.floating]
    threshold: float
    answers: Mapping[str, str]
    seed: int = 0

    def __post_init__(self) -> None:
        self.margins = logits(self.scores) - logits(np.array(self.threshold))
        self.is_left = np.array([image not in self.answers for image in self.images], dtype=bool)
        self.draws = np.ones(len(self.images))
        for i in np.flatnonzero(self.margins > 0).tolist():
            digest = hashlib.blake2b(f"{self.seed} {self.tag} {self.images[i]}".encode(), digest_size=8).digest()
            self.draws[i] = int.from_bytes(digest) / 2**64
        self.ranks = np.argsort(-information(self.margins), kind="stable")

    @property
    def is_audited(self) -> NDArray[np.bool_]:
        """Whether an image is set aside, [P]."""
        return self.draws < AUDITED

    def page(self, count: int, vectors: Vectors) -> NDArray[np.int64]:
        """Return the next images to ask about, at most `count` indices; neighbours do not follow each other."""
        main = self.ranks[(self.is_left & ~self.is_audited)[self.ranks]]
        audit = np.argsort(self.draws, kind="stable")
        audit = audit[(self.is_left & self.is_audited)[audit]]
        audits = min(len(audit), max(count // EVERY, count - len(main)))
        places_of = {image: place for place, image in enumerate(self.images)}
        recent = np.array([places_of[image] for image in list(self.answers)[-count:] if image in places_of], np.int64)
        main = thin(main[: WINDOW * count], recent, vectors, count - audits)
        return np.insert(main, np.minimum(np.arange(1, audits + 1) * (EVERY - 1), len(main)), audit[:audits])

    def precision(self) -> Precision:
        """Estimate the precision among what is left above the threshold, from the images set aside.

        The first of them that are decided on are a simple random sample of all images above the threshold. One counts
        for what is left if its neighbour in the order, by which the others are asked about, is still left. Unsure
        answers do not count.
        """
        above = self.ranks[self.margins[self.ranks] > 0]
        others = np.flatnonzero(~self.is_audited[above])
        if len(others) == 0:
            return interval(0, 0)
        nearest = others[np.minimum(np.searchsorted(others, np.arange(len(above))), len(others) - 1)]
        represents_left = dict(zip(above.tolist(), self.is_left[above[nearest]].tolist(), strict=True))
        answers = []
        for i in np.argsort(self.draws, kind="stable"):
            if self.draws[i] >= AUDITED or self.is_left[i]:
                break
            if represents_left[int(i)] and (answer := self.answers[self.images[i]]) != "unsure":
                answers.append(answer == "yes")
        return interval(sum(answers), len(answers))

    def left(self) -> tuple[int, int]:
        """Return how many images nobody has decided on: above the threshold, and in all."""
        return int((self.is_left & (self.margins > 0)).sum()), int(self.is_left.sum())

    def reason_to_stop(self) -> str:
        """Return why there is no need to go on, in one sentence; "" if there is."""
        above, left = self.left()
        if not left:
            return "Every image is decided."
        if above and (low := self.precision().low) >= RELIABLE:
            return f"At least {low:.0%} of the {above:,} images left above the threshold have the tag."
        margins = dict(zip(self.images, self.margins.tolist(), strict=True))
        last = [(image, answer) for image, answer in self.answers.items() if image in margins][-ENOUGH:]
        if len(last) == ENOUGH and all((margins[image] > 0) == (answer == "yes") for image, answer in last):
            return f"The last {ENOUGH} answers agreed with the model."
        return ""


def interval(right: int, seen: int) -> Precision:
    """Return a share of which `right` of `seen` were found, with the interval of Clopper and Pearson (1934)."""
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, right, seen - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, seen - right)) if right < seen else 1.0
    return Precision(right=right, seen=seen, low=low, high=high)


def thin(order: NDArray[np.int64], recent: NDArray[np.int64], vectors: Vectors, count: int) -> NDArray[np.int64]:
    """Return the first `count` of `order` that are neighbours neither of `recent` ones nor of each other.

    If they do not suffice, the first others follow.
    """
    shown = list(normalized(vectors(recent))) if len(recent) else []
    units = normalized(vectors(order))
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) < count and not (shown and (np.stack(shown) @ units[i]).max() >= NEIGHBOURS):
            kept.append(i)
            shown.append(units[i])
    others = [i for i in range(len(order)) if i not in set(kept)]
    return order[[*kept, *others][:count]]


def normalized(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors of length 1, [n, D]."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def scores_by_example(n: int, vectors: Vectors, yes: list[int], no: list[int]) -> NDArray[np.float64]:
    """Return scores of a tag that the model does not know for `n` images, by how near they are to the decided ones.

    The score is 0.5 where the nearest other image with the tag is as near as the nearest other one without it.
    """
    examples = normalized(vectors(np.array([*yes, *no], dtype=np.int64)))
    nearest = np.zeros((n, 2))
    for start in range(0, n if len(examples) else 0, PART):
        rows = np.arange(start, min(start + PART, n))
        cosines = normalized(vectors(rows)) @ examples.T
        cosines[np.equal.outer(rows, np.array([*yes, *no]))] = 0  # itself
        for column, part in enumerate(np.split(cosines, [len(yes)], axis=1)):
            nearest[rows, column] = part.max(axis=1, initial=0)
    return 1 / (1 + np.exp(-STEEPNESS * (nearest[:, 0] - nearest[:, 1])))

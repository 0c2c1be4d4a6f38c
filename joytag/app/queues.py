"""The order in which people are asked about one tag, what their answers say about the others, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binomtest

from joytag.core.settings import Settings

AUDITED = 0.1  # share of the images above the threshold that are asked about in random order
EVERY = 10  # one question in so many is about one of them
ENOUGH = 60  # answers in a row that agree with the model: in 95 % of such cases fewer than 1 in 20 others would not
RELIABLE = 0.9  # precision from which on nobody need look at what is left
STEEPNESS = 4  # of the score of an unknown tag: log-odds by which a certain yes and a certain no differ
EXAMPLES = 1000  # the last ones with a yes and the last ones with a no that scores of an unknown tag follow from
PART = 2048  # images that are computed at once
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
    return logit(np.clip(scores.astype(np.float64), 2.0**-24, 1 - 2.0**-11))


LOGITS = logits(np.arange(0x3C01, dtype=np.uint16).view(np.float16)).astype(np.float32)  # of float16, 0 to 1, by bits


def information(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much a decision on each image is worth, [P]; takes logits beyond the tag's threshold.

    That is the variance of the answer, p (1 - p), as in uncertainty sampling (Lewis & Gale 1994), and what it is worth
    to find an image with the tag, (1 - rate) p / 2: the rarer a tag, the earlier come those that surely seem to have
    it, beside those that seem not to.
    """
    p = expit(margins)
    return p * (1 - p) + (1 - (p.mean() if len(p) else 0)) / 2 * p


@dataclass
class TagQueue:
    """The questions about one tag: its `scores`, [P], for the images, and the answers to those that are decided.

    A tenth of the images above the threshold, drawn by a hash of tag and image, is set aside: it is asked about
    in random order, one question in EVERY. `answers` are in the order in which they were given.
    """

    tag: str
    images: Sequence[str]
    scores: NDArray[np.floating]
    threshold: float
    answers: Mapping[str, str]

    def __post_init__(self) -> None:
        self.margins = logits(self.scores) - logits(np.array(self.threshold))
        positions = {image: position for position, image in enumerate(self.images)}
        self.asked = np.array([positions[image] for image in self.answers if image in positions], dtype=np.int64)
        self.is_left = ~np.isin(np.arange(len(self.images)), self.asked)
        self.draws = np.ones(len(self.images))
        for i in np.flatnonzero(self.margins > 0).tolist():
            self.draws[i] = int.from_bytes(blake2b(f"{self.tag} {self.images[i]}".encode()).digest()) / 2**512
        self.is_audited = self.draws < AUDITED
        self.audit = np.argsort(self.draws, kind="stable")[: self.is_audited.sum()]
        self.ranks = np.argsort(-information(self.margins), kind="stable")

    def page(self, count: int, vectors: Vectors) -> NDArray[np.int64]:
        """Return the next images to ask about, at most `count` indices; neighbours do not follow each other."""
        main = self.ranks[(self.is_left & ~self.is_audited)[self.ranks]]
        audit = self.audit[self.is_left[self.audit]]
        audits = min(len(audit), max(count // EVERY, count - len(main)))
        main = thin(main[: WINDOW * count], self.asked[-count:], vectors, count - audits)
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
        first = self.audit[: int(np.argmax(np.append(self.is_left[self.audit], True)))].tolist()
        answers = [self.answers[self.images[i]] for i in first if represents_left[i]]
        return interval(answers.count("yes"), len(answers) - answers.count("unsure"))

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
        last = self.asked[-ENOUGH:].tolist()
        if len(last) == ENOUGH and all((self.margins[i] > 0) == (self.answers[self.images[i]] == "yes") for i in last):
            return f"The last {ENOUGH} answers agreed with the model."
        return ""


def interval(right: int, seen: int) -> Precision:
    """Return a share of which `right` of `seen` were found, with the 95 % interval of Clopper and Pearson (1934)."""
    low, high = binomtest(right, seen).proportion_ci() if seen else (0.0, 1.0)
    return Precision(right=right, seen=seen, low=low, high=high)


def thin(order: NDArray[np.int64], recent: NDArray[np.int64], vectors: Vectors, count: int) -> NDArray[np.int64]:
    """Return the first `count` of `order` that are neighbours neither of `recent` ones nor of each other.

    If they do not suffice, the first others follow.
    """
    units = vectors(np.concatenate([recent, order])).astype(np.float32)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    is_near, shown = units @ units.T >= NEIGHBOURS, list(range(len(recent)))
    for i in range(len(recent), len(units)):
        if not is_near[i, shown].any():
            shown.append(i)
    return order[np.argsort(~np.isin(np.arange(len(recent), len(units)), shown), kind="stable")[:count]]


def scores_by_example(n: int, vectors: Vectors, yes: list[int], no: list[int]) -> NDArray[np.floating]:
    """Return scores of a tag that the model does not know for `n` images, learned from the decided ones.

    This is ridge regression of the answers on the log-odds of the tags that the model knows, in its dual form. The
    score of a decided image follows from the other ones. Until an image with the tag is found, all score the same.
    """

    def features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return LOGITS[vectors(rows).astype(np.float16).view(np.uint16)]

    decided = np.array([*yes[-EXAMPLES:], *no[-EXAMPLES:]], dtype=np.int64)
    if not yes:
        return np.full(n, expit(-STEEPNESS / 2))
    sample, targets = features(np.arange(0, n, n // PART + 1)), np.isin(decided, yes)
    centre, ridge = sample.mean(axis=0), 1 + sample.var(axis=0).sum()
    examples = features(decided) - centre
    inverse = np.linalg.inv(examples @ examples.T + ridge * np.eye(len(decided)))
    dual = inverse @ targets
    slopes = (dual @ examples).astype(np.float32)
    parts = [features(rows) @ slopes for rows in np.array_split(np.arange(n), n // PART + 1)]
    values = np.concatenate(parts) - centre @ slopes
    values[decided] = targets - dual / np.diag(inverse)
    return expit(STEEPNESS * (values - 0.5))

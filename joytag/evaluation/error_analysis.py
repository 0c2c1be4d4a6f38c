"""Disagreements of decisions and labels: confused tags, the worst errors, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.metrics import VALUES

CONFUSIONS = 50  # in a list
MIN_IMAGES = 3  # of a confusion listed by share
MIN_LIFT = 2  # of a confusion: how many times as often as expected if the two errors were independent
WORST = 24  # disagreements in a list, each of a different image
WORST_PER_TAG = 2
LABEL_ERRORS = 200  # in the list


class Confusion(NamedTuple):
    """A labelled tag that was missed, and a tag that was wrongly predicted on the same images.

    `images`: their number; `share`: of the images on which `labelled` was missed.
    """

    labelled: str
    predicted: str
    images: int
    share: float


class Disagreement(NamedTuple):
    """A decision that differs from the label: `row` of Predictions, `tag`, score.

    `labelled`: a miss if true, a false positive if false. `confidence`: from 0 to 1, that the label is wrong and not
    the decision; see `disagreements`.
    """

    row: int
    tag: int
    score: float
    labelled: bool
    confidence: float


def missed_and_wrong(labels: csc_array, decisions: csc_array) -> tuple[csc_array, csc_array]:
    """Return the labels that are not predicted, and the predictions that are not labelled, bool [P, N]."""
    return csc_array(labels > decisions), csc_array(decisions > labels)


def confusions(
    labels: csc_array, decisions: csc_array, names: Sequence[str]
) -> tuple[list[Confusion], list[Confusion]]:
    """Return pairs of a missed tag and a tag wrongly predicted on the same images: the commonest, and those by share.

    Lists only pairs that occur at least MIN_LIFT times as often as if the two errors were independent; by share, only
    those on MIN_IMAGES.
    """
    missed, wrong = (matrix.tocsr() for matrix in missed_and_wrong(labels, decisions))
    pairs = (missed.T.astype(np.int32) @ wrong.astype(np.int32)).tocoo()
    n_missed, n_wrong = missed.sum(0), wrong.sum(0)
    first, second = pairs.coords
    images = pairs.data
    related = images * labels.shape[0] >= MIN_LIFT * n_missed[first] * n_wrong[second]
    share = images / n_missed[first]

    def first_pairs(by: NDArray[np.number], where: NDArray[np.bool_]) -> list[Confusion]:
        candidates = np.flatnonzero(where)
        best = candidates[np.lexsort((second[candidates], first[candidates], -images[candidates], -by[candidates]))]
        return [
            Confusion(names[first[i]], names[second[i]], int(images[i]), float(share[i])) for i in best[:CONFUSIONS]
        ]

    return first_pairs(images, related), first_pairs(share, related & (images >= MIN_IMAGES))


@dataclass(frozen=True)
class Disagreements:
    """Decisions that differ from the labels, as columns: the fields of Disagreement, in arrays of one length."""

    row: NDArray[np.int64]
    tag: NDArray[np.int64]
    score: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    confidence: NDArray[np.float64]

    def select(self, order: NDArray[np.int64]) -> list[Disagreement]:
        """Return some of them, by index."""
        columns = (self.row, self.tag, self.score, self.labelled, self.confidence)
        return [Disagreement(*values) for values in zip(*(column[order].tolist() for column in columns), strict=True)]


def disagreements(scores: NDArray[np.float16], labels: csc_array, decisions: csc_array) -> Disagreements:
    """Return all decisions that differ from the labels, with the confidence that the label is wrong.

    Takes scores float16 [P, N], labels and decisions bool [P, N]. A score is compared with the scores of the same tag
    on other images, in the spirit of confident learning (Northcutt et al. 2021): a tag that the model has not learned,
    or scores low in general, gives no confidence. For a false positive, the confidence is the precision at its score
    (the share with the tag among images that score at least as high) times the share of the images with the tag that
    score lower. For a miss, it is the share of the images without the tag that score higher, times
    1 - (share with) / (share without), the shares of images with and without the tag that score at most as high.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    missed, wrong = missed_and_wrong(labels, decisions)
    tag = 0
    for levels, table in metrics.histograms(scores, labels):
        for own, (negative, positive) in zip(levels, np.moveaxis(table, 1, 0), strict=True):
            for matrix, labelled in ((wrong, False), (missed, True)):
                rows = matrix.indices[matrix.indptr[tag] : matrix.indptr[tag + 1]]
                if len(rows):
                    at = own[rows]
                    confidence = (_miss if labelled else _false_positive)(negative, positive, at)
                    parts.append((rows, np.full(len(rows), tag), VALUES[at], np.full(len(rows), labelled), confidence))
            tag += 1
    if not parts:
        return Disagreements(*(np.zeros(0, dtype=kind) for kind in (int, int, float, bool, float)))
    return Disagreements(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _false_positive(
    negative: NDArray[np.int32], positive: NDArray[np.int32], at: NDArray[np.uint16]
) -> NDArray[np.float64]:
    """Return the confidence of false positives at levels; takes the images without and with the tag by level."""
    n = positive.sum()
    lower = np.cumsum(positive)[at] - positive[at]
    higher = np.cumsum((negative + positive)[::-1])[::-1][at]
    return (n - lower) / higher * lower / max(n, 1)


def _miss(negative: NDArray[np.int32], positive: NDArray[np.int32], at: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return the confidence of misses at levels; takes the images without and with the tag by level."""
    n, others = positive.sum(), max(negative.sum(), 1)
    without = np.cumsum(negative)[at] / others
    ratio = np.cumsum(positive)[at] / n / np.maximum(without, 1 / others)
    return np.maximum(1 - ratio, 0) * (1 - without)


def worst_disagreements(errors: Disagreements) -> tuple[list[Disagreement], list[Disagreement]]:
    """Return the worst false positives, by score, and the worst misses, by confidence: WORST different images each."""
    by_score = np.lexsort((errors.tag, errors.row, -errors.score))
    by_confidence = np.lexsort((errors.tag, errors.row, -errors.confidence))
    wrong, missed = by_score[~errors.labelled[by_score]], by_confidence[errors.labelled[by_confidence]]
    return errors.select(_varied(errors, wrong)), errors.select(_varied(errors, missed))


def _varied(errors: Disagreements, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first WORST of different images, at most WORST_PER_TAG of each tag."""
    images: set[int] = set()
    tags: dict[int, int] = {}
    chosen = []
    for i in order:
        row, tag = int(errors.row[i]), int(errors.tag[i])
        if row not in images and tags.get(tag, 0) < WORST_PER_TAG:
            chosen.append(i)
            images.add(row)
            tags[tag] = tags.get(tag, 0) + 1
            if len(chosen) == WORST:
                break
    return np.array(chosen, dtype=np.int64)


def label_errors(errors: Disagreements) -> list[Disagreement]:
    """Return the labels that are most likely wrong, by confidence: up to half of them missing, half superfluous."""
    by_confidence = np.lexsort((errors.tag, errors.row, -errors.confidence))
    kinds = [
        by_confidence[errors.labelled[by_confidence] == labelled][: LABEL_ERRORS // 2] for labelled in (False, True)
    ]
    both = np.concatenate(kinds)
    return errors.select(both[np.argsort(-errors.confidence[both], kind="stable")])

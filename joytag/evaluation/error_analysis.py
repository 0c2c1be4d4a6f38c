"""Where decisions and labels disagree: tags taken for others, the worst mistakes, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array

from joytag.evaluation import metrics
from joytag.evaluation.metrics import VALUES

COMMONEST = 50  # confusions that are listed
FEW = 3  # images that a confusion must have to be listed by its share
CHANCE = 2  # how much commoner than by chance a confusion must be
SHOWN = 24  # mistakes in a gallery, of which each is of another image
OF_ONE_TAG = 2  # of these
LISTED = 200  # labels that may be wrong


class Confusion(NamedTuple):
    """A tag that was labelled and missed, and one that was predicted there instead."""

    labelled: str
    predicted: str
    images: int  # where that happened
    share: float  # of the images in which `labelled` was missed


class Disagreement(NamedTuple):
    """A decision that is not the label's: where (a row of Predictions, an output), and how sure it was."""

    row: int
    tag: int
    score: float
    labelled: bool  # a miss if True, a false positive if not
    confidence: float  # that the label is wrong and not the decision, 0 to 1; see `disagreements`


def missed_and_wrong(labels: csc_array, decisions: csc_array) -> tuple[csc_array, csc_array]:
    """Labels that are not predicted, and predictions that are not labelled, bool [P, N]."""
    return csc_array(labels > decisions), csc_array(decisions > labels)


def confusions(
    labels: csc_array, decisions: csc_array, names: Sequence[str]
) -> tuple[list[Confusion], list[Confusion]]:
    """Pairs of a missed tag and one predicted wrongly on the same images: the commonest, and those by share.

    Only pairs are listed that occur at least CHANCE times as often as they would if the two mistakes had nothing to do
    with each other; by share, only those with FEW images.
    """
    missed, wrong = (made.tocsr() for made in missed_and_wrong(labels, decisions))
    pairs = (missed.T.astype(np.int32) @ wrong.astype(np.int32)).tocoo()
    n_missed, n_wrong = missed.sum(0), wrong.sum(0)
    first, second = pairs.coords
    images = pairs.data
    telling = images * labels.shape[0] >= CHANCE * n_missed[first] * n_wrong[second]
    share = images / n_missed[first]

    def listed(by: np.ndarray, where: np.ndarray) -> list[Confusion]:
        candidates = np.flatnonzero(where)
        best = candidates[np.lexsort((second[candidates], first[candidates], -images[candidates], -by[candidates]))]
        return [Confusion(names[first[i]], names[second[i]], int(images[i]), float(share[i])) for i in best[:COMMONEST]]

    return listed(images, telling), listed(share, telling & (images >= FEW))


@dataclass(frozen=True)
class Disagreements:
    """Decisions that are not the labels', as columns: what Mistake holds, arrays of one length."""

    row: np.ndarray
    tag: np.ndarray
    score: np.ndarray
    labelled: np.ndarray
    confidence: np.ndarray

    def select(self, order: np.ndarray) -> list[Disagreement]:
        """Some of them, by index."""
        columns = (self.row, self.tag, self.score, self.labelled, self.confidence)
        return [Disagreement(*values) for values in zip(*(column[order].tolist() for column in columns), strict=True)]


def disagreements(scores: np.ndarray, labels: csc_array, decisions: csc_array) -> Disagreements:
    """All decisions that are not the labels', with the confidence that it is the label that is wrong.

    Takes scores float16 [P, N], labels and decisions bool [P, N]. A score is judged by what other images have of the
    same tag, in the spirit of confident learning (Northcutt et al. 2021): a tag that the model does not know, or scores
    low as a rule, gives no confidence. Of a false positive it is the precision at its score (the share with the
    tag among images that score no less) times the share of the images with the tag that score lower; of a miss, the
    share of the images without the tag that score higher times how much rarer scores like its own or lower are
    with the tag than without, 1 - (share with) / (share without).
    """
    parts: list[tuple[np.ndarray, ...]] = []
    missed, wrong = missed_and_wrong(labels, decisions)
    tag = 0
    for levels, table in metrics.histograms(scores, labels):
        for own, (negative, positive) in zip(levels, np.moveaxis(table, 1, 0), strict=True):
            for made, labelled in ((wrong, False), (missed, True)):
                rows = made.indices[made.indptr[tag] : made.indptr[tag + 1]]
                if len(rows):
                    at = own[rows]
                    confidence = (_miss if labelled else _false_positive)(negative, positive, at)
                    parts.append((rows, np.full(len(rows), tag), VALUES[at], np.full(len(rows), labelled), confidence))
            tag += 1
    if not parts:
        return Disagreements(*(np.zeros(0, dtype=kind) for kind in (int, int, float, bool, float)))
    return Disagreements(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _false_positive(negative: np.ndarray, positive: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The confidence of false positives at levels; takes how many images of either kind have each level."""
    n = positive.sum()
    lower = np.cumsum(positive)[at] - positive[at]
    higher = np.cumsum((negative + positive)[::-1])[::-1][at]
    return (n - lower) / higher * lower / max(n, 1)


def _miss(negative: np.ndarray, positive: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The confidence of misses at levels; takes how many images of either kind have each level."""
    n, others = positive.sum(), max(negative.sum(), 1)
    without = np.cumsum(negative)[at] / others
    ratio = np.cumsum(positive)[at] / n / np.maximum(without, 1 / others)
    return np.maximum(1 - ratio, 0) * (1 - without)


def worst_disagreements(found: Disagreements) -> tuple[list[Disagreement], list[Disagreement]]:
    """The worst false positives, by score, and the worst misses, by confidence; at most OF_ONE_TAG of each tag."""
    by_score = np.lexsort((found.tag, found.row, -found.score))
    by_confidence = np.lexsort((found.tag, found.row, -found.confidence))
    wrong, missed = by_score[~found.labelled[by_score]], by_confidence[found.labelled[by_confidence]]
    return found.select(_varied(found, wrong)), found.select(_varied(found, missed))


def _varied(found: Disagreements, order: np.ndarray) -> np.ndarray:
    """The first SHOWN of another image each, with at most OF_ONE_TAG of each tag."""
    images: set[int] = set()
    tags: dict[int, int] = {}
    chosen = []
    for i in order:
        row, tag = int(found.row[i]), int(found.tag[i])
        if row not in images and tags.get(tag, 0) < OF_ONE_TAG:
            chosen.append(i)
            images.add(row)
            tags[tag] = tags.get(tag, 0) + 1
            if len(chosen) == SHOWN:
                break
    return np.array(chosen, dtype=np.int64)


def label_errors(found: Disagreements) -> list[Disagreement]:
    """The labels that are most probably wrong, the surest first: half of the list wanting, half too many if it can."""
    by_confidence = np.lexsort((found.tag, found.row, -found.confidence))
    kinds = [by_confidence[found.labelled[by_confidence] == labelled][: LISTED // 2] for labelled in (False, True)]
    both = np.concatenate(kinds)
    return found.select(both[np.argsort(-found.confidence[both], kind="stable")])

"""Choose the validation images at random, with every tag and source represented and families together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from data_prep.config import Validation
from data_prep.tags import Rows

RULES = 2  # the version of the rules below, which decide who is held out
CHUNK = 1 << 15  # images whose labels are in memory together
MOST = 0.2  # largest share of the images in validation, unless more are asked for
GIANT = 10  # images of the largest group that can always be held out, or more: a hundredth of those to hold out
SPARE = 64  # images of a label to try in addition to those that it needs


def shuffled(groups: np.ndarray, seed: int) -> np.ndarray:
    """Return, for each image, the position of its group in a random order of the groups, int64 [rows]."""
    _, group = np.unique(groups, return_inverse=True)
    return np.argsort(np.random.default_rng(seed).permutation(group.max(initial=-1) + 1))[group]


class _Shuffle(NamedTuple):
    """Groups of images in random order.

    `position` (int64 [rows]) is that of each image's group. `rows` (int64 [rows]) lists the images by position; those
    of the group at position p are `rows[bounds[p]:bounds[p + 1]]`.
    """

    position: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray) -> _Shuffle:
        names, position = np.unique(groups, return_inverse=True)
        rows = np.argsort(position, kind="stable")
        return cls(position, rows, np.searchsorted(position[rows], np.arange(len(names) + 1)))

    def chunks(self) -> Iterator[np.ndarray]:
        return (self.rows[start : start + CHUNK] for start in range(0, len(self.rows), CHUNK))

    def members(self, position: int) -> np.ndarray:
        return self.rows[self.bounds[position] : self.bounds[position + 1]]


def giants(sizes: np.ndarray, images: int) -> np.ndarray:
    """Return which groups always stay in training, bool [groups]: those on which metrics would depend too much.

    `sizes` (int64 [groups]) are in images, of which `images` are to be held out. If most images are in such groups,
    none of these is giant.
    """
    is_giant = sizes > max(GIANT, images // 100)
    return is_giant & (2 * sizes[is_giant].sum() <= sizes.sum())


class Needs(NamedTuple):
    """What each side of a split should hold.

    `images` of `n_images` are to be held out. `per_tag` (int64 [tags]) and `per_source` (int64 [sources]) are the
    minima of validation. `kept` (bool [tags]) marks tags that stay in the vocabulary on whatever side their images
    are: validation is not enlarged for them, and their minima are not ensured.
    """

    images: int
    n_images: int
    per_tag: np.ndarray
    per_source: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, wanted: Validation, uses: np.ndarray, by_source: np.ndarray, kept: np.ndarray, min_count: int) -> Needs:
        """Return the needs of a set of images, from the uses of each tag and the images of each source, int64.

        A minimum is at most the share of a tag's or a source's images that is held out of all images: that of the
        settings if they have one, else a fifth of a tag's images and a tenth of a source's. A kept tag that is used
        less than `min_count` times needs nothing.
        """
        n_images = int(by_source.sum())
        is_share = isinstance(wanted.images, float)
        images = wanted.wanted(n_images)
        shares = (min(wanted.images, MOST), min(wanted.images, 0.1)) if is_share else (MOST, 0.1)
        per_tag = np.minimum(wanted.min_per_tag, np.maximum(1, (shares[0] * uses).astype(np.int64)))
        per_tag[kept & (uses < min_count)] = 0
        return cls(
            images, n_images, per_tag, np.minimum(wanted.min_per_source, (shares[1] * by_source).astype(np.int64)), kept
        )

    def in_training(self, uses: np.ndarray) -> np.ndarray:
        """Return the minimum of training, int64: half of the images that a random choice would leave there."""
        return np.ceil(uses * (1 - self.images / self.n_images) / 2).astype(np.int64)

    @property
    def most(self) -> int:
        """The most images that several groups may bring into validation: a fifth, or as many as are asked for."""
        return max(self.images, int(MOST * self.n_images))


class _Choice:
    """The groups that are held out so far: `taken` is bool [groups], `size` their number of images.

    A label is a tag, or a source, numbered after the last tag; `have` (int64 [labels]) counts it in these groups.
    """

    def __init__(self, shuffle: _Shuffle, tags: Rows, sources: np.ndarray, needs: Needs) -> None:
        self._shuffle, self._tags, self._sources, self._n_tags = shuffle, tags, sources, len(needs.per_tag)
        self.uses = np.concatenate([tags.uses(self._n_tags), np.bincount(sources, minlength=len(needs.per_source))])
        self._spare = self.uses - needs.in_training(self.uses)
        self._is_giant = giants(np.diff(shuffle.bounds), needs.images)
        self.taken = np.zeros(len(shuffle.bounds) - 1, dtype=bool)
        self.have = np.zeros(len(self.uses), dtype=np.int64)
        self.size = 0

    def labels(self, rows: np.ndarray) -> Rows:
        """Return the labels of some images."""
        its_source = Rows(np.arange(len(rows) + 1), self._n_tags + self._sources[rows])
        return _joined(self._tags.take(rows), its_source)

    def take(self, position: int, limit: int, is_protected: np.ndarray) -> None:
        """Take a group, unless it is giant or leaves too few images of a protected label in training.

        Nor is it taken if there would be more than `limit` images.
        """
        members = self._shuffle.members(position)
        if self.taken[position] or self._is_giant[position] or self.size + len(members) > limit:
            return
        labels, counts = np.unique(self.labels(members).tags, return_counts=True)
        if not (is_protected[labels] & (self.have[labels] + counts > self._spare[labels])).any():
            self.taken[position] = True
            self.have[labels] += counts
            self.size += len(members)


def choose_validation(groups: np.ndarray, tags: Rows, sources: np.ndarray, needs: Needs) -> np.ndarray:
    """Return the mask of the validation images, bool [rows].

    `groups` (int64 [rows]) numbers images that must stay on one side, in a random order: see `shuffled`. `tags` holds
    each image's tags, `sources` its source. Beginning with the rarest tag, groups are taken, the smallest first, until
    each tag, then each source, has what it needs, then groups that fit until there are enough images. No group is taken
    that would leave too few images of a label in training, or bring too many into validation: a tag may get less than
    it needs, and the mask may be all False. Images with the last uses of kept tags are taken if no others are left.
    """
    shuffle = _Shuffle.of(groups)
    choice = _Choice(shuffle, tags, sources, needs)
    is_required = np.concatenate([~needs.kept, np.ones(len(needs.per_source), dtype=bool)])
    protections = (np.ones_like(is_required), is_required)
    _take_needed(choice, shuffle, needs, protections)
    _take_more(choice, np.diff(shuffle.bounds), needs, protections)
    return choice.taken[shuffle.position]


def _take_needed(choice: _Choice, shuffle: _Shuffle, needs: Needs, protections: Sequence[np.ndarray]) -> None:
    """Take groups, beginning with the rarest tag, until each label occurs as often as it needs."""
    need, n_tags = np.concatenate([needs.per_tag, needs.per_source]), len(needs.per_tag)
    wanted = np.minimum(np.where(need > 0, need + SPARE, 0), choice.uses)
    sizes, first_uses = np.diff(shuffle.bounds), _first_uses(map(choice.labels, shuffle.chunks()), wanted)
    rarest_first = np.lexsort((choice.uses[:n_tags], needs.kept))
    for label in [*rarest_first, *range(n_tags, len(need))]:
        limit = needs.images if label < n_tags and needs.kept[label] else needs.most
        positions = shuffle.position[shuffle.rows[first_uses[label]]]
        smallest_first = positions[np.argsort(sizes[positions], kind="stable")]  # to leave room for other tags
        for is_protected, position in product(protections, smallest_first):
            if choice.have[label] >= need[label]:
                break
            choice.take(position, limit, is_protected)


def _take_more(choice: _Choice, sizes: np.ndarray, needs: Needs, protections: Sequence[np.ndarray]) -> None:
    """Take groups that fit, in their order, until there are enough images; if none fits any more, the smallest.

    If all groups are too large, the smallest is taken nevertheless: nobody can train without validation.
    """
    for is_protected in protections:
        for position in range(len(sizes)):
            if choice.size >= needs.images:
                return
            choice.take(position, needs.images, is_protected)
    for position in np.argsort(sizes, kind="stable"):
        if choice.size >= needs.images:
            return
        choice.take(position, needs.most if choice.size else needs.n_images, protections[-1])


def _joined(left: Rows, right: Rows) -> Rows:
    """Join each row of `left` and the same row of `right`, in no particular order within a row."""
    numbers = np.concatenate([left.row_of_each(), right.row_of_each()])
    order = np.argsort(numbers, kind="stable")
    return Rows(left.offsets + right.offsets, np.concatenate([left.tags, right.tags])[order].astype(np.int32))


def _first_uses(chunks: Iterator[Rows], need: np.ndarray) -> list[np.ndarray]:
    """Return, for each label, the numbers of the first rows with it: as many as it needs, or all."""
    found = [np.empty(0, dtype=np.int64) for _ in need]
    start = 0
    for chunk in chunks:
        is_lacking = np.array([len(rows) for rows in found]) < need
        if not is_lacking.any():
            break
        numbers = chunk.row_of_each()[is_lacking[chunk.tags]]
        labels = chunk.tags[is_lacking[chunk.tags]]
        by_label = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_label], np.arange(len(need) + 1))
        for label in np.flatnonzero(is_lacking & (np.diff(bounds) > 0)):
            more = numbers[by_label[bounds[label] : bounds[label + 1]]][: need[label] - len(found[label])]
            found[label] = np.concatenate([found[label], start + more])
        start += len(chunk)
    return found

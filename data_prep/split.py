"""Choose the validation images at random, with every tag and source represented and look-alikes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data_prep.tags import Rows

CHUNK = 1 << 15  # images whose labels are in memory together


class _Shuffle(NamedTuple):
    """Groups of images in random order.

    `position` (int64 [rows]) is that of each image's group. `rows` (int64 [rows]) lists the images by position; those
    of the group at position p are `rows[bounds[p]:bounds[p + 1]]`.
    """

    position: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray, seed: int) -> _Shuffle:
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(first))
        position = np.argsort(order)[group]
        rows = np.argsort(position, kind="stable")
        return cls(position, rows, np.searchsorted(position[rows], np.arange(len(order) + 1)))

    def chunks(self) -> Iterator[np.ndarray]:
        return (self.rows[start : start + CHUNK] for start in range(0, len(self.rows), CHUNK))

    def members(self, position: int) -> np.ndarray:
        return self.rows[self.bounds[position] : self.bounds[position + 1]]


def choose_validation(
    groups: np.ndarray,
    tags: Rows,
    sources: np.ndarray,
    images: int,
    min_per_tag: np.ndarray,
    min_per_source: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the mask of the validation images, bool [rows].

    `groups` (int64 [rows]) numbers images that must stay on one side; `tags` holds each image's tags, `sources`
    its source. Beginning with the rarest tag, random groups are taken until tag i occurs `min_per_tag[i]` times, then
    until source i has `min_per_source[i]` images, then random groups that fit until there are `images`. Raises
    ValueError when a tag is too rare for that, or when nothing would be left to train on.
    """
    shuffle, n_tags = _Shuffle.of(groups, seed), len(min_per_tag)
    uses = tags.uses(n_tags)
    if (uses < min_per_tag).any():
        rarest = uses[uses < min_per_tag].min()
        raise ValueError(f"validation.min_per_tag: a tag occurs {rarest} times; raise tags.min_count")

    def labels(rows: np.ndarray) -> Rows:
        """Return the tags of some images, and their source, numbered after the last tag."""
        return _joined(tags.take(rows), Rows(np.arange(len(rows) + 1), n_tags + sources[rows]))

    need = np.concatenate([min_per_tag, min_per_source])
    rarest_first = np.concatenate([np.argsort(uses, kind="stable"), np.arange(n_tags, len(need))])
    taken = _take_needed(shuffle, labels, need, rarest_first)
    _take_more(taken, np.diff(shuffle.bounds), images)
    if taken.all():
        raise ValueError(f"validation.images: {images} and validation.min_per_tag leave nothing to train on")
    return taken[shuffle.position]


def _take_needed(
    shuffle: _Shuffle, labels: Callable[[np.ndarray], Rows], need: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Take groups, label by label in `order`, until each label occurs as often as it needs: bool [groups]."""
    taken = np.zeros(len(shuffle.bounds) - 1, dtype=bool)
    have = np.zeros(len(need), dtype=np.int64)
    first_uses = _first_uses(map(labels, shuffle.chunks()), need)
    for label in order:
        for row in first_uses[label]:
            if have[label] >= need[label]:
                break
            position = shuffle.position[shuffle.rows[row]]
            if not taken[position]:
                taken[position] = True
                np.add.at(have, labels(shuffle.members(position)).tags, 1)
    return taken


def _take_more(taken: np.ndarray, sizes: np.ndarray, images: int) -> None:
    """Take groups that fit, in their order, until there are `images`; if none fits any more, the smallest."""
    missing = images - sizes[taken].sum()
    for position in np.flatnonzero(~taken):
        if missing <= 0:
            break
        if sizes[position] <= missing:
            taken[position] = True
            missing -= sizes[position]
    if missing > 0 and not taken.all():
        taken[np.flatnonzero(~taken)[np.argmin(sizes[~taken])]] = True


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

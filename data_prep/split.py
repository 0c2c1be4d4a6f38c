"""Choose the validation images: seeded, every tag and source represented, look-alikes never apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.tags import Rows

CHUNK = 1 << 15  # rows that are looked at together


def choose_validation(
    groups: np.ndarray,
    tags: Rows,
    sources: np.ndarray,
    images: int,
    min_per_tag: np.ndarray,
    min_per_source: np.ndarray,
    seed: int,
) -> np.ndarray:
    """A bool mask of the validation images, [rows].

    `groups` (int64 [rows]) numbers images that must stay on one side; `tags` holds each image's tags, `sources`
    its source. From the rarest tag on, random groups are taken until tag i occurs `min_per_tag[i]` times, then until
    source i has `min_per_source[i]` images, then random groups that fit until there are `images`. Raises
    ValueError when a tag is too rare for that, or when `images` would leave nothing to train on.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))  # the groups in the order in which they are offered
    position = np.argsort(order)[group]
    rows = np.argsort(position, kind="stable")  # the images in that order
    bounds = np.searchsorted(position[rows], np.arange(len(order) + 1))
    taken = np.zeros(len(order), dtype=bool)
    have = np.zeros(len(min_per_tag) + len(min_per_source), dtype=np.int64)
    n_tags = len(min_per_tag)

    def labels(chosen: np.ndarray) -> Rows:
        """The images' tags, their source behind the last tag."""
        own = Rows(np.arange(len(chosen) + 1), n_tags + sources[chosen])
        return _beside(tags.take(chosen), own)

    def take(place: int) -> None:
        taken[place] = True
        np.add.at(have, labels(rows[bounds[place] : bounds[place + 1]]).tags, 1)

    need = np.concatenate([min_per_tag, min_per_source])
    uses = tags.uses(n_tags)
    early = _first_uses((labels(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)), need)
    for label in [*np.argsort(uses, kind="stable"), *range(n_tags, len(need))]:
        for row in early[label]:
            if have[label] >= need[label]:
                break
            if not taken[place := position[rows[row]]]:
                take(place)
        if label < n_tags and have[label] < need[label]:
            raise ValueError(f"validation.min_per_tag: a tag occurs {uses[label]} times; raise tags.min_count")

    sizes = np.diff(bounds)
    missing = images - sizes[taken].sum()
    for place in np.flatnonzero(~taken):
        if missing <= 0:
            break
        if sizes[place] <= missing:
            taken[place] = True
            missing -= sizes[place]
    if missing > 0 and not taken.all():  # no other group fits
        taken[np.flatnonzero(~taken)[np.argmin(sizes[~taken])]] = True
    if taken.all():
        raise ValueError(f"validation.images: {images} and validation.min_per_tag leave nothing to train on")
    return taken[position]


def _beside(left: Rows, right: Rows) -> Rows:
    """Rows made of both arguments' rows, in no particular order within a row."""
    numbers = np.concatenate([left.numbers(), right.numbers()])
    order = np.argsort(numbers, kind="stable")
    return Rows(left.offsets + right.offsets, np.concatenate([left.tags, right.tags])[order].astype(np.int32))


def _first_uses(chunks: Iterator[Rows], need: np.ndarray) -> list[np.ndarray]:
    """For each label the numbers of the first rows that have it, as many as it needs or there are."""
    found = [np.empty(0, dtype=np.int64) for _ in need]
    start = 0
    for chunk in chunks:
        lacking = np.array([len(rows) for rows in found]) < need
        if not lacking.any():
            break
        numbers = chunk.numbers()[lacking[chunk.tags]]
        labels = chunk.tags[lacking[chunk.tags]]
        by_label = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_label], np.arange(len(need) + 1))
        for label in np.flatnonzero(lacking & (np.diff(bounds) > 0)):
            more = numbers[by_label[bounds[label] : bounds[label + 1]]][: need[label] - len(found[label])]
            found[label] = np.concatenate([found[label], start + more])
        start += len(chunk)
    return found

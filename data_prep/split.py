"""Choose the validation pictures: seeded, every tag represented, look-alikes never apart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def choose_validation(
    groups: np.ndarray, tags: list[np.ndarray], n_tags: int, pictures: int, min_per_tag: int, seed: int
) -> np.ndarray:
    """A bool mask of the validation pictures, [rows].

    `groups` (uint64 [rows], the pHash) names pictures that must stay on one side; `tags` holds each
    picture's tag indices. From the rarest tag on, random groups are taken until every tag occurs
    `min_per_tag` times, then random groups until there are `pictures`. Raises ValueError when a tag
    is too rare for that, or when `pictures` would leave nothing to train on.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    order = np.random.default_rng(seed).permutation(np.array(sorted(members), dtype=np.uint64)).tolist()
    if pictures >= len(groups):
        raise ValueError(f"validation.pictures: {pictures} of {len(groups)} leaves nothing to train on")

    counts = np.zeros((len(order), n_tags), dtype=np.int64)
    for position, group in enumerate(order):
        for row in members[group]:
            counts[position, tags[row]] += 1
    total = counts.sum(axis=0)
    taken = np.zeros(len(order), dtype=bool)
    have = np.zeros(n_tags, dtype=np.int64)

    for tag in np.argsort(total, kind="stable").tolist():
        for position in np.flatnonzero(counts[:, tag]).tolist():
            if have[tag] >= min_per_tag:
                break
            if not taken[position]:
                taken[position] = True
                have += counts[position]
        if have[tag] < min_per_tag:
            raise ValueError(f"validation.min_per_tag: tag {tag} occurs {total[tag]} times; raise tags.min_count")

    size = sum(len(members[group]) for group, take in zip(order, taken, strict=True) if take)
    for position, group in enumerate(order):
        if size >= pictures:
            break
        if not taken[position]:
            taken[position] = True
            size += len(members[group])
    mask = np.zeros(len(groups), dtype=bool)
    for group, take in zip(order, taken, strict=True):
        mask[members[group]] = take
    return mask

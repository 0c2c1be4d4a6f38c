"""Choose the validation pictures: seeded, every tag represented, look-alikes never apart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def choose_validation(
    groups: np.ndarray, tags: list[np.ndarray], pictures: int, min_per_tag: np.ndarray, seed: int
) -> np.ndarray:
    """A bool mask of the validation pictures, [rows].

    `groups` (uint64 [rows], the pHash) names pictures that must stay on one side; `tags` holds each
    picture's tag indices. From the rarest tag on, random groups are taken until tag i occurs
    `min_per_tag[i]` times, then random groups until there are `pictures`. Raises ValueError when a tag
    is too rare for that, or when `pictures` would leave nothing to train on.
    """
    n_tags = len(min_per_tag)
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)
    order = np.random.default_rng(seed).permutation(np.array(sorted(members), dtype=np.uint64)).tolist()
    position_of = {group: position for position, group in enumerate(order)}
    flat = np.concatenate([np.empty(0, dtype=np.int64), *tags])
    positions = np.repeat([position_of[group] for group in groups.tolist()], [len(t) for t in tags])
    by_tag = np.lexsort((positions, flat))
    bounds = np.searchsorted(flat[by_tag], np.arange(n_tags + 1))
    taken = np.zeros(len(order), dtype=bool)
    have = np.zeros(n_tags, dtype=np.int64)
    size = 0

    def take(position: int) -> int:
        taken[position] = True
        for row in members[order[position]]:
            have[tags[row]] += 1
        return size + len(members[order[position]])

    for tag in np.argsort(np.diff(bounds), kind="stable").tolist():
        for position in positions[by_tag[bounds[tag] : bounds[tag + 1]]].tolist():
            if have[tag] >= min_per_tag[tag]:
                break
            if not taken[position]:
                size = take(position)
        if have[tag] < min_per_tag[tag]:
            uses = bounds[tag + 1] - bounds[tag]
            raise ValueError(f"validation.min_per_tag: tag {tag} occurs {uses} times; raise tags.min_count")
    for position in range(len(order)):
        if size >= pictures:
            break
        if not taken[position]:
            size = take(position)
    if taken.all():
        raise ValueError(f"validation.pictures: {pictures} and validation.min_per_tag leave nothing to train on")
    return taken[[position_of[group] for group in groups.tolist()]]

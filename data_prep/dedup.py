"""Find copies of an image (the same file, or similar in pHash and colours) and images that only look alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MIN_BITS = 8  # a pHash with fewer bits set, or unset, belongs to a flat image or a plain gradient
EDGES = 4_000_000  # pairs of look-alikes in memory before their groups are merged


def is_flat(phash: np.ndarray) -> np.ndarray:
    """Return which pHashes (uint64 [rows]) are too uniform to identify copies, bool [rows].

    A pHash compares 64 coefficients with their median, so half of its bits are set unless most coefficients are zero.
    """
    bits = np.bitwise_count(phash)
    return (bits < MIN_BITS) | (bits > 64 - MIN_BITS)


def same_files(sha256: np.ndarray) -> np.ndarray:
    """Return, for each row of uint8 [rows, 32], the first row with the same bytes, int64 [rows]."""
    _, first, inverse = np.unique(
        np.ascontiguousarray(sha256).view("V32").ravel(), return_index=True, return_inverse=True
    )
    return first[inverse]


def look_alikes(phash: np.ndarray, radius: int) -> np.ndarray:
    """Group images whose pHashes are within `radius` bits, and return each image's group, int64 [rows].

    The groups are the connected components, numbered by their least pHash. By the pigeonhole principle, two hashes
    within `radius` bits are equal in at least one of `radius` + 1 bands, so only hashes with an equal band are
    compared.
    """
    hashes, number = np.unique(phash, return_inverse=True)
    label = np.arange(len(hashes))
    if radius == 0:
        return number
    for pairs in _batches(_pairs(hashes, radius, label)):
        label[:] = components(label[pairs], len(hashes))[label]
    return label[number]


def components(pairs: np.ndarray, nodes: int) -> np.ndarray:
    """Return each node's connected component, int64 [nodes]; components are numbered by their least node.

    `pairs` (int64 [2, pairs]) are numbers of nodes.
    """
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), pairs), shape=(nodes, nodes))
    count, label = connected_components(graph, directed=False)
    least = np.empty(count, dtype=np.int64)
    least[label[::-1]] = np.arange(nodes)[::-1]  # of several values the last is assigned
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(least)] = np.arange(count)
    return rank[label]


def _pairs(hashes: np.ndarray, radius: int, label: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pairs of hashes within the radius that `label` does not join yet, int64 [2, pairs]."""
    edges = np.linspace(0, 64, radius + 2).round().astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        shuffled = hashes[order]
        ends = np.searchsorted(band[order], band[order], side="right")
        first = np.arange(len(hashes))
        distance = 0
        while len(first):  # compare each hash with the next one in its band, then with the one after that, and so on
            distance += 1
            first = first[first + distance < ends[first]]
            near = first[np.bitwise_count(shuffled[first] ^ shuffled[first + distance]) <= radius]
            pairs = order[np.stack([near, near + distance])]
            yield pairs[:, label[pairs[0]] != label[pairs[1]]]


def _batches(arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Join arrays of pairs until there are EDGES."""
    waiting: list[np.ndarray] = []
    size = 0
    for array in arrays:
        if array.size:
            waiting.append(array)
            size += array.shape[1]
        if size >= EDGES:
            yield np.concatenate(waiting, axis=1)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting, axis=1)


def candidates(first: np.ndarray, phash: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the rows whose thumbnails must be compared, ascending, int64: different files in one group.

    `first` is the result of `same_files`, `group` that of `look_alikes`.
    """
    rows = np.flatnonzero((first == np.arange(len(first))) & ~is_flat(phash))
    return rows[np.bincount(group[rows], minlength=1)[group[rows]] > 1]


def best_first(group: np.ndarray, area: np.ndarray) -> list[np.ndarray]:
    """Divide candidates into their groups; return the positions in each group, the best image first, int64.

    The best image has the largest area, in pixels; among equals, it is the first.
    """
    order = np.lexsort((np.arange(len(group)), -area, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.split(order, starts[1:]) if len(group) else []


def keepers(
    first: np.ndarray,
    phash: np.ndarray,
    group: np.ndarray,
    area: np.ndarray,
    thumbnails: np.ndarray,
    radius: int,
    max_difference: int,
) -> np.ndarray:
    """Return, for each image, the row of the copy to keep, int64 [rows]; without copies its own row.

    The largest copy (`area`, pixels) is kept; among equals, the first row. An image is a copy of a kept one if their
    pHashes are within `radius` bits and no value of their thumbnails differs by more than `max_difference` levels.
    `thumbnails`, uint8 [candidates, side, side, 3], are those of the rows that `candidates` returns.
    """
    keeper = np.arange(len(first))
    rows = candidates(first, phash, group)
    for members in best_first(group[rows], area[rows]):
        kept = members[:1]
        for member in members[1:]:
            near = kept[np.bitwise_count(phash[rows[kept]] ^ phash[rows[member]]) <= radius]
            copied = near[difference(thumbnails[near], thumbnails[member]) <= max_difference]
            if len(copied):
                keeper[rows[member]] = rows[copied[0]]
            else:
                kept = np.append(kept, member)
    return keeper[first]


def difference(thumbnails: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the largest difference between each thumbnail, uint8 [n, side, side, 3], and another one: levels, [n]."""
    return np.abs(thumbnails.astype(np.int16) - other).max(axis=(1, 2, 3), initial=0)

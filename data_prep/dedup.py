"""Find copies of one image (same file, or alike in pHash and colours) and images that merely look alike.

joytag dedup --report data/danbooru2021
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MIN_BITS = 8  # a pHash with fewer bits set, or unset, is that of a flat image or a plain gradient
EDGES = 4_000_000  # pairs of look-alikes that are kept before they are merged


def is_flat(phash: np.ndarray) -> np.ndarray:
    """Which pHashes (uint64 [rows]) tell too little of their images to find copies by: bool [rows].

    Half of the 64 coefficients are above their median, unless most are zero.
    """
    bits = np.bitwise_count(phash)
    return (bits < MIN_BITS) | (bits > 64 - MIN_BITS)


def same_files(sha256: np.ndarray) -> np.ndarray:
    """For each row of uint8 [rows, 32] the first row with the same bytes, int64 [rows]."""
    _, first, inverse = np.unique(
        np.ascontiguousarray(sha256).view("V32").ravel(), return_index=True, return_inverse=True
    )
    return first[inverse]


def look_alikes(phash: np.ndarray, radius: int) -> np.ndarray:
    """A number for each image, int64 [rows], that it shares with all whose pHash is within `radius` bits.

    So do theirs in turn: the groups are the connected components. The least pHash has number 0. By the pigeonhole
    principle two hashes within `radius` bits agree in one of `radius` + 1 bands, so that only those that share
    a band are compared.
    """
    hashes, number = np.unique(phash, return_inverse=True)
    label = np.arange(len(hashes))
    if radius == 0:
        return number
    for pairs in _batches(_pairs(hashes, radius, label)):
        graph = coo_array((np.ones(pairs.shape[1], dtype=bool), label[pairs]), shape=(len(hashes), len(hashes)))
        label[:] = connected_components(graph, directed=False)[1][label]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse][number]


def _pairs(hashes: np.ndarray, radius: int, label: np.ndarray) -> Iterator[np.ndarray]:
    """Arrays int64 [2, pairs] of hashes within the radius that `label` does not join yet."""
    edges = np.linspace(0, 64, radius + 2).round().astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        shuffled = hashes[order]
        ends = np.searchsorted(band[order], band[order], side="right")
        first = np.arange(len(hashes))
        distance = 0
        while len(first):  # each compared with its next in the band, then with its next but one, and so on
            distance += 1
            first = first[first + distance < ends[first]]
            near = first[np.bitwise_count(shuffled[first] ^ shuffled[first + distance]) <= radius]
            pairs = order[np.stack([near, near + distance])]
            yield pairs[:, label[pairs[0]] != label[pairs[1]]]


def _batches(arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
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
    """The rows whose thumbnails must be compared, int64: of different files and one group, ascending.

    `first` is that of `same_files`, `group` that of `look_alikes`.
    """
    rows = np.flatnonzero((first == np.arange(len(first))) & ~is_flat(phash))
    return rows[np.bincount(group[rows], minlength=1)[group[rows]] > 1]


def keepers(
    first: np.ndarray,
    phash: np.ndarray,
    group: np.ndarray,
    area: np.ndarray,
    thumbnails: np.ndarray,
    radius: int,
    max_difference: int,
) -> np.ndarray:
    """For each image the row of the copy that stays, int64 [rows]; a unique image stays itself.

    Of copies the largest stays (`area`, pixels), then the first row. An image is a copy of one that stays if
    its pHash is within `radius` bits and no value of their thumbnails differs by more than `max_difference`
    levels. `thumbnails`, uint8 [candidates, side, side, 3], are those of `candidates`.
    """
    keeper = np.arange(len(first))
    rows = candidates(first, phash, group)
    best = np.lexsort((rows, -area[rows], group[rows]))
    starts = np.flatnonzero(np.diff(group[rows[best]], prepend=-1))
    for members in np.split(best, starts[1:]) if len(rows) else []:
        kept = members[:1]
        for member in members[1:]:
            near = kept[np.bitwise_count(phash[rows[kept]] ^ phash[rows[member]]) <= radius]
            alike = near[difference(thumbnails[near], thumbnails[member]) <= max_difference]
            if len(alike):
                keeper[rows[member]] = rows[alike[0]]
            else:
                kept = np.append(kept, member)
    return keeper[first]


def difference(some: np.ndarray, one: np.ndarray) -> np.ndarray:
    """The largest difference in levels between each of some thumbnails, uint8 [n, side, side, 3], and one: [n]."""
    return np.abs(some.astype(np.int16) - one).max(axis=(1, 2, 3), initial=0)

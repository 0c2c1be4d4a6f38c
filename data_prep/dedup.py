"""Find copies of one picture: same file, or equal pHash and the same colours."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

# The largest difference of two thumbnails, in levels of 255, between copies of one picture. Scaling an
# OpenMoji drawing to 70 % moves its thumbnail by up to 4; the skin tone of a person in bed by 5. What is
# recompressed more heavily than that stays, on the same side of the split, since the pHash is equal.
MAX_DIFFERENCE = 4


def keepers(
    sha256: list[bytes],
    phash: np.ndarray,
    thumbnails: np.ndarray,
    area: np.ndarray,
    max_difference: int = MAX_DIFFERENCE,
) -> np.ndarray:
    """For each picture the row of the copy that stays, int64 [rows]; a unique picture stays itself.

    Of a group of copies the largest stays, then the first row. `phash` is uint64 [rows], `thumbnails`
    uint8 [rows, side, side, 3], `area` the number of pixels. Flat pictures, whose pHashes say nothing,
    are copies only when their files are the same.
    """
    order = np.lexsort((np.arange(len(area)), -area))  # best copy first
    keeper = np.arange(len(area))
    by_file: dict[bytes, int] = {}
    by_phash: dict[int, list[int]] = defaultdict(list)
    for row in order:
        first = by_file.setdefault(sha256[row], row)
        if first != row:
            keeper[row] = keeper[first]
            continue
        kept = by_phash[int(phash[row])] if not is_flat(int(phash[row])) else []
        for other in kept:
            if _difference(thumbnails[row], thumbnails[other]) <= max_difference:
                keeper[row] = other
                break
        else:
            kept.append(row)
    return keeper


def is_flat(phash: int) -> bool:
    """Whether a pHash is that of a picture without structure: nearly no bit set."""
    return phash.bit_count() <= 1


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())

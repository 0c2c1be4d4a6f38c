"""Random numbers that depend only on their purpose and coordinates, not on what was drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The use of random numbers; uses with the same coordinates get different numbers."""

    ORDER = 0
    AUGMENTATION = 1
    SUBSTITUTE = 2
    DEPTH = 3
    MIXUP = 4
    SWEEP = 5


def generator(purpose: Purpose, *coordinates: int) -> np.random.Generator:
    """Return a generator seeded by a purpose and coordinates, which are non-negative."""
    return np.random.default_rng((purpose, *coordinates))

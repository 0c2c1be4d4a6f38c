"""Random numbers that depend on purpose and position alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for, so that no two uses of one place get the same."""

    ORDER = 0
    AUGMENTATION = 1
    SUBSTITUTE = 2
    DEPTH = 3
    MIXUP = 4


def generator(purpose: Purpose, *place: int) -> np.random.Generator:
    """Random numbers that are a function of their purpose and place, some non-negative integers."""
    return np.random.default_rng((purpose, *place))

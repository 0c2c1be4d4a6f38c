"""Groups of tags to compare: by category, by training count, by a user's file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.core import settings
from joytag.data import dataset

EDGES = [0] + [step * 10**power for power in range(10) for step in (1, 3)]  # of bands: half decades
FEWEST = 5  # tags in a band; in a large vocabulary at least one tag in fifty


def category_names(categories: NDArray[np.int8]) -> list[str]:
    """Return the names of Danbooru's category numbers, int8 [N]."""
    return [dataset.CATEGORIES.get(number, f"category {number}") for number in categories.tolist()]


def by_category(categories: NDArray[np.int8]) -> dict[str, NDArray[np.int64]]:
    """Return the tags, int64, of each category that occurs; takes category numbers, int8 [N]."""
    names = category_names(categories)
    order = [name for name in dataset.CATEGORIES.values() if name in names]
    return {name: np.flatnonzero(np.array(names) == name) for name in [*order, *sorted({*names} - {*order})]}


def by_count(counts: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the tags, int64, in each band of training counts, the rarest first; takes counts, int64 [N].

    Bands are half decades. A band with few tags is merged with the next rarer one, the rarest with the next commoner.
    """
    fewest = max(FEWEST, len(counts) // 50)
    edges: list[int] = []
    upper = np.inf
    for edge in reversed(EDGES):
        if np.count_nonzero((counts >= edge) & (counts < upper)) >= fewest:
            edges, upper = [edge, *edges], edge
    limits = [0, *edges[1:], np.inf]
    return {_band(low, high): np.flatnonzero((counts >= low) & (counts < high)) for low, high in pairwise(limits)}


def _band(low: float, high: float) -> str:
    if high == np.inf:
        return f"{_short(int(low))} or more" if low else "all"
    return f"{_short(int(low))} to {_short(int(high))}" if low else f"under {_short(int(high))}"


def _short(number: int) -> str:
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if number >= unit:
            return f"{number // unit}{name}"
    return str(number)


def read(path: Path) -> dict[str, list[str]]:
    """Read groups from YAML, `{name: [tag, tag]}`. Raises SettingsError with the file, the group and the remedy."""
    groups = settings.read_mapping(path)
    for name, tags in groups.items():
        if not isinstance(name, str) or not isinstance(tags, list) or not tags:
            raise settings.SettingsError(f"{path}: {name}: not a name with a list of tags; write {{name: [tag, tag]}}")
        for tag in tags:
            if not isinstance(tag, str):
                raise settings.SettingsError(f"{path}: {name}: {tag!r} is not text; write it in quotes")
    return groups


def by_name(groups: Mapping[str, Sequence[str]], vocabulary: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return the tags, int64 in order, of each group of names.

    Names that the vocabulary lacks, and groups of such names alone, are left out with a warning, because a smaller
    vocabulary may lack some. Raises ValueError when no group is left.
    """
    numbers = {name: i for i, name in enumerate(vocabulary)}
    members = {}
    for group, names in groups.items():
        unknown = [name for name in names if name not in numbers]
        if unknown:
            warnings.warn(f"groups: {group}: not in the vocabulary: {', '.join(unknown)}", stacklevel=2)
        if len(unknown) < len(names):
            members[group] = np.array(sorted({numbers[name] for name in names if name in numbers}))
    if groups and not members:
        raise ValueError(f"groups: none of their tags is in the vocabulary, such as {vocabulary[0]}; correct them")
    return members

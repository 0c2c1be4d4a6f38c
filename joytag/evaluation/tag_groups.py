"""Groups of tags, whose figures are set beside each other: by category, by training count, by a user's file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from joytag.core import settings
from joytag.data import dataset

EDGES = [0] + [step * 10**power for power in range(10) for step in (1, 3)]  # of bands: half decades
FEWEST = 5  # tags in a band, of a large vocabulary one in fifty


def category_names(categories: np.ndarray) -> list[str]:
    """The names of Danbooru's numbers, int8 [N]."""
    return [dataset.CATEGORIES.get(number, f"category {number}") for number in categories.tolist()]


def by_category(categories: np.ndarray) -> dict[str, np.ndarray]:
    """Which tags, int64, are of each category that occurs; takes int8 [N]."""
    names = category_names(categories)
    order = [name for name in dataset.CATEGORIES.values() if name in names]
    return {name: np.flatnonzero(np.array(names) == name) for name in [*order, *sorted({*names} - {*order})]}


def by_count(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which tags, int64, are in each band of training counts, the rarest first; takes int64 [N].

    Bands are half decades; one with few tags is joined to the next rarer one, the rarest to the next commoner.
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
    found = settings.read(path)
    for name, tags in found.items():
        if not isinstance(name, str) or not isinstance(tags, list) or not tags:
            raise settings.SettingsError(f"{path}: {name}: not a name with a list of tags; write {{name: [tag, tag]}}")
        for tag in tags:
            if not isinstance(tag, str):
                raise settings.SettingsError(f"{path}: {name}: {tag!r} is not a text; write it in quotes")
    return found


def by_name(groups: Mapping[str, Sequence[str]], vocabulary: Sequence[str]) -> dict[str, np.ndarray]:
    """Which tags, int64 in order, are in each group of names.

    Names that are not in the vocabulary, and groups without any that is, are left out, with a warning: a smaller
    vocabulary may lack some. Raises ValueError when no group is left.
    """
    places = {name: i for i, name in enumerate(vocabulary)}
    found = {}
    for group, names in groups.items():
        unknown = [name for name in names if name not in places]
        if unknown:
            warnings.warn(f"groups: {group}: not in the vocabulary: {', '.join(unknown)}", stacklevel=2)
        if len(unknown) < len(names):
            found[group] = np.array(sorted({places[name] for name in names if name in places}))
    if groups and not found:
        raise ValueError(f"groups: none of their tags is in the vocabulary, whose first is {vocabulary[0]}; mend them")
    return found

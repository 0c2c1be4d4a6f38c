"""Tag policy: aliases, implications, blacklist, and the choice of the vocabulary.

Names are looked up once each; the millions of uses of them are numbers in arrays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_NAME = 255  # characters
PIECE = 1 << 20  # tags that are counted together


@dataclass(frozen=True)
class Rows:
    """Lists of tag numbers, one a row, end to end: `tags[offsets[i]:offsets[i + 1]]` (int32) are row i's."""

    offsets: np.ndarray
    tags: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many tags each row has, int64 [rows]."""
        return np.diff(self.offsets)

    def numbers(self) -> np.ndarray:
        """The row of each tag, int64 [tags]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def uses(self, n_tags: int) -> np.ndarray:
        """How often each tag occurs, int64 [n_tags]."""
        uses = np.zeros(n_tags, dtype=np.int64)
        for start in range(0, len(self.tags), PIECE):
            uses += np.bincount(self.tags[start : start + PIECE], minlength=n_tags)
        return uses

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the rows, in the order given."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        offsets = _offsets(counts)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Rows(offsets, self.tags[places])

    def sets(self) -> Rows:
        """Each row sorted, without repetitions."""
        keys = np.sort(self.numbers() << 32 | self.tags)  # np.unique's hashing takes ten times as long
        keys = keys[np.diff(keys, prepend=-1) != 0]
        return Rows(np.searchsorted(keys, np.arange(len(self) + 1) << 32), (keys & 0xFFFFFFFF).astype(np.int32))

    def mapped(self, to: Rows) -> Rows:
        """Each tag replaced by a row of `to`."""
        new = to.take(self.tags)
        return Rows(new.offsets[self.offsets], new.tags)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Rows:
        """From lists of numbers."""
        counts = np.array([len(numbers) for numbers in lists], dtype=np.int64)
        return cls(_offsets(counts), np.array([n for numbers in lists for n in numbers], dtype=np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several, one after the other."""
        counts = np.concatenate([np.empty(0, dtype=np.int64), *(part.counts for part in parts)])
        return cls(_offsets(counts), np.concatenate([np.empty(0, dtype=np.int32), *(part.tags for part in parts)]))


class Chunk(NamedTuple):
    """Some images, as rows of the image table (int64 [images]), and the tags of each."""

    rows: np.ndarray
    tags: Rows


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def is_tag(name: str) -> bool:
    """Whether a name can be a tag: at most 255 characters, none of them white space or control."""
    return 0 < len(name) <= MAX_NAME and not re.search(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]", name)


def read_names(path: Path) -> list[str]:
    """Names from a text file, one a line, `#` before a comment. Raises ValueError when it can't be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    names = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [name for name in names if name]


def resolve_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each aliased name to its final name: chains followed, cycles broken, self-aliases ignored.

    Of conflicting aliases of one name the alphabetically first counts; a cycle ends at its
    alphabetically first member. Either way the outcome does not depend on the order of `pairs`.
    """
    step = _steps(pairs)
    return {name: final for name in step if (final := _path(name, step)[0]) != name}


def _steps(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    step: dict[str, str] = {}
    for antecedent, consequent in sorted(pairs, reverse=True):
        if antecedent != consequent:
            step[antecedent] = consequent
    return step


def _path(name: str, step: dict[str, str]) -> tuple[str, int, bool]:
    """Where a name leads, over how many steps, and whether into a cycle."""
    path = [name]
    while (following := step.get(path[-1])) is not None:
        if following in path:
            return min(path[path.index(following) :]), len(path), True
        path.append(following)
    return path[-1], len(path) - 1, False


def survey(aliases: Sequence[tuple[str, str]], implications: Sequence[tuple[str, str]], known: Collection[str]) -> dict:
    """What is odd about relations, counted: what `resolve_aliases` and `close_implications` survive."""
    step = _steps(aliases)
    ends = [_path(name, step) for name in step]
    distinct = set(aliases)
    conflicting = Counter(antecedent for antecedent, consequent in distinct if antecedent != consequent)
    closed = close_implications(implications, resolve_aliases(aliases))
    return {
        "aliases": len(aliases),
        "aliases_repeated": len(aliases) - len(distinct),
        "aliases_of_themselves": sum(a == c for a, c in distinct),
        "aliases_conflicting": sum(count > 1 for count in conflicting.values()),
        "aliases_in_chains": sum(steps > 1 and not cycle for _, steps, cycle in ends),
        "aliases_into_cycles": sum(cycle for _, _, cycle in ends),
        "implications": len(implications),
        "implications_repeated": len(implications) - len(set(implications)),
        "implications_into_cycles": sum(name in closed.get(other, ()) for name in closed for other in closed[name]),
        "tags_without_a_category": len({n for pair in (*aliases, *implications) for n in pair} - set(known)),
    }


def close_implications(pairs: Iterable[tuple[str, str]], aliases: dict[str, str]) -> dict[str, set[str]]:
    """Each tag to all tags that it implies, over any number of steps; names are first de-aliased."""
    direct: dict[str, set[str]] = {}
    for antecedent, consequent in pairs:
        direct.setdefault(aliases.get(antecedent, antecedent), set()).add(aliases.get(consequent, consequent))
    closed = {}
    for name in direct:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            new = direct.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
        closed[name] = reached - {name}
    return closed


@dataclass(frozen=True)
class Policy:
    """What becomes of names: aliases first, then implications; blacklisted names vanish, before aliasing or after."""

    aliases: dict[str, str]
    implied: dict[str, set[str]]
    blacklist: Sequence[str]  # names, and patterns with *, which no tag contains

    @classmethod
    def of(
        cls, aliases: Sequence[tuple[str, str]], implications: Sequence[tuple[str, str]], blacklist: Sequence[str]
    ) -> Policy:
        """From the pairs as they are listed: chained, repeated, cyclic or not."""
        resolved = resolve_aliases(aliases)
        return cls(resolved, close_implications(implications, resolved), blacklist)

    def final(self, names: Sequence[str]) -> tuple[Rows, list[str]]:
        """For each raw name the numbers of the tags that it stands for, and their names in alphabetical order."""
        exact = {name for name in self.blacklist if "*" not in name}
        patterns = [".*".join(map(re.escape, name.split("*"))) for name in self.blacklist if "*" in name]
        pattern = re.compile("|".join(patterns) or r"(?!)")
        unwanted: dict[str, bool] = {}

        def wanted(name: str) -> bool:
            if name not in unwanted:
                unwanted[name] = name in exact or pattern.fullmatch(name) is not None or not is_tag(name)
            return not unwanted[name]

        finals: list[list[str]] = []
        for raw in names:
            name = self.aliases.get(raw, raw)
            kept = wanted(raw) and wanted(name)
            finals.append([name, *filter(wanted, self.implied.get(name, ()))] if kept else [])
        tags = sorted({tag for final in finals for tag in final})
        number = {tag: i for i, tag in enumerate(tags)}
        return Rows.of([sorted(number[tag] for tag in final) for final in finals]), tags

"""Lists of tags as arrays, and the tag policy: aliases, implications and the blacklist.

The policy looks up each name once; the millions of uses of a name are numbers in arrays.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from joytag.data.tag_names import canonical, matcher

MAX_NAME = 255  # characters
LONG_NAME = 60  # characters; longer names are listed, since many are sentences
# Namespaces that Danbooru and Hydrus write before a name, and the category that they give it. A rating keeps its
# namespace: `rating:safe` is not the tag `safe`.
NAMESPACES = {
    "general": 0,
    "artist": 1,
    "creator": 1,
    "copyright": 3,
    "series": 3,
    "character": 4,
    "meta": 5,
    "rating": 5,
}
PIECE = 1 << 20  # tags that are counted at a time, which bounds the memory


@dataclass(frozen=True)
class Rows:
    """Lists of tag numbers, one per row: those of row i are `tags[offsets[i]:offsets[i + 1]]`."""

    offsets: NDArray[np.int64]
    tags: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Number of tags of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def row_of_each(self) -> np.ndarray:
        """Return the row that each tag belongs to, int64 [tags]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def first(self) -> np.ndarray:
        """Return the first tag of each row, -1 for an empty one, int64 [rows]."""
        first, rows = np.full(len(self), -1), np.flatnonzero(self.counts)
        first[rows] = self.tags[self.offsets[rows]]
        return first

    def uses(self, n_tags: int) -> np.ndarray:
        """Count how often each tag occurs, int64 [n_tags]."""
        uses = np.zeros(n_tags, dtype=np.int64)
        for start in range(0, len(self.tags), PIECE):
            uses += np.bincount(self.tags[start : start + PIECE], minlength=n_tags)
        return uses

    def take(self, rows: np.ndarray) -> Rows:
        """Return some rows, in the order of the argument."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        offsets = _offsets(counts)
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Rows(offsets, self.tags[positions])

    def sets(self) -> Rows:
        """Sort each row and remove repetitions."""
        keys = np.sort(self.row_of_each() << 32 | self.tags)  # ten times faster than the hashing of np.unique
        keys = keys[np.diff(keys, prepend=-1) != 0]
        return Rows(np.searchsorted(keys, np.arange(len(self) + 1) << 32), (keys & 0xFFFFFFFF).astype(np.int32))

    def without(self, dropped: np.ndarray) -> Rows:
        """Return the rows without some of their tags, bool [tags]."""
        return Rows(_offsets(~dropped)[self.offsets], self.tags[~dropped])

    def mapped(self, to: Rows) -> Rows:
        """Replace each tag by all tags of a row of `to`: tag t by row t."""
        new = to.take(self.tags)
        return Rows(new.offsets[self.offsets], new.tags)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Rows:
        """Build rows from lists of numbers."""
        counts = np.array([len(numbers) for numbers in lists], dtype=np.int64)
        return cls(_offsets(counts), np.array([n for numbers in lists for n in numbers], dtype=np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Join the rows of several objects, one after another."""
        counts = np.concatenate([np.empty(0, dtype=np.int64), *(part.counts for part in parts)])
        return cls(_offsets(counts), np.concatenate([np.empty(0, dtype=np.int32), *(part.tags for part in parts)]))


class Chunk(NamedTuple):
    """Some images, as rows of the image table, and the tags of each."""

    rows: NDArray[np.int64]
    tags: Rows


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def is_tag(name: str) -> bool:
    """Return whether a name can be a tag: 1 to 255 characters without white space, control characters or surrogates."""
    return 0 < len(name) <= MAX_NAME and not re.search(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]", name)


def odd_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Return, by their fault, the canonical names that are no tags, and those that may be sentences or rejections."""
    canonical_names = sorted(every := {name for raw in names if (name := canonical(raw))})
    bad = [name for name in canonical_names if not is_tag(name)]
    long = [name for name in canonical_names if is_tag(name) and _may_be_a_sentence(name)]
    return {
        f"dropped, longer than {MAX_NAME} characters or with control characters": bad,
        f"longer than {LONG_NAME} characters or like a sentence": long,
        "another tag behind a hyphen, which rejects it only if its source says negatives: true": [
            name for name in canonical_names if name[:1] == "-" and name[1:] in every
        ],
    }


def _may_be_a_sentence(name: str) -> bool:
    spaces = name.count("_")
    ends = re.search(r"[^\W_]{2}\.(_|$)|。", name) is not None
    return len(name) > LONG_NAME or spaces >= 8 or (spaces >= 4 and ends)


def split_namespace(name: str) -> tuple[str, int | None]:
    """Return a canonical name without its namespace, and the category of that; other prefixes are part of a name."""
    namespace, _, rest = name.partition(":")
    category, plain = NAMESPACES.get(namespace), rest.lstrip("_")
    if category is None or not plain:
        return name, None
    return name if namespace == "rating" else plain, category


def read_names(path: Path) -> list[str]:
    """Read names from a text file, one a line, `#` before a comment. Raises ValueError when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    names = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [name for name in names if name]


def resolve_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map each aliased name to its final name: follow chains, break cycles, ignore aliases of a name to itself.

    If aliases of a name conflict, the alphabetically first one counts. A cycle ends at its alphabetically first name.
    The result does not depend on the order of `pairs`.
    """
    step = _steps(pairs)
    return {name: final for name in step if (final := _path(name, step)[0]) != name}


def _steps(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map each aliased name to the next one, the alphabetically first if aliases conflict."""
    step: dict[str, str] = {}
    for antecedent, consequent in sorted(pairs, reverse=True):
        if antecedent != consequent:
            step[antecedent] = consequent
    return step


def _path(name: str, step: dict[str, str]) -> tuple[str, int, bool]:
    """Return the name where a chain of aliases ends, the number of its steps, and whether it enters a cycle."""
    path = [name]
    while (following := step.get(path[-1])) is not None:
        if following in path:
            return min(path[path.index(following) :]), len(path), True
        path.append(following)
    return path[-1], len(path) - 1, False


def survey(
    aliases: Sequence[tuple[str, str]], implications: Sequence[tuple[str, str]], known: Collection[str]
) -> dict[str, int]:
    """Count the irregularities of relations that a policy tolerates; `known` are the tags with a category."""
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
    """Map each tag to all tags that it implies, over any number of steps, after resolving aliases."""
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
    """Replace names by their aliases, then add implications; names on the blacklist are dropped before and after.

    Names are canonical, except that a name of `spellings` is spelled as there in the end: as in a release to keep.
    """

    aliases: dict[str, str]
    implied: dict[str, set[str]]
    blacklist: Sequence[str]  # names and patterns, see `tag_names.matcher`
    spellings: dict[str, str]

    @classmethod
    def of(
        cls,
        aliases: Sequence[tuple[str, str]],
        implications: Sequence[tuple[str, str]],
        blacklist: Sequence[str],
        keep: Sequence[str] = (),
    ) -> Policy:
        """Build a policy from unresolved pairs, which may be chained, repeated or cyclic, and names to keep."""
        resolved = resolve_aliases(aliases)
        spellings = {canonical(name): name for name in reversed(keep)}
        implied = close_implications(implications, resolved)
        return cls(resolved, implied, blacklist, spellings)

    def categories(self, names: Iterable[str], known: Mapping[str, int]) -> dict[str, int]:
        """Return the categories of final tags: those `known`, then those that the namespaces of raw names give."""
        given: dict[str, int] = {}
        for plain, category in map(split_namespace, map(canonical, names)):
            if category is not None:
                name = self.aliases.get(plain, plain)
                given[name] = min(category, given.get(name, category))
        return {self.spellings.get(name, name): category for name, category in (given | dict(known)).items()}

    def final(self, names: Sequence[str]) -> tuple[Rows, list[str]]:
        """Return the final tags of each raw name, as numbers, and the names of these tags, sorted.

        The first tag of a raw name is the one that it stands for, the others are what that implies.
        """
        finals = self._finals(names)
        tags = sorted({tag for final in finals for tag in final})
        number = {tag: i for i, tag in enumerate(tags)}
        return Rows.of([[number[tag] for tag in final] for final in finals]), tags

    def rejected(self, names: Sequence[str]) -> list[list[str]]:
        """Return the final tags that each raw name rejects: the one that it stands for, and all that imply that one.

        Who says that there is no animal says that there is no cat. Implications are not followed the other way: an
        image without a cat may show another animal.
        """
        implying: defaultdict[str, list[str]] = defaultdict(list)
        for name, implied in self.implied.items():
            for other in implied:
                implying[self.spellings.get(other, other)].append(self.spellings.get(name, name))
        return [final and [final[0], *implying[final[0]]] for final in self._finals(names)]

    def _finals(self, names: Sequence[str]) -> list[list[str]]:
        """Return the final tags of each raw name: the one that it stands for, then those that it implies."""
        blacklisted = matcher(self.blacklist, names)

        @cache
        def is_wanted(name: str) -> bool:
            return blacklisted(name) is None and is_tag(name)

        finals: list[list[str]] = []
        for raw in map(canonical, names):
            plain, _ = split_namespace(raw)
            name = self.aliases.get(plain, plain)
            is_kept = is_wanted(raw) and is_wanted(plain) and is_wanted(name)
            kept = [name, *filter(is_wanted, self.implied.get(name, ()))] if is_kept else []
            finals.append([self.spellings.get(tag, tag) for tag in kept])
        return finals

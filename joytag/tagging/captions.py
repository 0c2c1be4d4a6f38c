"""An image's tags to the names that are written: choice, order, spelling and merging."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from joytag.data.tag_names import canonical, is_kaomoji


@dataclass(frozen=True)
class Captions:
    """How tags are chosen, ordered and spelled. Tags to compare with may be given with underscores or spaces.

    Excluded tags vanish first, then all but the best `max_tags`; `replace` renames, and of tags that then
    share a name the better stays. `always_first` go to the front, if they are there at all. `underscores`
    "space" turns `blue_hair` into `blue hair` but leaves kaomoji alone; `escape` writes `\\(` for `(`.
    Raises ValueError for a separator that could not be told from the tags.
    """

    exclude: Sequence[str] = ()
    replace: dict[str, str] = field(default_factory=dict)
    always_first: Sequence[str] = ()
    max_tags: int | None = None
    sort: Literal["score", "vocabulary"] = "score"
    underscores: Literal["keep", "space"] = "keep"
    escape: bool = False
    separator: str = ", "

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("--separator: must not be empty")
        if self.separator.isspace() and "\n" not in self.separator and self.underscores == "space":
            raise ValueError("--separator: white space cannot part tags that contain spaces; use --underscores keep")

    def choose(self, tags: dict[str, float], vocabulary: dict[str, int]) -> dict[str, float]:
        """The names to write with their scores, in order, of `tags` with their scores, best first.

        `vocabulary` gives each tag's place, for `sort="vocabulary"`.
        """
        unwanted = {canonical(tag) for tag in self.exclude}
        chosen = [tag for tag in tags if canonical(tag) not in unwanted][: self.max_tags]
        renamed = {canonical(old): new for old, new in self.replace.items()}
        scores: dict[str, float] = {}
        for tag in chosen:
            scores.setdefault(self.spell(renamed.get(canonical(tag), tag)), tags[tag])
        if self.sort == "vocabulary":
            place = {self.spell(renamed.get(canonical(tag), tag)): vocabulary[tag] for tag in reversed(chosen)}
            scores = {name: scores[name] for name in sorted(scores, key=place.__getitem__)}
        return {name: scores[name] for name in self._in_front(scores)}

    def spell(self, tag: str) -> str:
        """A tag as it is written."""
        if self.underscores == "space" and not is_kaomoji(tag):
            tag = tag.replace("_", " ")
        return re.sub(r"(?<!\\)([()])", r"\\\1", tag) if self.escape else tag

    def merge(self, text: str, names: Iterable[str]) -> list[str]:
        """The tags of an existing text as they are spelled there, then those of `names` that it lacks."""
        separator = self.separator.strip() or ("\n" if "\n" in self.separator else " ")
        merged: dict[str, str] = {}
        for name in [*re.split(f"{re.escape(separator)}|\n", text), *names]:
            if name.strip():
                merged.setdefault(canonical(name), name.strip())
        return self._in_front(merged.values())

    def _in_front(self, names: Iterable[str]) -> list[str]:
        rank = {canonical(tag): place for place, tag in enumerate(self.always_first)}
        return sorted(names, key=lambda name: rank.get(canonical(name), len(rank)))


def read_thresholds(path: Path | None, tags: list[str], default: float) -> np.ndarray:
    """Each tag's threshold, float32 [N]: that of a file if there is one and it names the tag, else `default`.

    The file is JSON, `{"tag": threshold}`, or, if its name ends in .csv, a table with the columns `tag` and
    `threshold`, such as an evaluation's thresholds.csv; other columns are ignored. Raises ValueError naming the file
    and the tag when a tag is unknown or occurs twice, or a threshold is not in (0, 1).
    """
    thresholds = np.full(len(tags), default, dtype=np.float32)
    if path is None:
        return thresholds
    place = {canonical(tag): index for index, tag in enumerate(tags)}
    seen: set[str] = set()
    for tag, value in _csv_thresholds(path) if path.suffix.lower() == ".csv" else _json_thresholds(path):
        name = canonical(tag)
        if name not in place:
            close = difflib.get_close_matches(name, place, n=1)
            raise ValueError(f"{path}: {tag}: no tag of the model" + (f"; did you mean {close[0]}?" if close else ""))
        if name in seen:
            raise ValueError(f"{path}: {tag}: occurs twice; leave one threshold")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{path}: {tag}: {value!r} is not a number between 0 and 1")
        seen.add(name)
        thresholds[place[name]] = value
    return thresholds


def _json_thresholds(path: Path) -> list[tuple[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, _Pairs):
        raise ValueError(f'{path}: write it as {{"tag": 0.4, ...}}')
    return values


class _Pairs(list[tuple[str, Any]]):
    """A JSON object whose keys may occur twice."""


def _csv_thresholds(path: Path) -> list[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            header, *rows = (row for row in csv.reader(file, strict=True) if row)
        columns = [header.index(name) for name in ("tag", "threshold")]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid CSV in UTF-8 ({error})") from None
    except ValueError:
        raise ValueError(f"{path}: line 1: must name the columns tag and threshold, parted by commas") from None
    pairs: list[tuple[str, Any]] = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}: {','.join(row)!r}: {len(row)} values, but the first line names {len(header)}")
        tag, value = (row[column] for column in columns)
        try:
            pairs.append((tag, float(value)))
        except ValueError:
            pairs.append((tag, value))  # which the caller refuses
    return pairs

"""Captions: the names that are written for an image's tags and scores."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from joytag.data.tag_names import canonical, describe_unknown, is_kaomoji, matcher


class OptionError(ValueError):
    """An option whose value cannot be used, or not together with another one."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option
        self.reason = reason


@dataclass(frozen=True)
class CaptionStyle:
    r"""Which tags are written, in which order and spelling.

    Names of tags may have any spelling; those in `exclude`, `always_first` and the keys of `replace` may be patterns,
    see `tag_names.matcher`. `replace` renames tags first; its values are written as they are. Then those in `exclude`
    are dropped, and all but the best `max_tags`. Of tags that share a name, the one with the higher score is kept. Tags
    in `always_first` move to the front if the image has them. `underscores="space"` turns `blue_hair` into `blue hair`
    but keeps kaomoji such as `^_^`. `escape` writes `\(` for `(`. Raises OptionError for spaces as the
    separator of tags that contain spaces.
    """

    exclude: Sequence[str] = ()
    replace: Mapping[str, str] = field(default_factory=dict)
    always_first: Sequence[str] = ()
    max_tags: int | None = None
    sort: Literal["score", "vocabulary"] = "score"
    underscores: Literal["keep", "space"] = "keep"
    escape: bool = False
    separator: str = ", "

    def __post_init__(self) -> None:
        if not self.separator:
            raise OptionError("separator", "must not be empty")
        if self.separator.isspace() and "\n" not in self.separator and self.underscores == "space":
            raise OptionError("separator", "spaces cannot separate tags that contain spaces; keep their underscores")

    def spell(self, tag: str) -> str:
        """Return the spelling in which a tag is written."""
        if self.underscores == "space" and not is_kaomoji(tag):
            tag = tag.replace("_", " ")
        return re.sub(r"(?<!\\)([()])", r"\\\1", tag) if self.escape else tag


class Captions:
    """The captions that a style gives to images with the `tags` of a model, in the order of its vocabulary."""

    def __init__(self, style: CaptionStyle, tags: Sequence[str]) -> None:
        self.style = style
        self._tags = tags
        self._positions = {tag: position for position, tag in enumerate(tags)}
        new = list(style.replace.values())
        replaced = matcher(style.replace, tags)
        named = {tag: style.spell(tag) if (found := replaced(tag)) is None else new[found] for tag in tags}
        excluded = matcher(style.exclude, [*tags, *new])
        self._names = {tag: name for tag, name in named.items() if excluded(name) is None}
        self._first = matcher(style.always_first, [*tags, *new])

    def unknown(self) -> dict[str, str]:
        """Return the names that mean no tag of the model, described in one line for each field of the style."""
        written = [*self._tags, *self.style.replace.values()]
        fields = {
            "exclude": describe_unknown(self.style.exclude, written),
            "replace": describe_unknown(self.style.replace, self._tags),
            "always_first": describe_unknown(self.style.always_first, written),
        }
        return {name: described for name, described in fields.items() if described}

    def choose(self, tags: Mapping[str, float]) -> dict[str, float]:
        """Return the names to write, in order, with their scores. `tags` maps an image's tags to scores, best first."""
        chosen = [tag for tag in tags if tag in self._names][: self.style.max_tags]
        scores: dict[str, float] = {}
        for tag in chosen:
            scores.setdefault(self._names[tag], tags[tag])
        if self.style.sort == "vocabulary":
            # The best tag of a name comes last, and counts.
            by_name = {self._names[tag]: self._positions[tag] for tag in reversed(chosen)}
            scores = {name: scores[name] for name in sorted(scores, key=by_name.__getitem__)}
        return {name: scores[name] for name in self._move_first(scores)}

    def join(self, names: Iterable[str]) -> str:
        """Return names as one text."""
        return self.style.separator.join(names)

    def merge(self, text: str, names: Iterable[str]) -> list[str]:
        """Return the tags of an existing text, spelled as they are there, then the `names` that it lacks."""
        merged: dict[str, str] = {}
        for name in [*self._divide.findall(text), *names]:
            if name.strip():
                merged.setdefault(canonical(name), name.strip())
        return self._move_first(merged.values())

    @cached_property
    def _divide(self) -> re.Pattern[str]:
        """A pattern for one tag of a text and the separator behind it; names that contain the separator stay whole."""
        separator = self.style.separator.strip() or ("\n" if "\n" in self.style.separator else " ")
        end = rf"[^\S\n]*(?:{re.escape(separator)}|\n|\Z)"
        whole = sorted((name for name in self._names.values() if separator in name), key=len, reverse=True)
        kinds = [*(rf"{re.escape(name)}(?={end})" for name in whole), ".*?"]
        return re.compile(rf"[^\S\n]*({'|'.join(kinds)}){end}")

    def _move_first(self, names: Iterable[str]) -> list[str]:
        last = len(self.style.always_first)
        return sorted(names, key=lambda name: last if (rank := self._first(name)) is None else rank)


def read_thresholds(path: Path | None, tags: list[str], default: float) -> NDArray[np.float32]:
    """Return each tag's threshold, float32 [N]: that in a file, or `default`.

    The file is JSON, `{"tag": threshold}`, or, if its name ends in .csv, a table with the columns `tag` and
    `threshold`, such as an evaluation's thresholds.csv; other columns are ignored. A tag may be a pattern, see
    `tag_names.matcher`. Raises ValueError naming the file and the tag when a tag is unknown or occurs twice, or a
    threshold is not in (0, 1).
    """
    thresholds = np.full(len(tags), default, dtype=np.float32)
    if path is None:
        return thresholds
    pairs = _csv_thresholds(path) if path.suffix.lower() == ".csv" else _json_thresholds(path)
    if unknown := describe_unknown((tag for tag, _ in pairs), tags):
        raise ValueError(f"{path}: the model has no tag {unknown}")
    seen: set[str] = set()
    for tag, value in pairs:
        if canonical(tag) in seen:
            raise ValueError(f"{path}: {tag}: occurs twice; keep one threshold")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{path}: {tag}: {value!r} is not a number between 0 and 1")
        seen.add(canonical(tag))
    find = matcher((tag for tag, _ in pairs), tags)
    for position, tag in enumerate(tags):
        if (found := find(tag)) is not None:
            thresholds[position] = pairs[found][1]
    return thresholds


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as (key, value) pairs, so that repeated keys are kept."""


def _json_thresholds(path: Path) -> list[tuple[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # also for bytes that are no UTF-8, and for thousands of digits
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, _Pairs):
        raise ValueError(f'{path}: write it as {{"tag": 0.4, ...}}')
    return values


def _csv_thresholds(path: Path) -> list[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            header, *rows = (row for row in csv.reader(file, strict=True) if row)
        columns = [header.index(name) for name in ("tag", "threshold")]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid CSV in UTF-8 ({error})") from None
    except ValueError:
        raise ValueError(f"{path}: line 1: must name the columns tag and threshold, separated by commas") from None
    pairs: list[tuple[str, Any]] = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}: {','.join(row)!r}: {len(row)} values, but the first line names {len(header)}")
        tag, value = (row[column] for column in columns)
        try:
            pairs.append((tag, float(value)))
        except ValueError:
            pairs.append((tag, value))  # read_thresholds refuses it
    return pairs

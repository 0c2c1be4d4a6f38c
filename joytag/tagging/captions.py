"""Captions: the names that are written for an image's tags and scores."""

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
from numpy.typing import NDArray

from joytag.data.tag_names import canonical, is_kaomoji


class OptionError(ValueError):
    """An option whose value cannot be used, or not together with another one."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option = option
        self.reason = reason


@dataclass(frozen=True)
class CaptionStyle:
    r"""Which tags are written, in which order and spelling. The options accept any spelling of a tag.

    Excluded tags are dropped first, then all but the best `max_tags`. `replace` renames tags; of tags that then share
    a name, the one with the higher score is kept. Tags in `always_first` move to the front if the image has them.
    `underscores="space"` turns `blue_hair` into `blue hair` but keeps kaomoji such as `^_^`. `escape` writes `\(` for
    `(`. Raises OptionError for a separator that also occurs within tags.
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
            raise OptionError("separator", "must not be empty")
        if self.separator.isspace() and "\n" not in self.separator and self.underscores == "space":
            raise OptionError("separator", "spaces cannot separate tags that contain spaces; keep their underscores")

    def choose(self, tags: dict[str, float], positions: dict[str, int]) -> dict[str, float]:
        """Return the names to write, in order, with their scores.

        `tags` maps an image's tags to scores, best first; `positions` maps all tags to their positions in the
        vocabulary, for `sort="vocabulary"`.
        """
        excluded = {canonical(tag) for tag in self.exclude}
        chosen = [tag for tag in tags if canonical(tag) not in excluded][: self.max_tags]
        replacements = {canonical(old): new for old, new in self.replace.items()}
        names = {tag: self.spell(replacements.get(canonical(tag), tag)) for tag in chosen}
        scores: dict[str, float] = {}
        for tag, name in names.items():
            scores.setdefault(name, tags[tag])
        if self.sort == "vocabulary":
            by_name = {names[tag]: positions[tag] for tag in reversed(chosen)}  # the best tag of a name comes last
            scores = {name: scores[name] for name in sorted(scores, key=by_name.__getitem__)}
        return {name: scores[name] for name in self._move_first(scores)}

    def spell(self, tag: str) -> str:
        """Return the spelling in which a tag is written."""
        if self.underscores == "space" and not is_kaomoji(tag):
            tag = tag.replace("_", " ")
        return re.sub(r"(?<!\\)([()])", r"\\\1", tag) if self.escape else tag

    def merge(self, text: str, names: Iterable[str]) -> list[str]:
        """Return the tags of an existing text, spelled as they are there, then the `names` that it lacks."""
        separator = self.separator.strip() or ("\n" if "\n" in self.separator else " ")
        merged: dict[str, str] = {}
        for name in [*re.split(f"{re.escape(separator)}|\n", text), *names]:
            if name.strip():
                merged.setdefault(canonical(name), name.strip())
        return self._move_first(merged.values())

    def _move_first(self, names: Iterable[str]) -> list[str]:
        rank = {canonical(tag): index for index, tag in enumerate(self.always_first)}
        return sorted(names, key=lambda name: rank.get(canonical(name), len(rank)))


def read_thresholds(path: Path | None, tags: list[str], default: float) -> NDArray[np.float32]:
    """Return each tag's threshold, float32 [N]: that in a file, or `default`.

    The file is JSON, `{"tag": threshold}`, or, if its name ends in .csv, a table with the columns `tag` and
    `threshold`, such as an evaluation's thresholds.csv; other columns are ignored. Raises ValueError naming the file
    and the tag when a tag is unknown or occurs twice, or a threshold is not in (0, 1).
    """
    thresholds = np.full(len(tags), default, dtype=np.float32)
    if path is None:
        return thresholds
    positions = {canonical(tag): index for index, tag in enumerate(tags)}
    seen: set[str] = set()
    for tag, value in _csv_thresholds(path) if path.suffix.lower() == ".csv" else _json_thresholds(path):
        name = canonical(tag)
        if name not in positions:
            close = difflib.get_close_matches(name, positions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path}: {tag}: the model has no such tag{hint}")
        if name in seen:
            raise ValueError(f"{path}: {tag}: occurs twice; keep one threshold")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{path}: {tag}: {value!r} is not a number between 0 and 1")
        seen.add(name)
        thresholds[positions[name]] = value
    return thresholds


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as (key, value) pairs, so that repeated keys are kept."""


def _json_thresholds(path: Path) -> list[tuple[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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

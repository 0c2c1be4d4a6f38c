"""`decisions.jsonl`: what people decided about tags of images; a row is on the disk before anybody sees it as kept."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, StringConstraints, ValidationError

from joytag.core import jsonl
from joytag.core.settings import Settings
from joytag.core.terminal import printable
from joytag.data.tag_names import NEGATIVE, canonical, is_kaomoji

FILE = "decisions.jsonl"
Answer = Literal["yes", "no", "unsure"]
ANSWERS = get_args(Answer)


def _tag(text: str) -> str:
    """Return a tag in its canonical spelling. Raises ValueError for one that no file of tags could hold."""
    tag = canonical(text)
    if not tag or len(tag) > 200 or printable(tag) != tag or (tag.startswith(NEGATIVE) and not is_kaomoji(tag)):
        raise ValueError("not a tag: give 1 to 200 printable characters, of which the first is no hyphen")
    return tag


Tag = Annotated[str, AfterValidator(_tag)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]  # of an image's file


class Answered(Settings):
    """An answer to the question whether an image has a tag."""

    sha256: Sha256
    tag: Tag
    decision: Answer


class Decision(Answered):
    """A row of the file. Decisions of one step were made at once and are undone at once."""

    score: float | None = None
    """The model's at that time; None if the model does not know the tag, or the image had no scores yet."""
    model: str = ""
    """The model's name in the names of its files of scores."""
    time: str = ""
    """In UTC, ISO 8601."""
    step: int = 0
    """Counts up from 1."""


class Decisions:
    """The decisions in a file. Of one image and tag the last that is not undone counts. Threads may share an object.

    The file only grows: undoing appends a row, `{"undo": step}`. Rows that a killed process left incomplete, which it
    never reported as kept, are ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._steps: dict[int, list[Decision]] = {}  # that are not undone
        self._last = 0
        self._by_tag: defaultdict[str, dict[str, list[Decision]]] = defaultdict(dict)
        self._by_image: defaultdict[str, dict[str, list[Decision]]] = defaultdict(dict)
        for row in jsonl.read(path):
            if "undo" in row:
                self._remove(row["undo"])
            else:
                with suppress(ValidationError):
                    self._insert([Decision.model_validate(row)])

    def add(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Keep decisions as one step, and return them as they are on the disk now.

        Those that are kept already are left out, so that a request may be repeated. Raises OSError, and keeps none.
        """
        with self._lock:
            latest = {(row.sha256, row.tag): row for row in decisions}
            time, step = datetime.now(UTC).isoformat(timespec="seconds"), self._last + 1
            new = [
                row.model_copy(update={"time": time, "step": step})
                for row in latest.values()
                if not (before := self._by_tag[row.tag].get(row.sha256)) or before[-1].decision != row.decision
            ]
            if new:
                jsonl.append(self.path, *map(Decision.model_dump, new), durable=True)
                self._insert(new)
            return new

    def undo(self, step: int | None = None) -> list[Decision]:
        """Undo a step, by default the last one, and return its decisions; [] if it is undone already.

        Earlier decisions about these images and tags count again. Raises OSError, and undoes nothing.
        """
        with self._lock:
            step = max(self._steps, default=0) if step is None else step
            if step not in self._steps:
                return []
            time = datetime.now(UTC).isoformat(timespec="seconds")
            jsonl.append(self.path, {"undo": step, "time": time}, durable=True)
            return self._remove(step)

    def of_tag(self, tag: str) -> dict[str, Decision]:
        """Return the decisions about a tag by image, in the order in which they were made."""
        with self._lock:
            rows = [history[-1] for history in self._by_tag.get(tag, {}).values() if history]
        return {row.sha256: row for row in sorted(rows, key=lambda row: row.step)}

    def of_image(self, sha256: str) -> dict[str, Decision]:
        """Return the decisions about an image by tag."""
        with self._lock:
            return {tag: history[-1] for tag, history in self._by_image.get(sha256, {}).items() if history}

    def by_image(self) -> dict[str, dict[str, Decision]]:
        """Return all decisions by image and tag."""
        found = {image: self.of_image(image) for image in list(self._by_image)}
        return {image: rows for image, rows in found.items() if rows}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of each answer for each tag that has one."""
        answers = {tag: [row.decision for row in self.of_tag(tag).values()] for tag in list(self._by_tag)}
        return {tag: {name: given.count(name) for name in ANSWERS} for tag, given in answers.items() if given}

    def _insert(self, rows: list[Decision]) -> None:
        for row in rows:
            history = self._by_tag[row.tag].setdefault(row.sha256, [])
            history.append(row)
            self._by_image[row.sha256][row.tag] = history
            self._steps.setdefault(row.step, []).append(row)
            self._last = max(self._last, row.step)

    def _remove(self, step: Any) -> list[Decision]:
        rows = self._steps.pop(step, []) if isinstance(step, int) else []
        for row in rows:
            self._by_tag[row.tag][row.sha256].remove(row)
        return rows

"""The tags of one image that need a decision, and what follows from a decision: implied tags and exclusive groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from joytag.app.decisions import Answer, Decision, Tag
from joytag.app.queues import logits
from joytag.core.settings import Settings

NEAR = 2.0  # logits; a tag that scores within them of its threshold needs a decision
MOST = 60  # tags near their threshold that are shown


class Rules(Settings):
    """What people know about tags, from a YAML file."""

    implies: dict[Tag, list[Tag]] = {}
    """Tags that an image also has if it has the key: `cat: [animal]`."""
    exclusive: dict[str, list[Tag]] = {}
    """Groups of which an image has at most one tag: `skin tones: [light_skin_tone, dark_skin_tone]`."""

    def implied_by(self, tag: str) -> list[str]:
        """Return the tags that a tag implies, directly or by others, without itself."""
        found = [tag]
        for name in found:  # which grows
            found += [other for other in self.implies.get(name, ()) if other not in found]
        return found[1:]

    def consequences(self, tag: str) -> Iterator[tuple[str, Answer]]:
        """Yield what follows when an image has a tag: yes for what it implies, no for what excludes one of these."""
        has = [tag, *self.implied_by(tag)]
        for name in has[1:]:
            yield name, "yes"
        for group in self.exclusive.values():
            if not set(group).isdisjoint(has):
                for name in group:
                    if name not in has:
                        yield name, "no"


class Suggestion(Settings):
    """A tag of an image."""

    tag: str
    score: float | None
    """None if the model does not know the tag."""
    threshold: float | None
    """The tag's own; None if the model does not know it."""
    answer: Answer | None
    """The decision, if there is one."""


class Suggestions(Settings):
    """One image's tags, by what they need."""

    near: list[Suggestion]
    """Undecided tags near their threshold, the nearest first."""
    sure: list[Suggestion]
    """Undecided tags far above their threshold, the best first."""
    decided: list[Suggestion]
    """Tags with a decision, the first one first."""
    implied: dict[str, list[str]]
    """Undecided tags that follow from sure and decided ones, each with those."""
    groups: dict[str, list[Suggestion]]
    """Exclusive groups of which a tag is not far below its threshold, or decided on as a yes."""


def suggest(
    names: Sequence[str],
    scores: NDArray[np.floating],
    thresholds: NDArray[np.float32],
    decided: Mapping[str, Decision],
    rules: Rules,
) -> Suggestions:
    """Sort an image's tags by what they need; takes the model's names, scores [N] and thresholds [N]."""
    margins = logits(scores) - logits(thresholds)
    rows = {name: row for row, name in enumerate(names)}

    def suggestion(tag: str) -> Suggestion:
        answer, row = decided[tag].decision if tag in decided else None, rows.get(tag)
        score, threshold = (None, None) if row is None else (float(scores[row]), float(thresholds[row]))
        return Suggestion(tag=tag, score=score, threshold=threshold, answer=answer)

    undecided = [row for row in np.argsort(np.abs(margins), kind="stable").tolist() if names[row] not in decided]
    sure = sorted((row for row in undecided if margins[row] >= NEAR), key=lambda row: -margins[row])
    has = [names[row] for row in sure] + [tag for tag, row in decided.items() if row.decision == "yes"]
    implied: dict[str, list[str]] = {}
    for tag in has:
        for name in rules.implied_by(tag):
            if name not in has and name not in decided:
                implied.setdefault(name, []).append(tag)
    near = [row for row in undecided if abs(margins[row]) < NEAR and names[row] not in implied]
    seen = {*has, *(names[row] for row in np.flatnonzero(margins > -NEAR).tolist())}
    groups = {name: list(map(suggestion, group)) for name, group in rules.exclusive.items() if seen & {*group}}
    return Suggestions(
        near=[suggestion(names[row]) for row in near[:MOST]],
        sure=[suggestion(names[row]) for row in sure],
        decided=[suggestion(tag) for tag in decided],
        implied=implied,
        groups=groups,
    )

"""Labelling of one folder or dataset: its images, scores and decisions, and the questions that come next."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from joytag.app import applying, decisions, queues
from joytag.app.collection import STATE, STOP_FIRST, Collection
from joytag.app.decisions import Decision, Decisions
from joytag.app.learning import Example, Learning
from joytag.app.queues import TagQueue
from joytag.app.scores import Scores
from joytag.app.served import ServedModel, read_report
from joytag.app.suggestions import NEAR, Rules, Suggestions, suggest
from joytag.core.lock import sole_writer
from joytag.data.tag_names import NEGATIVE, canonical
from joytag.models import release
from joytag.tagging.tagger import Tagger

DOUBTS = "label_errors.csv"  # of an evaluation, in the model's directory
RUNS = "runs"


class Current(NamedTuple):
    """The model that scores the images: a name that follows from its files, and its canonical tags in order."""

    served: ServedModel
    name: str
    tags: list[str]
    scores: Scores

    def row(self, sha256: str) -> NDArray[np.float16] | None:
        """Return an image's scores, [N]; None if it has none yet."""
        row = int(self.scores.rows([sha256])[0])
        return self.scores.table()[row] if row >= 0 else None


class Scored(NamedTuple):
    """The images that have scores, and their rows, int64 [P], in a table, float16 [rows, N]."""

    images: list[str]
    rows: NDArray[np.int64]
    table: NDArray[np.float16]

    def vectors(self, images: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the scores of images by index, [n, N]."""
        return self.table[self.rows[images]]


class Doubt(BaseModel):
    """A label that an evaluation holds for wrong."""

    sha256: str
    path: str = Field(description="Of the original file in its source's folder.")
    tag: str
    labelled: bool = Field(description="The label: whether the image has the tag.")
    score: float
    confidence: float = Field(description="From 0 to 1, that the label is wrong and not the model.")


class Labelling:
    """What the label tab works on; open it with `opened`."""

    def __init__(self, collection: Collection, model: ServedModel, rules: Rules) -> None:
        self.collection, self.rules, self.first = collection, rules, model
        self.decisions = Decisions(collection.state / decisions.FILE)
        self.learning = Learning(collection.state / RUNS)
        self._use(model)

    @classmethod
    @contextmanager
    def opened(cls, root: Path, model: ServedModel, rules: Rules | None = None) -> Iterator[Labelling]:
        """Open a folder or a dataset, and score its images in the background within a `with` block.

        Raises InUse while another process labels it, ValueError without such a folder, OSError, DatasetError.
        """
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder")
        with ExitStack() as stack:
            stack.enter_context(sole_writer(root / STATE, STOP_FIRST))
            labelling = cls(Collection(root), model, rules or Rules())
            stack.callback(lambda: labelling.current.scores.close())
            stack.callback(labelling.collection.stop)
            yield labelling

    def use(self, directory: Path) -> None:
        """Score the images by another release, and order the questions by it. Raises ReleaseError, OSError."""
        before = self.current
        tagger = Tagger.load(directory, str(before.served.tagger.device), before.served.tagger.precision)
        self._use(ServedModel(directory.parent.parent.name, directory, tagger))
        before.scores.close()

    def _use(self, model: ServedModel) -> None:
        hashes = json.dumps(sorted(release.hashes(model.directory).items()))
        name, tags = hashlib.sha256(hashes.encode()).hexdigest()[:16], list(map(canonical, model.tagger.tags))
        scores = Scores(self.collection.state / f"scores-{name}", len(tags))
        self.current = Current(model, name, tags, scores)
        self.collection.start(model.tagger, scores)

    def scored(self) -> Scored:
        """Return the images that can be asked about."""
        images = sorted({file.sha256 for file in self.collection.files() if not file.error})
        rows, table = self.current.scores.rows(images), self.current.scores.table()
        return Scored([images[i] for i in np.flatnonzero(rows >= 0)], rows[rows >= 0], table)

    def queue(self, tag: str, scored: Scored) -> TagQueue:
        """Return the questions about a tag, which the model may not know."""
        answers = {image: row.decision for image, row in self.decisions.of_tag(tag).items()}
        if tag in self.current.tags:
            column = self.current.tags.index(tag)
            threshold = float(self.current.served.thresholds[column])
            return TagQueue(tag, scored.images, scored.table[scored.rows, column], threshold, answers)
        positions = {image: position for position, image in enumerate(scored.images)}
        yes, no = ([positions[i] for i, a in answers.items() if a == name and i in positions] for name in ("yes", "no"))
        scores = queues.scores_by_example(len(positions), scored.vectors, yes, no)
        return TagQueue(tag, scored.images, scores, 0.5, answers)

    def suggestions(self, sha256: str) -> Suggestions | None:
        """Return the tags of an image, None while it has no scores."""
        scores, decided = self.current.row(sha256), self.decisions.of_image(sha256)
        if scores is None:
            return None
        return suggest(self.current.tags, scores, self.current.served.thresholds, decided, self.rules)

    def image_order(self) -> list[str]:
        """Return the images with undecided tags near their thresholds, those with the most of them first."""
        # Scores are not negative, and such float16 numbers are in the order of their bits, which are compared faster.
        margins = queues.logits(self.current.served.thresholds) + np.array([[-NEAR], [NEAR]])
        low, high = (1 / (1 + np.exp(-margins))).astype(np.float16).view(np.uint16)
        scored = self.scored()
        parts = np.array_split(np.arange(len(scored.images)), len(scored.images) // queues.PART + 1)
        bits = (scored.vectors(part).view(np.uint16) for part in parts)
        near = np.concatenate([((rows > low) & (rows < high)).sum(axis=1) for rows in bits])
        for position, image in enumerate(scored.images):
            if self.decisions.of_image(image) and (found := self.suggestions(image)) is not None:
                near[position] = len(found.near)
        return [scored.images[i] for i in np.argsort(-near, kind="stable") if near[i]]

    def decide(self, answers: Sequence[Decision]) -> list[Decision]:
        """Keep decisions with what follows from them by the rules, as one step; returns those that are new.

        What people have decided themselves is not changed by what follows. Raises OSError, and keeps none.
        """
        current, given = self.current, {(row.sha256, row.tag) for row in answers}
        columns = {tag: column for column, tag in enumerate(current.tags)}
        every = list(answers)
        for row in answers:
            for tag, answer in self.rules.consequences(row.tag) if row.decision == "yes" else ():
                if (row.sha256, tag) not in given and tag not in self.decisions.of_image(row.sha256):
                    every.append(row.model_copy(update={"tag": tag, "decision": answer}))

        def complete(row: Decision) -> Decision:
            scores, column = current.row(row.sha256), columns.get(row.tag)
            score = None if scores is None or column is None else float(scores[column])
            return row.model_copy(update={"score": score, "model": current.name})

        return self.decisions.add(map(complete, every))

    def doubts(self) -> list[Doubt]:
        """Return the undecided ones of the label errors that an evaluation of the model found in these images."""

        def parse(text: str) -> list[Doubt]:
            rows = csv.DictReader(io.StringIO(text, newline=""))
            return [Doubt.model_validate(row) for row in rows if self.collection.find(row.get("sha256", ""))]

        known = read_report(self.current.served.directory / DOUBTS, parse) or []
        return [row for row in known if canonical(row.tag) not in self.decisions.of_image(row.sha256)]

    def examples(self) -> Iterable[Example]:
        """Yield the images with decisions, and for each new tag as many that are assumed not to have it.

        These are drawn from the undecided half that resembles the images with the tag least. The decided ones without
        it resemble them most: from those alone a model learns to find the tag everywhere else.
        """
        answers, scored = applying.answers(self.decisions.by_image()), self.scored()
        for tag in self.decisions.counts().keys() - set(map(canonical, self.first.tagger.tags)):
            queue = self.queue(tag, scored)
            unlike = queue.is_left & (queue.scores < np.median(queue.scores)) if scored.images else queue.is_left
            for i in np.flatnonzero(unlike)[: len(queue.answers)]:
                answers.setdefault(scored.images[i], {})[tag] = False
        for sha256, its in answers.items():
            for name in self.collection.find(sha256)[:1]:
                tags = [tag if has else NEGATIVE + tag for tag, has in its.items()]
                yield self.collection.path(name), sha256, tags

"""The release to export: its model, and what is known about its tags and its quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.export.manifest import Evaluation
from joytag.models import checkpoint, release
from joytag.models.architectures import Model
from joytag.tagging.captions import read_thresholds

METRICS = ("micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall", "macro_f1", "map")


class TagFacts(NamedTuple):
    """What is known about a tag: a category of Danbooru, and its number of images in a dataset."""

    category: int
    images: int


UNKNOWN = TagFacts(0, 0)


class Tag(NamedTuple):
    """A tag of the release. `threshold` is the one that its evaluation suggests, else the default."""

    name: str
    category: int
    images: int
    threshold: float


@dataclass(frozen=True)
class Source:
    """A release. `evaluation` is None if nothing beside it measures these weights; `hashes` are those of its files."""

    directory: Path
    model: Model
    tags: list[Tag]
    hashes: dict[str, str]
    evaluation: Evaluation | None

    @property
    def size(self) -> int:
        """The side of the model's input images, pixels."""
        return self.model.config.image_size

    @property
    def suggested(self) -> dict[str, float]:
        """The thresholds that the evaluation suggests, by tag, where they are not the default."""
        return {tag.name: tag.threshold for tag in self.tags if tag.threshold != DEFAULT_THRESHOLD}

    @classmethod
    def open(cls, directory: Path, about: Mapping[str, TagFacts]) -> Source:
        """Read a release or a checkpoint, with the report of an evaluation if there is one; `about` is by tag name.

        Raises ReleaseError for the release, and ValueError for a report that cannot be read.
        """
        model, names = release.load(directory)
        hashes = release.hashes(directory)
        results = checkpoint.results_directory(directory)
        evaluation = _read_evaluation(results / "metrics.json", hashes)
        path = results / "thresholds.csv" if evaluation is not None else None
        thresholds = read_thresholds(path if path and path.is_file() else None, names, DEFAULT_THRESHOLD)
        tags = [
            Tag(name, *about.get(name, UNKNOWN), float(f"{threshold:.6g}"))
            for name, threshold in zip(names, thresholds, strict=True)
        ]
        return cls(directory, model, tags, hashes, evaluation)


def _read_evaluation(path: Path, hashes: dict[str, str]) -> Evaluation | None:
    """Return the figures of a metrics.json; None if there is none, or if it measures other weights."""
    if not path.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        facts, headline = report["facts"], report["headline"]
        if facts["model_files"] != hashes:
            return None
        figures = {**headline["fixed"], **headline["ranking"]}
        metrics = {name: figures[name] for name in METRICS if figures[name]["value"] is not None}
        values = {key: facts[key] for key in ("split", "images", "tags", "threshold")}
        return Evaluation.model_validate({**values, "dataset": Path(facts["dataset"]).name, "metrics": metrics})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the metrics of an evaluation ({error!r}); evaluate the model again") from None

"""A model as the app serves it: its tagger, its tags with their thresholds, and what its evaluation says of them."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from joytag.app.batching import Batcher
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.models import checkpoint, release
from joytag.tagging import engines
from joytag.tagging.captions import read_thresholds
from joytag.tagging.tagger import Tagger

THRESHOLDS, PER_TAG, METRICS = "thresholds.csv", "per_tag.csv", "metrics.json"  # that an evaluation writes
# By field of a TagRow, the column of per_tag.csv.
COLUMNS = {key: key for key in ("name", "category", "f1", "precision", "recall")} | {"images": "positives"}


class TagRow(BaseModel):
    """A tag of a model, and how reliable it was on the images of the model's evaluation."""

    name: str
    category: str | None = Field(None, description="general, artist, copyright, character or meta; null if unknown.")
    threshold: float = Field(DEFAULT_THRESHOLD, description="The tag's own, from thresholds.csv, or else the default.")
    f1: float | None = Field(None, description="F1 at the evaluation's threshold.")
    precision: float | None = Field(None, description="Share of the images predicted to have the tag that have it.")
    recall: float | None = Field(None, description="Share of the images with the tag for which it is predicted.")
    images: int | None = Field(None, description="Evaluated images that have the tag.")


class Calibration(BaseModel):
    """How often a score was right, over all tags, on the images of the model's evaluation."""

    scores: list[float] = Field(description="Mean score of each bin, ascending.")
    shares: list[float] = Field(description="Share of the decisions in the bin whose label is yes.")


class ModelRow(BaseModel):
    """A model that is served."""

    name: str
    size: int = Field(description="Side in pixels of the square to which images are resized.")
    tags: int = Field(description="Number of tags.")
    precision: str = Field(description="Number format in which it computes.")
    threshold: float = Field(description="Default threshold, above which a tag is predicted.")
    has_evidence: bool = Field(description="Whether /api/evidence works with this model.")
    has_reliability: bool = Field(description="Whether the tags come with F1, precision and recall.")
    calibration: Calibration | None = Field(None, description="Null without an evaluation.")


class ServedModel:
    """A model with the batches of its requests; `directory` holds its release and the reports of an evaluation.

    Raises ValueError for a thresholds.csv that is not the model's, and warns of other reports that cannot be read.
    """

    def __init__(self, name: str, directory: Path, tagger: Tagger) -> None:
        self.name, self.directory, self.tagger, self.batcher = name, directory, tagger, Batcher(tagger)
        path = directory / THRESHOLDS
        self.thresholds = read_thresholds(path if path.is_file() else None, tagger.tags, DEFAULT_THRESHOLD)
        evaluated = read_report(directory / PER_TAG, _per_tag) or {}
        self.rows = [
            evaluated.get(tag, TagRow(name=tag)).model_copy(update={"threshold": round(float(threshold), 6)})
            for tag, threshold in zip(tagger.tags, self.thresholds, strict=True)
        ]
        self.row = ModelRow(
            name=name,
            size=tagger.size,
            tags=len(tagger.tags),
            precision=tagger.precision,
            threshold=DEFAULT_THRESHOLD,
            has_evidence=tagger.has_evidence,
            has_reliability=any(row.f1 is not None for row in self.rows),
            calibration=read_report(directory / METRICS, _calibration),
        )


def load(
    sources: Sequence[str], device: str = "auto", precision: str = "auto", engine: str = engines.TORCH
) -> list[ServedModel]:
    """Load models from release directories, checkpoints or the Hugging Face hub; for errors see `Tagger.load`.

    Each has the name of its directory, of its run's if that is called `release`, and no two the same.
    """
    models, names = [], Counter[str]()
    for source in sources:
        directory = checkpoint.locate(source)
        resolved = directory.resolve()
        name = resolved.parent.name if resolved.name == release.DIRECTORY else resolved.name
        name = name if Path(source).exists() else source
        names[name] += 1
        name += f" ({names[name]})" if names[name] > 1 else ""
        models.append(ServedModel(name, directory, Tagger.load(directory, device, precision, engine)))
    return models


def read_report(path: Path, parse: Any) -> Any:
    """Return what a report holds, None if it is missing, or damaged, of which a warning tells."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, LookupError, TypeError, csv.Error, RecursionError) as error:
        warnings.warn(f"{path}: cannot be read ({' '.join(str(error).split())}); it is left out", stacklevel=2)
        return None


def _per_tag(text: str) -> dict[str, TagRow]:
    """Return the category and the metrics of each tag in a per_tag.csv."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    tables = [{key: row[column] or None for key, column in COLUMNS.items()} for row in rows]
    return {row.name: row for row in map(TagRow.model_validate, tables)}


def _calibration(text: str) -> Calibration:
    """Return the calibration in a metrics.json, without its empty bins."""
    values = json.loads(text)["calibration"]
    filled = [bin for bin, count in enumerate(values["count"]) if count]
    return Calibration(
        scores=[values["mean_score"][bin] for bin in filled], shares=[values["frequency"][bin] for bin in filled]
    )

"""Predictions of several taggers, reduced to their common images and tags, with the labels to compare them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.data.dataset import Dataset, Posts, TagTable
from joytag.evaluation import predictions
from joytag.evaluation.comparison import Contender
from joytag.evaluation.contenders import SPLIT, DatasetRequired, TaggerEntry, columns_by_name, merge_labels
from joytag.evaluation.predictions import CHUNK, Predictions


class IntersectionError(ValueError):
    """Taggers without a common image or tag: one line with their directories and the remedy."""


@dataclass(frozen=True)
class Intersection:
    """Contenders, labels bool [P, N] and tags [N], all of the common images and tags; `facts` are their numbers.

    `families`, int64 [P], are the same for images that vary one another; None if that is unknown.
    """

    contenders: list[Contender]
    labels: csc_array
    families: NDArray[np.int64] | None
    tags: TagTable
    facts: dict[str, Any]


@dataclass(frozen=True)
class ReferenceLabels:
    """The labels to compare on: bool [P, N], of tags [N] and of images with these `keys`, from `source`.

    `families` are those of the images, as in Intersection.
    """

    source: Path
    keys: list[bytes]
    labels: csc_array
    families: NDArray[np.int64] | None
    tags: TagTable


def intersect(
    taggers: Sequence[TaggerEntry],
    predicted: Sequence[Predictions],
    dataset: Dataset | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Intersection:
    """Reduce the predictions of every tagger to the common images (same id, same file) and tags.

    Labels are the dataset's or, without one, those of the predictions, which must agree. Tags are the same when their
    names are, in canonical spelling and after `aliases`, which map old names to current ones. Where two tags of a
    tagger become one, the higher score counts. Raises IntersectionError when there is no common image or tag, and
    DatasetRequired when the labels of the predictions disagree.
    """
    reference = _reference_labels(predicted, dataset)
    rows = _common_rows([reference.keys, *(_image_keys(p) for p in predicted)])
    vocabularies = [reference.tags.names, *(p.tags.names for p in predicted)]
    columns = _common_columns(vocabularies, aliases)
    if not len(rows[0]) or not columns[0]:
        missing = "tag; do the names need aliases?" if len(rows[0]) else "image (the same id and the same file)"
        paths = ", ".join(str(tagger.path) for tagger in taggers)
        raise IntersectionError(f"{paths}, labelled by {reference.source}: no common {missing}")
    labels = merge_labels(reference.labels[rows[0]].tocsc(), columns[0])
    tags = _select_tags(reference.tags, [group[0] for group in columns[0]])
    contenders = []
    for tagger, own, own_rows, own_columns in zip(taggers, predicted, rows[1:], columns[1:], strict=True):
        if dataset is None:
            own_labels = merge_labels(own.labels[own_rows].tocsc(), own_columns)
            _check_labels_agree(labels, own_labels, own, reference, tags)
        scores = gather_scores(own.scores, own_rows, own_columns)
        contenders.append(Contender(tagger.letter, tagger.name, tagger.threshold, scores, _provenance(tagger, own)))
    facts = {
        "labels": str(reference.source),
        "labelled_images": len(reference.keys),
        "labelled_tags": len(reference.tags),
        "tags_by_aliases": len(tags) - len(_common_columns(vocabularies, None)[0]),
    }
    families = None if reference.families is None else reference.families[rows[0]]
    return Intersection(contenders, labels, families, tags, facts)


def _reference_labels(predicted: Sequence[Predictions], dataset: Dataset | None) -> ReferenceLabels:
    if dataset is None:
        first = predicted[0]
        return ReferenceLabels(first.directory, _image_keys(first), first.labels, first.families, first.tags)
    posts = dataset.posts(SPLIT)
    labels = predictions.label_matrix(posts, len(dataset.tags))
    return ReferenceLabels(dataset.directory, _image_keys(posts), labels, posts.families, dataset.tags)


def _image_keys(images: Posts | Predictions) -> list[bytes]:
    """Return what identifies each image: its id and sha256."""
    return [i.tobytes() + h.tobytes() for i, h in zip(images.ids, images.hashes, strict=True)]


def _common_rows(keys: Sequence[Sequence[bytes]]) -> list[NDArray[np.int64]]:
    """Return the rows of the common images in each list of keys, int64 [P], in the order of the first."""
    rows = [{key: row for row, key in enumerate(own)} for own in keys]
    common = [key for key in rows[0] if all(key in own for own in rows)]
    return [np.array([own[key] for key in common], dtype=np.int64) for own in rows]


def _common_columns(vocabularies: Sequence[Sequence[str]], aliases: Mapping[str, str] | None) -> list[list[list[int]]]:
    """Return the columns of the common tags in each vocabulary, after aliases, in the order of the first."""
    columns = [columns_by_name(names, aliases) for names in vocabularies]
    common = [name for name in columns[0] if all(name in own for own in columns)]
    return [[own[name] for name in common] for own in columns]


def _select_tags(tags: TagTable, chosen: Sequence[int]) -> TagTable:
    names = [tags.names[i] for i in chosen]
    return TagTable(names, tags.categories[chosen], tags.counts[chosen], tags.totals[chosen])


def _provenance(tagger: TaggerEntry, predicted: Predictions) -> dict[str, Any]:
    own = predicted.provenance
    return {
        "kind": tagger.kind,
        "path": str(tagger.path),
        "predictions": str(predicted.directory),
        "images": len(predicted),
        "undecodable": len(own.get("undecodable", ())),
        "tags": len(predicted.tags),
        **{key: own.get(key) for key in ("model", "model_files", "dataset", "image_size", "dtype", "date")},
    }


def gather_scores(
    scores: NDArray[np.float16], rows: NDArray[np.int64], columns: Sequence[Sequence[int]]
) -> NDArray[np.float16]:
    """Return scores, float16, of some rows and columns; the highest where several columns become one.

    Returns `scores` itself, not a copy, when all rows and columns are wanted in their order.
    """
    first = np.array([group[0] for group in columns])
    several = [(j, group) for j, group in enumerate(columns) if len(group) > 1]
    same = [np.array_equal(wanted, np.arange(n)) for wanted, n in zip((rows, first), scores.shape, strict=True)]
    if all(same) and not several:
        return scores
    gathered = np.empty((len(rows), len(columns)), dtype=np.float16)
    for start in range(0, len(rows), CHUNK):
        block = np.asarray(scores[rows[start : start + CHUNK]])
        gathered[start : start + CHUNK] = block[:, first]
        for j, group in several:
            gathered[start : start + CHUNK, j] = block[:, group].max(axis=1)
    return gathered


def _check_labels_agree(
    labels: csc_array, others: csc_array, predicted: Predictions, reference: ReferenceLabels, tags: TagTable
) -> None:
    """Raise DatasetRequired when the labels of predictions, bool [P, N], are not those of the reference."""
    differing = (labels != others).tocoo()
    if differing.nnz:
        tag = tags.names[differing.coords[1][0]]
        raise DatasetRequired(
            f"{predicted.directory}: {differing.nnz} labels are not those of {reference.source}, such as of {tag}; "
            "the labels must come from a dataset"
        )

"""Predictions of several taggers cut down to common images and tags, and what is true of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from joytag.data.dataset import Dataset, Posts, TagTable
from joytag.evaluation import predictions
from joytag.evaluation.comparison import Contender
from joytag.evaluation.contenders import SPLIT, TaggerEntry, columns_by_name, merge_labels
from joytag.evaluation.predictions import Predictions

CHUNK = 4096  # rows that are gathered at once


class IntersectionError(ValueError):
    """Taggers that cannot be compared: one line with the directory and the remedy."""


@dataclass(frozen=True)
class Intersection:
    """Contenders, labels bool [P, N] and tags [N], all of the common images and tags, and facts about them."""

    contenders: list[Contender]
    labels: csc_array
    tags: TagTable
    facts: dict[str, Any]


@dataclass(frozen=True)
class ReferenceLabels:
    """What is true: labels bool [P, N] of tags [N] and of images, told by `keys`; `source` says whose they are."""

    source: Path
    keys: list[bytes]
    labels: csc_array
    tags: TagTable


def intersect(
    entrants: Sequence[TaggerEntry],
    found: Sequence[Predictions],
    dataset: Dataset | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Intersection:
    """Cut everyone's predictions down to the common images (same id, same file) and tags.

    Labels are the dataset's, or else those that all predictions agree on. Tags are the same whose names are, in one
    spelling and after `aliases`, from old names to those that count; where two of a tagger's become one, the higher
    score counts. Raises ArenaError when nothing is in common or when labels disagree.
    """
    truth = _reference_labels(found, dataset)
    rows = _common_rows([truth.keys, *(_keys(one) for one in found)])
    vocabularies = [truth.tags.names, *(one.tags.names for one in found)]
    places = _common_tags(vocabularies, aliases)
    if not len(rows[0]) or not places[0]:
        what = "tag; do they need --aliases?" if len(rows[0]) else "image (the same id and the same file)"
        raise IntersectionError(
            f"{', '.join(str(e.path) for e in entrants)}, labelled by {truth.source}: no common {what}"
        )
    labels = merge_labels(truth.labels[rows[0]].tocsc(), places[0])
    tags = _select_tags(truth.tags, [columns[0] for columns in places[0]])
    contenders = []
    for entrant, one, of_rows, of_columns in zip(entrants, found, rows[1:], places[1:], strict=True):
        if dataset is None:
            _check_labels_agree(labels, merge_labels(one.labels[of_rows].tocsc(), of_columns), one, truth, tags)
        scores = gather_scores(one.scores, of_rows, of_columns)
        contenders.append(Contender(entrant.letter, entrant.name, entrant.threshold, scores, _facts(entrant, one)))
    facts = {
        "labels": str(truth.source),
        "labelled_images": len(truth.keys),
        "labelled_tags": len(truth.tags),
        "tags_by_aliases": len(tags) - len(_common_tags(vocabularies, None)[0]),
    }
    return Intersection(contenders, labels, tags, facts)


def _reference_labels(found: Sequence[Predictions], dataset: Dataset | None) -> ReferenceLabels:
    if dataset is None:
        return ReferenceLabels(found[0].directory, _keys(found[0]), found[0].labels, found[0].tags)
    posts = dataset.posts(SPLIT)
    labels = predictions.label_matrix(posts, len(dataset.tags))
    return ReferenceLabels(dataset.directory, _keys(posts), labels, dataset.tags)


def _keys(images: Posts | Predictions) -> list[bytes]:
    """What tells images apart: id and sha256."""
    return [i.tobytes() + h.tobytes() for i, h in zip(images.ids, images.hashes, strict=True)]


def _common_rows(keys: Sequence[Sequence[bytes]]) -> list[np.ndarray]:
    """Where the images that all have are in each, int64 [P], in the order of the first."""
    rows = [{key: row for row, key in enumerate(of_one)} for of_one in keys]
    shared = [key for key in rows[0] if all(key in of_one for of_one in rows)]
    return [np.array([of_one[key] for key in shared], dtype=np.int64) for of_one in rows]


def _common_tags(vocabularies: Sequence[Sequence[str]], aliases: Mapping[str, str] | None) -> list[list[list[int]]]:
    """In which columns the tags that all have are in each, after aliases, in the order of the first."""
    places = [columns_by_name(names, aliases) for names in vocabularies]
    shared = [name for name in places[0] if all(name in of_one for of_one in places)]
    return [[of_one[name] for name in shared] for of_one in places]


def _select_tags(tags: TagTable, chosen: Sequence[int]) -> TagTable:
    names = [tags.names[i] for i in chosen]
    return TagTable(names, tags.categories[chosen], tags.counts[chosen], tags.totals[chosen])


def _facts(entrant: TaggerEntry, one: Predictions) -> dict[str, Any]:
    provenance = one.provenance
    kept = {key: provenance.get(key) for key in ("model", "model_files", "dataset", "image_size", "dtype", "date")}
    undecodable = len(provenance.get("undecodable", ()))
    return {"kind": entrant.kind, "path": str(entrant.path), "predictions": str(one.directory), "images": len(one),
            "undecodable": undecodable, "tags": len(one.tags), **kept}  # fmt: skip


def gather_scores(scores: np.ndarray, rows: np.ndarray, columns: Sequence[Sequence[int]]) -> np.ndarray:
    """Scores float16 [rows, columns] of others; the highest where there are several columns for one.

    Those that are all there in their order are not copied.
    """
    first = np.array([places[0] for places in columns])
    several = [(j, places) for j, places in enumerate(columns) if len(places) > 1]
    same = [np.array_equal(wanted, np.arange(n)) for wanted, n in zip((rows, first), scores.shape, strict=True)]
    if all(same) and not several:
        return scores
    found = np.empty((len(rows), len(columns)), dtype=np.float16)
    for start in range(0, len(rows), CHUNK):
        block = np.asarray(scores[rows[start : start + CHUNK]])
        found[start : start + CHUNK] = block[:, first]
        for j, places in several:
            found[start : start + CHUNK, j] = block[:, places].max(axis=1)
    return found


def _check_labels_agree(
    labels: csc_array, others: csc_array, one: Predictions, truth: ReferenceLabels, tags: TagTable
) -> None:
    """Raise ArenaError when labels, bool [P, N], are not those of the first."""
    differing = (labels != others).tocoo()
    if differing.nnz:
        tag = tags.names[differing.coords[1][0]]
        raise IntersectionError(
            f"{one.directory}: {differing.nnz} labels are not those of {truth.source}, such as of {tag}; "
            "give --data with the dataset that counts"
        )

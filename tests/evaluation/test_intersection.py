"""Predictions reduced to common images and tags."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csc_array

from joytag.data.dataset import Dataset, TagTable
from joytag.evaluation import contenders, intersection, predictions_writer
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions import Predictions


def write_predictions(
    directory: Path,
    ids: list[int],
    names: list[str],
    scores: np.ndarray,
    labels: np.ndarray,
    files: list[int] | None = None,
) -> Predictions:
    """Write and open predictions of invented images; `files` identify their content, by default with the ids."""
    hashes = np.stack([np.full(32, number, dtype=np.uint8) for number in files or ids])
    n = np.zeros(len(names), dtype=np.int64)
    tags = TagTable(names, n.astype(np.int8), n, n)
    sources = np.zeros(len(ids), dtype=np.int64)
    arrays = scores.astype(np.float16), np.array(ids), hashes, sources, np.arange(len(ids))
    predictions_writer.write(directory, *arrays, csc_array(labels), tags, {"sources": ["x"]})
    return Predictions.open(directory)


def entries_of(*predictions: Predictions) -> list[contenders.TaggerEntry]:
    return contenders.open_taggers([one.directory for one in predictions], device="cpu")


def test_common_images_and_tags_are_selected_in_any_order(tmp_path):
    """Checks every image and tag; an alias merges two tags of one tagger."""
    rng = np.random.default_rng(0)
    aliases = {"car": "automobile", "auto": "automobile", "kitty": "cat"}
    vocabularies = [["cat", "dog", "automobile", "tree"], ["auto", "Tree", "car", "kitty", "fish"]]
    ids = [[9, 3, 5, 7, 1], [1, 2, 3, 9, 8, 7]]
    truth = {(i, tag): bool(rng.random() < 0.5) for i in range(10) for tag in ("cat", "dog", "automobile", "tree")}
    final = {"Tree": "tree", **aliases}
    result, scores = [], []
    for number in range(2):
        names = vocabularies[number]
        values = rng.random((len(ids[number]), len(names))).astype(np.float16)
        labels = np.array([[truth.get((i, final.get(name, name)), False) for name in names] for i in ids[number]])
        result.append(write_predictions(tmp_path / str(number), ids[number], names, values, labels))
        scores.append(values)
    common = intersection.intersect(entries_of(*result), result, aliases=aliases)
    assert common.tags.names == ["cat", "automobile", "tree"]
    assert common.facts["tags_by_aliases"] == 2
    for row, i in enumerate([9, 3, 7, 1]):
        for column, tag in enumerate(common.tags.names):
            assert common.labels[row, column] == truth[i, tag]
            for number, contender in enumerate(common.contenders):
                columns = [n for n, name in enumerate(vocabularies[number]) if final.get(name, name) == tag]
                expected = max(scores[number][ids[number].index(i), n] for n in columns)
                assert contender.scores[row, column] == expected


def test_scores_are_not_copied_when_all_are_common(predicted):
    opened = [Predictions.open(predicted[name]) for name in ("early", "late")]
    common = intersection.intersect(entries_of(*opened), opened)
    assert all(c.scores is one.scores for c, one in zip(common.contenders, opened, strict=True))


def test_images_match_by_id_and_file(tmp_path):
    zeros = np.zeros((3, 1), dtype=bool)
    first = write_predictions(tmp_path / "1", [1, 2, 3], ["a"], zeros, zeros)
    second = write_predictions(tmp_path / "2", [1, 2, 4], ["a"], zeros, zeros, files=[1, 9, 3])
    assert intersection.intersect(entries_of(first, second), [first, second]).labels.shape == (1, 1)
    third = write_predictions(tmp_path / "3", [1, 2, 4], ["a"], zeros, zeros, files=[2, 9, 3])
    with pytest.raises(intersection.IntersectionError, match=r"no common image \(the same id and the same file\)"):
        intersection.intersect(entries_of(first, third), [first, third])


def test_conflicting_labels_are_refused_without_a_dataset(taggers, predicted, tmp_path):
    first = Predictions.open(predicted["early"])
    labels = first.labels.toarray()
    labels[4, 2] ^= True
    arrays = first.scores, first.ids, first.hashes, first.sources, first.families
    provenance = {"sources": first.source_names}
    predictions_writer.write(tmp_path / "other", *arrays, csc_array(labels), first.tags, provenance)
    opened = [first, Predictions.open(tmp_path / "other")]
    with pytest.raises(DatasetRequired, match=r"1 labels are not those of .*, such as of blue; the labels must"):
        intersection.intersect(entries_of(*opened), opened)
    common = intersection.intersect(entries_of(*opened), opened, Dataset.open(taggers / "data"))
    np.testing.assert_array_equal(common.labels.toarray(), first.labels.toarray())

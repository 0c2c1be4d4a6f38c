"""The columns of the per-tag table: each metric of a tag is one row of COLUMNS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joytag.data.dataset import TagTable
from joytag.evaluation import metrics
from joytag.evaluation.curves import Curves
from joytag.evaluation.metrics import Counts
from joytag.evaluation.tag_groups import category_names


class Evaluated(NamedTuple):
    """The values from which the columns of N tags are computed.

    `bands`: name -> indices of the tags in that band of training counts; every tag is in one. `counts`: [N], at the
    fixed threshold. `ratios`: `metrics.from_counts(counts)`. `thresholds`: float64 [N], the suggested ones, NaN where
    there is none.
    """

    tags: TagTable
    bands: Mapping[str, NDArray[np.int64]]
    counts: Counts
    ratios: Mapping[str, NDArray[np.float64]]
    curves: Curves
    thresholds: NDArray[np.float64]


class Column(NamedTuple):
    """A column of the per-tag table.

    `name` is its name in per_tag.parquet and per_tag.csv, `title` its header in report.html; columns without a title
    are only in the files. `meaning` explains it to readers of the page. `values` returns one value a tag: text,
    integers or floats, NaN where the metric is undefined.
    """

    name: str
    title: str
    meaning: str
    values: Callable[[Evaluated], Any]


# To add a metric, compute it in metrics.py or curves.py and add a row here. per_tag.parquet, per_tag.csv, and the table
# of all tags in report.html with its explanation are built from these rows.
COLUMNS = (
    Column("index", "", "output of the model", lambda e: np.arange(len(e.tags))),
    Column("name", "tag", "", lambda e: e.tags.names),
    Column("category", "category", "", lambda e: category_names(e.tags.categories)),
    Column("band", "", "range of training images", lambda e: _band_of_each(e.bands, len(e.tags))),
    Column("train_count", "trained on", "images with the tag in training", lambda e: e.tags.counts),
    Column("positives", "images", "evaluated images labelled with the tag", lambda e: e.counts.positives),
    Column("predicted", "", "images for which the tag is predicted", lambda e: e.counts.predicted),
    Column("tp", "TP", "true positives, labelled and predicted", lambda e: e.counts.tp),
    Column("fp", "FP", "false positives, predicted but not labelled", lambda e: e.counts.fp),
    Column("fn", "FN", "false negatives, labelled but not predicted", lambda e: e.counts.fn),
    Column("tn", "", "true negatives, neither labelled nor predicted", lambda e: e.counts.tn),
    Column("precision", "P", "precision, TP / (TP + FP)", lambda e: e.ratios["precision"]),
    Column("recall", "R", "recall, TP / (TP + FN)", lambda e: e.ratios["recall"]),
    Column("f1", "F1", "harmonic mean of precision and recall", lambda e: e.ratios["f1"]),
    Column("mcc", "MCC", "Matthews correlation coefficient of labels and predictions", lambda e: e.ratios["mcc"]),
    Column("ap", "AP", "average precision over all thresholds", lambda e: e.curves.ap),
    Column("best_threshold", "", "threshold with the highest F1 on these images", lambda e: e.curves.best_threshold),
    Column("best_f1", "", "F1 at that threshold", lambda e: e.curves.best_f1),
    Column("threshold", "threshold", "suggested threshold for this tag", lambda e: e.thresholds),
    Column("ece", "", "expected calibration error", lambda e: e.curves.ece),
    Column("undefined", "undefined", "why a metric of this tag has no value", lambda e: _undefined(e.counts)),
)


def per_tag_table(
    tags: TagTable,
    bands: Mapping[str, NDArray[np.int64]],
    counts: Counts,
    curves: Curves,
    thresholds: NDArray[np.float64],
) -> pa.Table:
    """Build the per-tag table: a row for each tag, a column for each of COLUMNS, null where undefined.

    For the arguments see Evaluated.
    """
    evaluated = Evaluated(tags, bands, counts, metrics.from_counts(counts), curves, thresholds)
    return pa.table({column.name: pa.array(column.values(evaluated), from_pandas=True) for column in COLUMNS})


def _band_of_each(bands: Mapping[str, NDArray[np.int64]], n_tags: int) -> list[str]:
    names = np.empty(n_tags, dtype=object)
    for name, members in bands.items():
        names[members] = name
    return names.tolist()


def _undefined(counts: Counts) -> list[str]:
    reasons = {"no positives": counts.positives == 0, "never predicted": counts.predicted == 0}
    return [
        ", ".join(reason for reason, applies in zip(reasons, row, strict=True) if applies)
        for row in zip(*(applies.tolist() for applies in reasons.values()), strict=True)
    ]

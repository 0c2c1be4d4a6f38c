"""A strict reader of full-metrics.txt, independent of its writer."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from joytag.evaluation.metrics import Counts

BLOCK = re.compile(
    r"Tag: (?P<name>.+) \((?P<index>\d+)\) \(cnt: (?P<trained>\d+)\)\n"
    r"Precision: (?P<precision>[01]\.\d{4})\n"
    r"Recall: (?P<recall>[01]\.\d{4})\n"
    r"F1: (?P<f1>[01]\.\d{4})\n"
    r"TP: (?P<tp>\d+), TN: (?P<tn>\d+), FP: (?P<fp>\d+), FN: (?P<fn>\d+)\n\n"
)


class FullMetrics(NamedTuple):
    """The contents of full-metrics.txt by tag index: names, training counts and Counts, all [tags]."""

    names: list[str]
    train_counts: list[int]
    counts: Counts


def read_full_metrics(path: Path) -> FullMetrics:
    """Read full-metrics.txt.

    Asserts that it consists of blocks, that their indices are 0 to the number of tags, and that the printed metrics
    are those of the counts to a unit in their last digit, 0 where undefined.
    """
    text = path.read_bytes().decode()
    blocks: dict[int, dict[str, str]] = {}
    end = 0
    while end < len(text):
        match = BLOCK.match(text, end)
        assert match, f"no block: {text[end : end + 200]!r}"
        assert int(match["index"]) not in blocks
        blocks[int(match["index"])] = match.groupdict()
        end = match.end()
    ordered = [blocks[index] for index in range(len(blocks))]
    tp, fp, fn, tn = (np.array([int(block[name]) for block in ordered]) for name in ("tp", "fp", "fn", "tn"))
    expected = {"precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
    for name, (numerator, denominator) in expected.items():
        printed = [float(block[name]) for block in ordered]
        np.testing.assert_allclose(printed, numerator / np.maximum(1, denominator), atol=1.01e-4, rtol=0)
    names, trained = [block["name"] for block in ordered], [int(block["trained"]) for block in ordered]
    return FullMetrics(names, trained, Counts(tp, fp, fn, tn))

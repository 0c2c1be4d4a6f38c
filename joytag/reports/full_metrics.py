"""full-metrics.txt, in the format of the original's published file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from joytag.core.files import write_text
from joytag.evaluation.metrics import Counts, precision_recall_f1

# A block of full-metrics.txt, line by line: what it looks like, and a pattern of it.
BLOCK = (
    ("Tag: NAME (INDEX) (cnt: COUNT)", re.compile(r"Tag: (.+) \(([0-9]{1,18})\) \(cnt: ([0-9]{1,18})\)")),
    ("Precision: 0.1234", re.compile(r"Precision: ([01]\.\d{4})")),
    ("Recall: 0.1234", re.compile(r"Recall: ([01]\.\d{4})")),
    ("F1: 0.1234", re.compile(r"F1: ([01]\.\d{4})")),
    (
        "TP: 1, TN: 2, FP: 3, FN: 4",
        re.compile(r"TP: ([0-9]{1,18}), TN: ([0-9]{1,18}), FP: ([0-9]{1,18}), FN: ([0-9]{1,18})"),
    ),
    ("an empty line", re.compile("")),
)


class ReportError(ValueError):
    """A report that cannot be read: one line with the file, the line in it and the remedy."""


class FullMetrics(NamedTuple):
    """What full-metrics.txt holds, by tag index: names, training counts and Counts, all [tags]."""

    names: list[str]
    train_counts: list[int]
    counts: Counts


def write_full_metrics(path: Path, names: Sequence[str], train_counts: Sequence[int], counts: Counts) -> None:
    """Write the original's per-tag report: blocks by F1 descending, ties by index, of [tags] counts.

    Figures that would divide by nothing are 0, by its convention. Raises ValueError for a name that would break a line.
    """
    precision, recall, f1 = (np.asarray(value) for value in precision_recall_f1(counts))
    blocks = []
    for i in np.lexsort((np.arange(len(names)), -f1)):
        if "\n" in names[i] or "\r" in names[i]:
            raise ValueError(f"{path}: tag {i}, {names[i]!r}: holds a line break; rename it in tags.parquet")
        blocks.append(
            f"Tag: {names[i]} ({i}) (cnt: {train_counts[i]})\n"
            f"Precision: {precision[i]:.4f}\nRecall: {recall[i]:.4f}\nF1: {f1[i]:.4f}\n"
            f"TP: {counts.tp[i]}, TN: {counts.tn[i]}, FP: {counts.fp[i]}, FN: {counts.fn[i]}\n\n"
        )
    write_text(path, "".join(blocks))


def read_full_metrics(path: Path) -> FullMetrics:
    """Read a full-metrics.txt, the original's published one too; `write_full_metrics` writes it again to the byte.

    Raises ReportError when it cannot be read, a line is not as it should be, a figure is not that of its counts, or
    the indexes are not 0 to the number of tags.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error}); write it again with evaluate.py") from None
    if lines.pop() or not lines:
        raise _malformed(path, len(lines) + 1, "ends amid a line" if lines else "is empty")
    blocks: dict[int, _Block] = {}
    for start in range(0, len(lines), len(BLOCK)):
        index, block = _read_block(path, lines, start)
        if index in blocks:
            raise _malformed(path, block.line, f"index {index} occurs again, after line {blocks[index].line}")
        blocks[index] = block
    missing = next((index for index in range(len(blocks)) if index not in blocks), None)
    if missing is not None:
        raise _malformed(path, len(lines), f"ends after {len(blocks)} tags, none of which has the index {missing}")
    ordered = [blocks[index] for index in range(len(blocks))]
    tp, tn, fp, fn = np.array([block.counts for block in ordered], dtype=np.int64).T
    counts = Counts(tp=tp, fp=fp, fn=fn, tn=tn)
    _check_figures(path, lines, ordered, counts)
    return FullMetrics([block.name for block in ordered], [block.trained for block in ordered], counts)


def _malformed(path: Path, line: int, problem: str) -> ReportError:
    return ReportError(f"{path}: line {line}: {problem}; restore the file, or write it again with evaluate.py")


class _Block(NamedTuple):
    name: str
    trained: int
    counts: list[int]  # TP, TN, FP, FN
    line: int  # its first, from 1 on


def _read_block(path: Path, lines: Sequence[str], start: int) -> tuple[int, _Block]:
    """The tag index and the rest of the block that starts there, counted from 0."""
    values = []
    for offset, (example, pattern) in enumerate(BLOCK):
        line = lines[start + offset] if start + offset < len(lines) else None
        match = None if line is None else pattern.fullmatch(line)
        if match is None:
            seen = "but the file ends" if line is None else f"found {line[:60]!r}"
            raise _malformed(path, start + offset + 1, f"expected {example}, {seen}")
        values.append(match.groups())
    name, index, trained = values[0]
    return int(index), _Block(name, int(trained), [int(value) for value in values[4]], start + 1)


def _check_figures(path: Path, lines: Sequence[str], blocks: Sequence[_Block], counts: Counts) -> None:
    """Whether the printed figures are those of the counts, to a unit in their last place."""
    for offset, values in enumerate(map(np.asarray, precision_recall_f1(counts))):
        printed = np.array([float(lines[block.line + offset].split()[1]) for block in blocks])
        for place in np.flatnonzero(np.abs(printed - values) > 1.01e-4).tolist():
            line = blocks[place].line + offset
            raise _malformed(path, line + 1, f"{lines[line]}, but its counts give {values[place]:.4f}")

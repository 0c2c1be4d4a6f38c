"""full-metrics.txt, the per-tag report in the format that the original JoyTag published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from joytag.core.files import write_text
from joytag.evaluation.metrics import Counts, precision_recall_f1


def write_full_metrics(path: Path, names: Sequence[str], train_counts: Sequence[int], counts: Counts) -> None:
    """Write a block for each tag, by descending F1 and then by index; `counts` are [tags].

    Undefined metrics are 0, as in the original's file. Raises ValueError if a name contains a line break.
    """
    precision, recall, f1 = (np.asarray(value) for value in precision_recall_f1(counts))
    blocks = []
    for i in np.lexsort((np.arange(len(names)), -f1)):
        if "\n" in names[i] or "\r" in names[i]:
            raise ValueError(f"{path}: tag {i}, {names[i]!r}: contains a line break; rename it in tags.parquet")
        blocks.append(
            f"Tag: {names[i]} ({i}) (cnt: {train_counts[i]})\n"
            f"Precision: {precision[i]:.4f}\nRecall: {recall[i]:.4f}\nF1: {f1[i]:.4f}\n"
            f"TP: {counts.tp[i]}, TN: {counts.tn[i]}, FP: {counts.fp[i]}, FN: {counts.fn[i]}\n\n"
        )
    write_text(path, "".join(blocks))

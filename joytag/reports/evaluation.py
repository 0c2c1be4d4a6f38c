"""What an evaluation leaves behind: full-metrics.txt, metrics.json, tables, report.html; curves and contact sheets."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from joytag.data import images
from joytag.data.dataset import Dataset, write_table, write_text
from joytag.evaluation.analysis import Analysis
from joytag.evaluation.bootstrap import Interval
from joytag.evaluation.metrics import VALUES, Counts, precision_recall_f1
from joytag.evaluation.predictions import Predictions
from joytag.reports import html
from joytag.training.tracker import read_log

RIGHT, WRONG, MISSED, INK = "#1a7f37", "#cf222e", "#8c959f", "#1f2328"

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


def write_reports(
    directory: Path, analysis: Analysis, predictions: Predictions, dataset: Dataset | None = None
) -> None:
    """Write all reports of an analysis of these predictions; with pictures if there is a dataset that has them.

    full-metrics.txt (the original's format and conventions), metrics.json, per_tag.parquet and .csv, thresholds.csv
    (for `predict.py --thresholds`), label_errors.csv, and report.html. Undefined figures are null in JSON and parquet,
    and empty in CSV.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table = analysis.per_tag
    counts = Counts(*(table[name].to_numpy() for name in ("tp", "fp", "fn", "tn")))
    train_counts = table["train_count"].to_pylist()
    write_full_metrics(directory / "full-metrics.txt", table["name"].to_pylist(), train_counts, counts)
    write_metrics(directory / "metrics.json", analysis)
    write_table(table, table.schema, directory / "per_tag.parquet")
    write_csv(directory / "per_tag.csv", table)
    write_thresholds(directory / "thresholds.csv", table)
    errors = [html.describe(mistake, predictions) for mistake in analysis.label_errors]
    columns = ("id", "source", "tag", "labelled", "score", "confidence")
    write_csv(directory / "label_errors.csv", pa.table({name: [row[name] for row in errors] for name in columns}))
    write_text(directory / "report.html", html.report(analysis, predictions, dataset))


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


def write_metrics(path: Path, analysis: Analysis) -> None:
    """Write metrics.json: all of the analysis but the curves and what is about single tags or pictures."""
    names = ("facts", "thresholds", "headline", "macro_over", "split_half", "sources", "categories", "bands", "groups",
             "gaps", "calibration")  # fmt: skip
    values = {name: jsonable(getattr(analysis, name)) for name in names}
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def summary(path: Path) -> str:
    """What metrics.json says in two sentences: the headline, and the weakest groups of tags. Raises ReportError."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        headline = metrics["headline"]["fixed"]
        micro, macro = (f"{headline[f'{kind}_f1']['value']:.3f}" for kind in ("micro", "macro"))
        skill = {name: row["macro_f1"] for name, row in metrics["groups"].items() if row["macro_f1"] is not None}
        tags = f"{metrics['facts']['tags']:,}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: no metrics.json of evaluate.py ({error!r}); write it again with that") from None
    weakest = ", ".join(f"{name} ({skill[name]:.3f})" for name in sorted(skill, key=skill.__getitem__)[:3])
    groups = f" Its weakest groups of tags, by macro F1: {weakest}." if weakest else ""
    return f"The model names {tags} tags with micro F1 {micro} and macro F1 {macro}.{groups}"


def jsonable(value: Any) -> Any:
    """A value as JSON has it: an Interval as value, low and high, an array as a list, NaN as null."""
    if isinstance(value, Interval):
        return jsonable(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV with a line of names; null is an empty cell."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer, pyarrow.csv.WriteOptions(quoting_style="needed"))
    write_text(path, buffer.getvalue().decode())


def write_thresholds(path: Path, table: pa.Table) -> None:
    """Write thresholds.csv for `predict.py --thresholds`, from the rows of per_tag that have a threshold.

    Where it pays to predict a tag for every picture, the threshold is the smallest that a float16 score can pass.
    """
    chosen = table.filter(table["threshold"].is_valid())
    threshold = np.maximum(chosen["threshold"].to_numpy(), VALUES[1] / 2)
    write_csv(path, pa.table({"tag": chosen["name"], "threshold": threshold, "positives": chosen["positives"]}))


def metrics_table(analysis: Analysis) -> Table:
    """A terminal table of averages at the fixed threshold: all pictures with 95 % intervals, sources, categories."""
    figures = [f"{kind}_{figure}" for kind in ("micro", "macro") for figure in ("precision", "recall", "f1")]
    table = Table(title=f"Threshold {analysis.facts['threshold']:g}", title_justify="left", box=SIMPLE,
                  padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("")
    for name in ("micro\nP", "micro\nR", "micro\nF1", "macro\nP", "macro\nR", "macro\nF1", "\nmAP", "\ntags"):
        table.add_column(name, justify="right")
    headline = {**analysis.headline["fixed"], **analysis.headline["ranking"]}
    shown = [headline[name] for name in (*figures, "map")]
    tags = f"{analysis.facts['tags_with_positives']}/{analysis.facts['tags']}"
    table.add_row("all", *(_figure(interval.value) for interval in shown), tags)
    spreads = ("" if math.isnan(i.value) else f"±{(i.high - i.low) / 2:.3f}" for i in shown)
    table.add_row("", *spreads, style="dim")
    for rows in (analysis.sources, analysis.categories):
        for name, row in rows.items():
            numbers = f"{row['tags_with_positives']}/{row['tags']}"
            table.add_row(escape(name), *(_figure(row[figure]) for figure in (*figures, "map")), numbers)
    return table


def _figure(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def plot_curves(log: Path, path: Path) -> None:
    """Draw a run's log.jsonl against samples: loss, gradient norm, learning rate and validation F1."""
    from matplotlib.figure import Figure  # here, since importing matplotlib writes a font cache
    from matplotlib.ticker import EngFormatter

    lines = read_log(log)
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    panels = {
        "Loss": {"loss": "training", "val_loss": "validation"},
        "Gradient norm": {"grad_norm": ""},
        "Learning rate": {"lr": ""},
        "Validation F1": {"val_micro_f1": "micro", "val_macro_f1": "macro"},
    }
    for axes, (title, names) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        for name, label in names.items():
            points = [(line["samples"], line[name]) for line in lines if name in line]
            style = {"marker": "." if name.startswith("val_") else "", "label": label}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), **style)
        axes.set(title=title, xlabel="samples", ylim=(0, 1) if title.endswith("F1") else None)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def contact_sheet(
    pictures: Sequence[Image.Image],
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    threshold: float,
    columns: int = 5,
    most: int = 9,
) -> Image.Image:
    """Pictures with the model's tags: right ones, wrong ones struck through, missed ones in brackets.

    Takes RGB pictures, bool labels [B, N] and scores [B, N]; at most `most` tags a picture are shown.
    """
    import matplotlib  # for its font, which knows more letters than Pillow's

    scale, width, line = 2, 200, 17
    side, gap = 128, 14
    height = side + gap + most * line
    rows = -(-len(pictures) // columns)
    legend = 34
    sheet = Image.new(
        "RGB", ((columns * (width + gap) + gap) * scale, (rows * (height + gap) + gap + legend) * scale), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 12 * scale)

    def write(x: int, y: int, text: str, colour: str, struck: bool = False) -> int:
        draw.text((x * scale, y * scale), text, fill=colour, font=font)
        right = draw.textlength(text, font=font)
        if struck:
            middle = (y + 9) * scale
            draw.line((x * scale, middle, x * scale + right, middle), fill=colour, width=scale)
        return x + int(right / scale)

    x = write(gap, 10, "right", RIGHT)
    x = write(x + 18, 10, "wrong", WRONG, struck=True)
    x = write(x + 18, 10, "(missed)", MISSED)
    write(x + 18, 10, f"tags scoring above {threshold:g}", INK)
    for i, picture in enumerate(pictures):
        left = gap + (i % columns) * (width + gap)
        top = legend + gap + (i // columns) * (height + gap)
        sheet.paste(images.square(picture, side * scale, Image.Resampling.LANCZOS), (left * scale, top * scale))
        predicted = scores[i] > threshold
        shown = [n for n in np.argsort(-scores[i]) if predicted[n] or labels[i][n]]
        for number, n in enumerate(shown[:most]):
            text, y = names[n], top + side + 4 + number * line
            if number == most - 1 and len(shown) > most:
                write(left, y, f"... {len(shown) - number} more", MISSED)
            elif not predicted[n]:
                write(left, y, f"({_short(text)})", MISSED)
            else:
                write(left, y, f"{_short(text)} {scores[i][n]:.2f}", RIGHT if labels[i][n] else WRONG, not labels[i][n])
    return sheet


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"

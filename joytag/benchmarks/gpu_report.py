"""A Markdown table of the results of `joytag.benchmarks.gpu`: a column for each file, goals beside figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joytag.benchmarks.gpu_parts import BATCHES, LEVERS, REFERENCE, UPDATES, failed_tests
from joytag.core.errors import ExitCode, describe
from joytag.core.terminal import print

GLOBAL_BATCH = 4096  # samples of a step of the recipe
MFU = {448: 0.40, 224: 0.35}  # goals


class Missing(ValueError):
    """A figure that was not measured; the message names the part and the field, and the reason if one is known."""


@dataclass(frozen=True)
class Figures:
    """The results of a machine by part; the methods raise Missing."""

    parts: dict[str, dict[str, Any]]

    def __call__(self, part: str, field: str = "images_per_s") -> float:
        """Return a number of a part."""
        result = self.parts.get(part, {"error": "not reached"})
        if field not in result:
            raise Missing(f"{part} ({result.get('error', field)})")
        return float(result[field])

    def fastest(self, size: int, field: str = "images_per_s") -> float:
        """Return a number of the fastest steps at an image size, the reference's aside."""
        parts = [f"step {size}: {name}" for name in LEVERS]
        measured = [part for part in parts if "images_per_s" in self.parts.get(part, {})]
        return self(max(measured or parts[:1], key=self), field)


@dataclass(frozen=True)
class Row:
    """A row of the table, its number, how to format it, and the goal: at least, or `at_most`, another number."""

    label: str
    figure: Callable[[Figures], float]
    form: str
    limit: float | None = None
    at_most: bool = False

    @property
    def goal(self) -> str:
        """Return the goal, "" without one."""
        return "" if self.limit is None else f"{'≤' if self.at_most else '≥'} {self.form.format(self.limit)}"

    def cell(self, figures: Figures) -> str:
        """Return the number, and whether it reaches the goal."""
        try:
            value = self.figure(figures)
        except Missing:
            return "missing"
        text = self.form.format(value)
        if self.limit is None:
            return text
        reached = value <= self.limit if self.at_most else value >= self.limit
        return f"{text}, {'reached' if reached else 'missed'}"


def _rows_of_size(size: int) -> list[Row]:
    def speedup(figures: Figures) -> float:
        return figures.fastest(size) / figures(f"step {size}: {REFERENCE}")

    def augmentation(figures: Figures) -> float:
        return figures.fastest(size) / figures(f"augmentation {size}")

    def lamb(figures: Figures) -> float:
        return figures("update: lamb", "ms") / 1e3 * figures.fastest(size) / GLOBAL_BATCH

    return [
        Row(f"{size} px: fastest training", lambda f: f.fastest(size), "{:,.0f} images/s"),
        Row(f"{size} px: its share of the peak (MFU)", lambda f: f.fastest(size, "mfu"), "{:.1%}", MFU[size]),
        Row(f"{size} px: its speed beside the eager reference", speedup, "{:.2f}", 1.5),
        Row(f"{size} px: augmentation beside it", augmentation, "{:.1%}", 0.05, at_most=True),
        Row(f"{size} px: LAMB's share of {GLOBAL_BATCH:,} images", lamb, "{:.2%}"),
        Row(f"{size} px: loading beside it", lambda f: f(f"loading {size}") / f.fastest(size), "{:.2f}", 1.0),
    ]


def _step_row(size: int, name: str) -> Row:
    return Row(f"{size} px: {name}", lambda figures: figures(f"step {size}: {name}"), "{:,.0f} images/s")


def _update_row(name: str, limit: float | None = None) -> Row:
    return Row(f"update: {name}", lambda figures: figures(f"update: {name}", "ms"), "{:.2f} ms", limit, at_most=True)


def _tagging_speedup(figures: Figures) -> float:
    return figures("tagging") / figures("tagging", "example_images_per_s")


ROWS = [
    *(row for size in BATCHES for row in _rows_of_size(size)),
    _update_row("lamb", 3.0),
    Row("tagging", lambda figures: figures("tagging"), "{:,.0f} images/s"),
    Row("tagging beside the published example", _tagging_speedup, "{:.1f}", 8.0),
    Row("tagging: decisions as in float32", lambda figures: figures("tagging", "same_decisions"), "{:.3%}"),
    *(_step_row(size, name) for size in BATCHES for name in (REFERENCE, *LEVERS)),
    *(_update_row(name) for name in UPDATES if name != "lamb"),
]


def missing(figures: Figures) -> list[str]:
    """Return what is missing for the table: each part and field once, with the reason if one is known."""
    names: dict[str, None] = {}
    for row in ROWS:
        try:
            row.figure(figures)
        except Missing as error:
            names[str(error)] = None
    return list(names)


def report(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of the results of some machines, then what is missing and which tests failed on each."""
    machines = [result["machine"].partition(",")[0] + " (tiny)" * result["tiny"] for result in results]
    figures = [Figures(result["parts"]) for result in results]
    lines = [f"| {' | '.join(['', 'goal', *machines])} |", "|" + "---|" * (2 + len(machines))]
    lines += [f"| {' | '.join([row.label, row.goal, *(row.cell(some) for some in figures)])} |" for row in ROWS]
    for result, some in zip(results, figures, strict=True):
        tests = some.parts.get("tests", {"error": "not reached"})
        failed = [*failed_tests(some.parts), *(["not finished"] if "unfinished" in tests else [])]
        failed += [tests["error"]] if "error" in tests else []
        about = f"{result['machine']}, torch {result['torch']}, {result['date']}"
        lines += ["", f"{about}. Failed tests: {', '.join(failed) or 'none'}."]
        lines.append(f"Missing: {'; '.join(missing(some)) or 'nothing'}.")
    return "\n".join(lines)


def read(name: str) -> dict[str, Any]:
    """Return the content of a file of results. Raises OSError, and ValueError that names the file and the field."""
    try:
        result = json.loads(Path(name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for field in ("machine", "tiny", "torch", "date", "parts"):
        if field not in result:
            raise ValueError(f"{name}: {field} is missing")
    return result


def main() -> None:
    """Print the table of the files that the arguments name. Exits with 2 when one cannot be read."""
    try:
        results = [read(name) for name in sys.argv[1:] or ["gpu.json"]]
    except (OSError, ValueError) as error:
        reason = describe(error) if isinstance(error, OSError) else error
        print(f"gpu_report: {reason}; make check-gpu writes it", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR) from None
    print(report(results))


if __name__ == "__main__":
    main()

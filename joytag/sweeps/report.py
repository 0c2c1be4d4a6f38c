"""A sweep's report: a verdict, sweep.html, sweep.csv, sweep.json and best.yaml, at any time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from markupsafe import Markup

from joytag.core.files import write_text
from joytag.core.terminal import print
from joytag.evaluation.comparison import METRICS
from joytag.reports.charts import Axis, Line, Points, chart, difference_axis, interval_bar
from joytag.reports.formats import format_difference, format_number
from joytag.reports.html import render
from joytag.reports.writers import write_csv, write_json
from joytag.sweeps import results
from joytag.sweeps.config import Point, Sweep
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.results import PointResult, Results
from joytag.sweeps.studies import importance

NO_WINNER = "no setting beats the base by more than noise"
MOST_CURVES = 6  # with a name and a colour
EDGE = 1.05  # a value within this factor of a range's end is at its end


def write(sweep: Sweep, points: Sequence[Point], ledger: Ledger) -> str:
    """Write sweep.html, sweep.json, sweep.csv and best.yaml into the sweep's directory, and return the verdict."""
    found, metric, words = results.read(sweep, points, ledger), sweep.settings.metric, METRICS[sweep.settings.metric]
    sentence = verdict(found, words)
    warnings = [*other_images(found), *at_the_end(found, sweep)]
    contents = {"verdict": sentence, "warnings": warnings, "importance": importance(found, sweep)}
    slices = {name: _slice(found, sweep, name) for name in sweep.axes}
    charts = {"slices": slices, "curves": _curves(found, words), "costs": _costs(found, words)}
    axis = difference_axis("difference from the base", [row.search.difference for row in found.points])
    bars = {"bar": interval_bar, "axis": axis, "share_axis": Axis("")}
    page = {"sweep": sweep, "found": found, "metric": words, **contents, **charts, **bars}
    write_text(sweep.output / "sweep.html", render("sweep.html", page))
    write_text(sweep.output / "best.yaml", best_config(found, sweep, sentence))
    write_json(sweep.output / "sweep.json", {**contents, "metric": metric, **vars(found)})
    rows = [
        {"trial": trial.id, "settings": row.point.name, "seed": trial.seed, "state": state, "flop": row.flop}
        | {metric: row.values.get(trial.seed), "directory": str(trial.directory)}
        | {name: str(row.point.labels.get(name, "")) for name in sweep.axes}
        for row in found.points
        for trial, state in zip(row.point.trials, row.states, strict=True)
    ]
    write_csv(sweep.output / "sweep.csv", pa.Table.from_pylist(rows))
    print(f"The base's {words} has a standard deviation of {format_number(found.noise_floor.value, 4)} over seeds")
    return sentence


def verdict(found: Results, metric: str) -> str:
    """Return a sentence: which setting beats the base, by how much, and how optimistic its first result was."""
    over = [state not in ("pending", "running") for row in found.points for state in row.states]
    begin = "" if all(over) else f"So far, with {sum(over)} of {len(over)} trials over: "
    if np.isnan(found.noise_floor.value):
        return f"{begin}the base has not finished on two seeds, so nothing can be said to beat it by more than noise."
    nothing = NO_WINNER if begin else NO_WINNER.capitalize()
    best = found.winner or next((row for row in found.points[1:] if row.complete), None)
    if best is None:
        return f"{begin}{nothing}."
    gain, name = best.judged.difference, best.point.name
    claim = f"{name} beats the base" if found.winner else f"{nothing}: {name} differs"
    sentence = f"{begin}{claim} by {gain.value:.3f} {metric} (95 % {gain.low:.3f} to {gain.high:.3f})"
    if best.optimism is None:
        return f"{sentence}, not confirmed on fresh seeds."
    shown, optimism = (format_difference(of.value) for of in (best.search.difference, best.optimism))
    sentence = f"{sentence} on fresh seeds and images; it showed {shown} when it was chosen"
    return f"{sentence}, an optimism of {optimism}."


def other_images(found: Results) -> list[str]:
    """Return a warning for each point whose dataset has other validation images than that of the base."""
    return [
        f"{row.point.name} has other validation images than the base, so the two are not compared."
        for row in found.points
        if not row.comparable
    ]


def at_the_end(found: Results, sweep: Sweep) -> list[str]:
    """Return a warning for each axis at whose end the best point lies."""
    best = max((row for row in found.points if row.complete), key=lambda row: row.search.mean, default=None)
    warnings = []
    for name, label in best.point.labels.items() if best else ():
        axis = sweep.axes[name]
        with suppress(ValueError):  # names have no order
            low, *between, high = sorted(axis.range.log if axis.range else map(float, axis.choices))
            edge = EDGE if axis.range else 1
            if (axis.range or between) and not low * edge < float(label) < high / edge:
                warnings.append(f"The best value of {name}, {label}, is at the end of its axis. Try values beyond it.")
    return warnings


def best_config(found: Results, sweep: Sweep, comment: str) -> str:
    """Return the smallest config over the sweep's base that gives the winner, or the base."""
    base = Path(os.path.relpath(sweep.base_path.resolve(), sweep.output.resolve())).as_posix()
    config = (found.winner or found.points[0]).point.config
    changed = _changed(config.model_dump(mode="json"), sweep.base.model_dump(mode="json"))
    return f"# {comment}\n{yaml.safe_dump({'base': base, **changed}, sort_keys=False)}"


def _changed(values: Any, base: Any) -> Any:
    """Return what of some values differs from a base: mappings key by key, all else as a whole."""
    if not (isinstance(values, dict) and isinstance(base, dict)):
        return values
    return {key: _changed(value, base.get(key)) for key, value in values.items() if value != base.get(key)}


def _slice(found: Results, sweep: Sweep, name: str) -> list[tuple[Any, PointResult]]:
    """The points of a grid that differ from the best in one axis alone, of another search the best, by their label."""
    on = sorted((row for row in found.points if row.complete and row.point.labels), key=lambda row: row.search.mean)
    if sweep.settings.search == "grid":
        on = [row for row in on if {**row.point.labels, name: ""} == {**on[-1].point.labels, name: ""}]
    axis, by_label = sweep.axes[name], {row.point.labels[name]: row for row in on}
    labels = sorted(by_label) if axis.range else axis.choices
    return [(label, by_label[label]) for label in labels if label in by_label]


def _curves(found: Results, metric: str) -> Markup:
    """Validation curves: of the base, the best points, and, without names, the others."""
    shown = [row for row in found.points if row.curve]
    samples, values = zip(*(at for row in shown for at in row.curve), strict=True) if shown else ((1,), (1,))
    names = [row.point.name if number < MOST_CURVES else "" for number, row in enumerate(shown)]
    lines = [Line(*zip(*row.curve, strict=True), name=name) for row, name in zip(shown, names, strict=True)]
    x, y = Axis("samples", 0, max(samples)), Axis(metric, 0, max(values) or 1)
    return chart(f"{metric} by samples", x, y, lines)


def _costs(found: Results, metric: str) -> Markup | None:
    """Metric against cost with the Pareto front; None where all points cost the same."""
    done = sorted((row for row in found.points if row.complete), key=lambda row: (row.flop, -row.search.mean))
    if len({row.flop for row in done}) < 2:
        return None
    flop, means = np.array([(row.flop, row.search.mean) for row in done]).T
    titles = [f"{row.point.name}: {format_number(row.search.mean)}, {row.flop:.3g} FLOP" for row in done]
    front, margin = means > np.maximum.accumulate([-np.inf, *means[:-1]]), 0.05 * np.ptp(means) or 0.01
    x, y = Axis("FLOP of a run", 0, 1.05 * flop[-1]), Axis(metric, means.min() - margin, means.max() + margin)
    line = Line(flop[front], means[front], style="s1")
    return chart(f"{metric} against cost", x, y, [line, Points(flop, means, titles, style="s1")])

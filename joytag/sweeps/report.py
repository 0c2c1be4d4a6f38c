"""A sweep's report: a verdict, sweep.html, sweep.csv and sweep.json, and best.yaml, at any time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from joytag.core.files import write_text
from joytag.evaluation.comparison import METRICS
from joytag.reports.formats import format_difference
from joytag.reports.writers import write_csv, write_json
from joytag.sweeps import page, results
from joytag.sweeps.config import Axis, Label, Sweep, Trial
from joytag.sweeps.importance import importance
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.results import PointResult, Results

EDGE = 0.02  # of a range: closer to its end is at the end
NO_WINNER = "no setting beats the base by more than noise"


def write(sweep: Sweep, trials: Sequence[Trial], ledger: Ledger) -> str:
    """Write sweep.html, sweep.json, sweep.csv and best.yaml into the sweep's directory, and return the verdict."""
    found = results.read(sweep, trials, ledger)
    sentence, warned, shares = verdict(found), at_the_end(found), importance(found)
    write_text(sweep.output / "sweep.html", page.render_page(found, sentence, warned, shares))
    write_text(sweep.output / "best.yaml", best_config(found, sentence))
    write_csv(sweep.output / "sweep.csv", _table(found))
    points = [
        {
            "settings": point.trials[0].changes,
            "labels": point.trials[0].labels,
            "search": point.finding,
            "confirmed": point.confirmed,
            "flattery": point.flattery,
            "flop": point.flop,
            "curve": point.curve,
            "trials": {trial.id: state for trial, state in zip(point.trials, point.states, strict=True)},
        }
        for point in found.points
    ]
    contents = {
        "verdict": sentence,
        "warnings": warned,
        "metric": sweep.settings.metric,
        "noise_floor": found.floor,
        "comparisons": found.comparisons,
        "importance": shares,
        "points": points,
    }
    write_json(sweep.output / "sweep.json", contents)
    return sentence


def verdict(found: Results) -> str:
    """Return a sentence: which setting beats the base, by how much, and how far it flattered itself."""
    trials, metric = len(found.trials), METRICS[found.sweep.settings.metric]
    begin = "" if found.over == trials else f"So far, with {found.over} of {trials} trials over: "
    if np.isnan(found.floor.value):
        return f"{begin}the base has not finished on two seeds, so nothing can be said to beat it by more than noise."
    chosen = [point for point in found.points if point.confirmed] or [p for p in found.points[1:] if p.complete][:1]
    winner = found.winner
    if winner is None:
        best = f": {chosen[0].name} {_flattered(chosen[0])}" if chosen else ""
        return f"{begin}{NO_WINNER if begin else NO_WINNER.capitalize()}{best}."
    gain = (winner.confirmed or winner.finding).difference
    text = f"{begin}{winner.name} beats the base by {gain.value:.3f} {metric} (95 % {gain.low:.3f} to {gain.high:.3f})"
    if winner.confirmed is None:
        return f"{text}, not confirmed on fresh seeds."
    return f"{text} on fresh seeds and images; it {_flattered(winner)}."


def _flattered(point: PointResult) -> str:
    """Say how a point's difference when it was chosen compares with that on fresh seeds."""
    chosen = f"showed {format_difference(point.finding.difference.value)} when it was chosen"
    if point.confirmed is None or point.flattery is None:
        return chosen
    fresh, flattery = (format_difference(of.value) for of in (point.confirmed.difference, point.flattery))
    return f"{chosen} and {fresh} when it was confirmed, so it had flattered itself by {flattery}"


def at_the_end(found: Results) -> list[str]:
    """Return a warning for each axis at whose end the best point lies."""
    means = {point.finding.mean: point.trials[0].labels for point in found.points if point.complete}
    labels = means[max(means)] if means else {}  # {} of the base, too
    return [
        f"The best value of {axis.name}, {labels[axis.name]}, lies at the end of its axis. Try values beyond it."
        for axis in found.sweep.axes
        if axis.name in labels and _is_at_end(axis, labels[axis.name])
    ]


def _is_at_end(axis: Axis, label: Label) -> bool:
    if axis.range:
        low, high = axis.range.log
        share = np.log(float(label) / low) / np.log(high / low)
        return bool(share < EDGE or share > 1 - EDGE)
    try:
        values = [float(choice) for choice in axis.choices]
    except ValueError:  # names have no order
        return False
    return len(values) > 2 and float(label) in (min(values), max(values))


def best_config(found: Results, comment: str) -> str:
    """Return the smallest config over the sweep's base that gives the winner, or the base."""
    base = Path(os.path.relpath(found.sweep.base_path.resolve(), found.sweep.output.resolve())).as_posix()
    values: dict[str, Any] = {"base": base}
    first = found.winner.trials[0] if found.winner else None
    for key in first.changes if first else ():
        target, source = values, first.config.model_dump(mode="json") if first else {}
        parts = key.split(".")
        length = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))  # a list is given as a whole
        for part in parts[: length - 1]:
            target, source = target.setdefault(part, {}), source[part]
        target[parts[length - 1]] = source[parts[length - 1]]
    return f"# {comment}\n{yaml.safe_dump(values, sort_keys=False)}"


def _table(found: Results) -> pa.Table:
    """The table of sweep.csv: one row a trial."""
    rows = [
        {"trial": trial.id, "point": trial.point, "phase": trial.phase, "seed": trial.seed, "state": state}
        | {found.sweep.settings.metric: found.values.get(trial.id), "flop": point.flop}
        | {axis.name: str(trial.labels.get(axis.name, "")) for axis in found.sweep.axes}
        | {"settings": trial.describe(), "directory": str(trial.directory)}
        for point in found.points
        for trial, state in zip(point.trials, point.states, strict=True)
    ]
    return pa.Table.from_pylist(rows)

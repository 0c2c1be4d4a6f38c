"""The settings of a sweep, and what follows from them: axes, points and trials, all valid before anything starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import Discriminator, Field, PositiveFloat, Strict, Tag, model_validator

from joytag.core import settings
from joytag.core.settings import Choice, PathText, Settings, SettingsError, flatten
from joytag.evaluation.comparison import METRICS
from joytag.models import release
from joytag.training.config import RESUMING, PositiveInt, RunSettings, load

SAMPLERS = {"tpe": "TPE", "gp": "GP", "cmaes": "CmaEs", "nsgaii": "NSGAII", "qmc": "QMC"}  # Optuna's, by our name
NOT_LOGGED = ("micro_precision", "micro_recall")  # metrics without a curve
CONFIRMING = 1000  # the first fresh seed, counted from the base's
DIGITS = 4  # of the numbers of a grid, so that a wider grid repeats them exactly
Label = str | float  # of an axis' choice: a number within a range, else text
Labels = Mapping[str, Label]  # of a point: one for each axis; {} for the base


class Range(Settings):
    """Numbers from a low to a high end, evenly spaced in their logarithm."""

    log: Annotated[tuple[PositiveFloat, PositiveFloat], Strict(False)]
    """The low and the high end, which are included."""
    points: int | None = Field(default=None, ge=2)
    """How many numbers a grid takes."""

    def at(self, share: float) -> float:
        """Return the number at a share of the way from the low to the high end, to DIGITS digits."""
        low, high = self.log
        return float(f"{low * (high / low) ** share:.{DIGITS}g}")


def _kind(axis: Any) -> str | None:
    if not isinstance(axis, list | dict):
        return None
    return "values" if isinstance(axis, list) else "range" if "log" in axis else "variants"


Values = Annotated[list[Any], Field(min_length=1)]
Variants = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
AxisSettings = Annotated[
    Annotated[Values, Tag("values")] | Annotated[Range, Tag("range")] | Annotated[Variants, Tag("variants")],
    Discriminator(_kind, "axis", "give a list of values, {log: [0.001, 0.1], points: 5}, or named variants"),
]


class StopEarly(Settings):
    """Successive halving: stop the worse points at rungs."""

    rungs: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1)
    """Shares of a run's samples at which points are compared."""
    keep: float = Field(gt=0, lt=1)
    """Share of the points that goes on at a rung."""


class Confirm(Settings):
    """Run the best points again on fresh seeds."""

    best: PositiveInt
    """How many points."""
    seeds: Annotated[int, Field(ge=2)]
    """How many seeds, none of which chose the points."""


class SweepSettings(Settings):
    """A sweep: a file in configs/sweeps/.

    An axis is a setting of the run with a list of values, such as `[0.0, 0.1]`, or with a range, such as `{log: [0.001,
    0.1], points: 5}`, of which a grid takes so many points; or it is a name with variants of a few settings each, such
    as `{cnn: {}, patch: {model.cnn_stem: null}}`.
    """

    base: PathText
    """The run's config that all trials change: beside this file, as given, or in configs/."""
    output: PathText
    """The sweep's directory."""
    axes: dict[str, AxisSettings] = {}
    """What is varied; axes multiply."""
    zip: list[Annotated[dict[str, Values], Field(min_length=1)]] = []
    """Axes that move several settings together: each a setting's list of values, of equal lengths."""
    seeds: Annotated[int, Field(ge=1, le=CONFIRMING)] = 3
    """How many seeds, from the base's on; every point runs on the same."""
    search: Annotated[str, Choice(("grid", "random", *SAMPLERS))] = "grid"
    """How points are chosen: all, at random, or by a sampler of Optuna."""
    trials: PositiveInt | None = None
    """How many points a search other than grid tries, besides the base."""
    metric: Annotated[str, Choice(METRICS)] = "macro_f1"
    """What is compared, at the run's threshold, on the validation images."""
    stop_early: StopEarly | None = None
    """Null, the default: all runs go on to their end."""
    confirm: Confirm | None = None
    """Null, the default: do not."""
    keep_checkpoints: Literal["best", "all"] = "best"
    """Whose checkpoints to keep. All trials keep logs, predictions, metrics and the released model."""
    processes: PositiveInt = 1
    """GPUs of a trial; with more than one, torchrun starts it."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.search == "grid") != (self.trials is None):
            raise ValueError(f"trials: {'a grid has them all' if self.trials else f'needed by search {self.search}'}")
        for name, axis in self.axes.items():
            if isinstance(axis, Range) and (axis.log[0] >= axis.log[1] or (self.search == "grid" and not axis.points)):
                raise ValueError(f"axes.{name}: give log, a low and a high end, and for search grid points")
        for number, values in enumerate(self.zip):
            if len({len(items) for items in values.values()}) > 1:
                raise ValueError(f"zip.{number}: the lists have different lengths")
        if self.stop_early and self.metric in NOT_LOGGED:
            raise ValueError(f"stop_early: runs do not log {self.metric}; set another metric")
        return self


@dataclass(frozen=True)
class Axis:
    """One thing that is varied: the `choices` of a grid, each a few settings by its label, perhaps of a `range`."""

    choices: Mapping[Any, Mapping[str, Any]]
    range: Range | None = None  # of which any number is a label

    @property
    def keys(self) -> set[str]:
        """The settings that the axis moves."""
        return {key for choice in self.choices.values() for key in choice}

    def draw(self, rng: np.random.Generator) -> Label:
        """Return a random label."""
        return self.range.at(rng.random()) if self.range else str(rng.choice([*self.choices]))

    def has(self, label: Label) -> bool:
        """Whether a label lies within the axis."""
        low, high = self.range.log if self.range else (np.nan, np.nan)
        return label in self.choices or (isinstance(label, float) and low <= label <= high)


Axes = Mapping[str, Axis]  # by name


@dataclass(frozen=True)
class Trial:
    """One run: a point with a seed, which its `name` says. `commands` are what a person would type."""

    id: str
    name: str
    seed: int
    threshold: float  # of its metric
    directory: Path
    results: Path  # the released model with its evaluation
    commands: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Point:
    """One choice on every axis, with its trials. `changes` are the settings in which it differs from the base.

    Its `id` is that of its first trial. The `fresh` trials confirm it.
    """

    id: str
    name: str
    labels: Labels
    changes: Mapping[str, Any]
    config: RunSettings
    search: Sequence[Trial]
    fresh: Sequence[Trial]

    @property
    def trials(self) -> list[Trial]:
        """All trials."""
        return [*self.search, *self.fresh]


def text(value: Any) -> str:
    """Return a value as an override writes it."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and yaml.safe_load(value) == value
    return str(value) if is_plain else json.dumps(value)


class Sweep:
    """A sweep's settings with its axes by name and its base, all checked: every choice and, of a grid, every point.

    Raises SettingsError, in one line, before anything is written.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path, self.settings = path, settings.load(SweepSettings, path, overrides)
        beside = path.parent / self.settings.base
        is_there = beside.is_file() and not beside.samefile(path)  # a sweep may have the name of its base
        self.base_path = beside if is_there else settings.find(self.settings.base)
        self.output, self.name = Path(self.settings.output), Path(self.settings.output).name
        self.base, self._points = self._resolve([]), dict[str, Point]()
        confirm = self.settings.confirm
        self.seeds = [self.base.seed + i for i in range(self.settings.seeds)]
        self.fresh_seeds = [self.base.seed + CONFIRMING + i for i in range(confirm.seeds if confirm else 0)]
        axes = list(self._read_axes())
        for (one, axis), (other, another) in itertools.permutations(axes, 2):
            if both := [key for key in axis.keys for of in another.keys if f"{of}.".startswith(f"{key}.")]:
                raise SettingsError(f"{path}: axes {one} and {other} both set {min(both)}")
        self.axes = dict(axes)
        self._check_axes()

    def _read_axes(self) -> Iterator[tuple[str, Axis]]:
        for name, axis in self.settings.axes.items():
            if isinstance(axis, Range):
                numbers = [axis.at(share) for share in np.linspace(0, 1, axis.points or 2)]
                yield name, Axis({number: {name: number} for number in numbers}, axis)
            else:
                yield name, Axis({text(v): {name: v} for v in axis} if isinstance(axis, list) else dict(axis))
        for values in self.settings.zip:
            rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
            yield "+".join(values), Axis({", ".join(map(text, row.values())): row for row in rows})

    def _check_axes(self) -> None:
        for name, axis in self.axes.items():
            if {"seed", "output"} & axis.keys:
                raise SettingsError(f"{self.path}: {name}: every trial has its own; use seeds, output")
            if len({self.point({name: label}).id for label in axis.choices}) < len(axis.choices):
                raise SettingsError(f"{self.path}: {name}: some of its values make the same run")
        if self.settings.search in SAMPLERS:  # other searches know, and check, all of their points at the start
            ends = [[(name, [*axis.choices][end]) for end in (0, -1)] for name, axis in self.axes.items()]
            for corner in itertools.islice(itertools.product(*ends), 256):
                self.point(dict(corner))

    def _resolve(self, overrides: Sequence[str]) -> RunSettings:
        try:
            return load(self.base_path, overrides)
        except SettingsError as error:
            raise SettingsError(": ".join([str(self.path), *overrides, str(error)])) from None

    @property
    def measure(self) -> str:
        """What the search compares."""
        return f"{self.settings.metric} on {'half of ' if self.settings.confirm else ''}the validation images"

    def has(self, labels: Labels) -> bool:
        """Whether a point lies within the axes, which may have changed since it was recorded."""
        return labels.keys() == self.axes.keys() and all(self.axes[name].has(labels[name]) for name in labels)

    def point(self, labels: Labels, is_confirmed: bool = False) -> Point:
        """Return a point, with trials on fresh seeds if asked. Raises SettingsError when its settings are refused."""
        key = json.dumps([labels, is_confirmed])
        if key not in self._points:
            each = [self.axes[name].choices.get(label, {name: label}) for name, label in labels.items()]
            chosen = {key: value for choice in each for key, value in choice.items()}
            config, base = self._resolve([f"{key}={text(value)}" for key, value in chosen.items()]), flatten(self.base)
            changes = {key: value for key, value in chosen.items() if key not in base or base[key] != value}
            overrides = [f"{key}={text(value)}" for key, value in changes.items()]
            name = " ".join(overrides) or "base"
            search = [self._trial(name, config, overrides, seed) for seed in self.seeds]
            fresh = [self._trial(name, config, overrides, seed) for seed in self.fresh_seeds if is_confirmed]
            self._points[key] = Point(search[0].id, name, labels, changes, config, search, fresh)
        return self._points[key]

    def _trial(self, point: str, config: RunSettings, overrides: Sequence[str], seed: int) -> Trial:
        """Return the trial of a point's settings, and of what they override in the base, on a seed."""
        values = json.dumps(flatten(config, {RESUMING}) | {"seed": seed}, sort_keys=True)
        name = hashlib.sha256(values.encode()).hexdigest()[:12]
        output, count = self.output / "trials" / name, str(self.settings.processes)
        model = output / release.DIRECTORY
        start = ["torchrun", "--standalone", "--nproc-per-node", count, "-m", "joytag"] if count != "1" else ["joytag"]
        train = ["--config", str(self.base_path), *overrides, f"seed={seed}", f"output={output}", "--resume", "auto"]
        evaluate = ["--model", str(model), "--data", config.data.directory, "--device", config.device]
        evaluate += ["--threshold", str(config.threshold), "--output", str(model)]
        commands = [[*start, "train", *train], [*start, "evaluate", *evaluate]]
        return Trial(name, f"{point} seed={seed}", seed, config.threshold, output, model, commands)

"""The settings of a sweep, and what follows from them: axes, points and trials, all valid before anything starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, model_validator

from joytag.core import settings
from joytag.core.settings import Choice, PathText, Settings, SettingsError, flatten
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation.comparison import METRICS
from joytag.models import release
from joytag.training.config import RESUMING, PositiveInt, RunSettings

SAMPLERS = {  # of Optuna, by the name that a file gives
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
}
SEARCHES = ("grid", "random", *SAMPLERS)
NOT_LOGGED = ("micro_precision", "micro_recall")  # metrics without a curve
CONFIRMING = 1000  # the first fresh seed, counted from the base's
DIGITS = 4  # of the numbers of a grid, so that a wider grid repeats them exactly
Label = str | float  # of an axis' choice: a number within a range, else text
Positive = Annotated[float, Field(gt=0)]


class Range(Settings):
    """Numbers from a low to a high end, evenly spaced in their logarithm."""

    log: Annotated[tuple[Positive, Positive], Strict(False)]
    """The low and the high end, which are included."""
    points: int | None = Field(default=None, ge=2)
    """How many numbers a grid takes."""

    def at(self, share: float) -> float:
        """Return the number at a share of the way from the low to the high end, to DIGITS digits."""
        low, high = self.log
        return float(f"{low * (high / low) ** share:.{DIGITS}g}")


def _kind(value: Any) -> str:
    return "values" if isinstance(value, list) else "range" if "log" in dict(value) else "variants"


def _check_axis(value: Any) -> Any:
    if not isinstance(value, list | dict | Range):
        raise ValueError("give a list of values, {log: [0.001, 0.1], points: 5}, or named variants")
    return value


Values = Annotated[list[Any], Field(min_length=1)]
Variants = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
AxisSettings = Annotated[
    Annotated[Values, Tag("values")] | Annotated[Range, Tag("range")] | Annotated[Variants, Tag("variants")],
    Discriminator(_kind),
    BeforeValidator(_check_axis),
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
    search: Annotated[str, Choice(SEARCHES)] = "grid"
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
    """One thing that is varied: numbers within a `range`, or `choices`, each a few settings by its label."""

    name: str
    range: Range | None
    choices: Mapping[str, Mapping[str, Any]]

    def settings(self, label: Label) -> Mapping[str, Any]:
        """Return the settings of a label."""
        return {self.name: label} if self.range else self.choices[str(label)]

    @property
    def labels(self) -> list[Label]:
        """All labels of a grid; without `points` those of a range's ends."""
        if self.range is None:
            return list(self.choices)
        return [self.range.at(share) for share in np.linspace(0, 1, self.range.points or 2)]

    def has(self, label: Label) -> bool:
        """Whether a label lies within the axis."""
        if self.range is None:
            return label in self.choices
        return isinstance(label, float) and self.range.log[0] <= label <= self.range.log[1]

    @property
    def keys(self) -> set[str]:
        """The settings that the axis moves."""
        return {self.name} if self.range else {key for choice in self.choices.values() for key in choice}


@dataclass(frozen=True)
class Trial:
    """A point with a seed: one run. `changes` are the settings in which the point differs from the base."""

    id: str
    point: str
    labels: Mapping[str, Label]  # of the axes; {} for the base
    changes: Mapping[str, Any]
    seed: int
    phase: Literal["search", "confirm"]
    config: RunSettings
    commands: Sequence[Sequence[str]]  # what a person would type

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.config.output)

    @property
    def results(self) -> Path:
        """The directory of metrics.json and predictions/."""
        return self.directory / release.DIRECTORY

    def describe(self) -> str:
        """Describe the point and the seed in a few words."""
        changes = " ".join(f"{key}={text(value)}" for key, value in self.changes.items())
        return f"{changes or 'base'} seed={self.seed}"


def text(value: Any) -> str:
    """Return a value as an override writes it."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and yaml.safe_load(value) == value
    return str(value) if is_plain else json.dumps(value)


class Sweep:
    """A sweep's settings with its axes and its base, all checked: every choice and, of a grid, every point.

    Raises SettingsError, in one line, before anything is written.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path, self.settings = path, settings.load(SweepSettings, path, overrides)
        beside = path.parent / self.settings.base
        self.base_path = beside if beside.is_file() else settings.find(self.settings.base)
        self.output, self.name = Path(self.settings.output), Path(self.settings.output).name
        self.axes, self._points = self._axes(), dict[str, tuple[dict[str, Any], RunSettings]]()
        self._check_axes()

    def _axes(self) -> list[Axis]:
        axes = []
        for name, axis in self.settings.axes.items():
            listed = {text(value): {name: value} for value in axis} if isinstance(axis, list) else axis
            axes.append(Axis(name, axis, {}) if isinstance(axis, Range) else Axis(name, None, dict(listed)))
        for values in self.settings.zip:
            rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
            axes.append(Axis("+".join(values), None, {", ".join(map(text, row.values())): row for row in rows}))
        return axes

    def _check_axes(self) -> None:
        for one, other in itertools.combinations(self.axes, 2):
            for a, b in itertools.product(sorted(one.keys), sorted(other.keys)):
                if f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}."):
                    raise SettingsError(f"{self.path}: axes {one.name} and {other.name} both set {min(a, b, key=len)}")
        for axis in self.axes:
            if axis.keys & {"seed", "output"}:
                raise SettingsError(f"{self.path}: {axis.name}: every trial has its own; use seeds, output")
            points = [self.trials({axis.name: label}, [0])[0].id for label in axis.labels]
            if len(set(points)) < len(points):
                raise SettingsError(f"{self.path}: {axis.name}: some of its values make the same run")
        if self.settings.search not in ("grid", "random"):  # whose points are all known, and checked, at the start
            corners = itertools.product(*([axis.labels[0], axis.labels[-1]] for axis in self.axes))
            for labels in itertools.islice(corners, 256):
                self.trials(dict(zip([axis.name for axis in self.axes], labels, strict=True)), [0])

    @cached_property
    def base(self) -> RunSettings:
        """The base's settings."""
        return self._resolve([])

    def _resolve(self, overrides: Sequence[str]) -> RunSettings:
        try:
            config = settings.load(RunSettings, self.base_path, overrides)
            if config.init_from is not None:
                config = config.fitted_to(release.read_config(release.locate(config.init_from)))
        except SettingsError as error:
            raise SettingsError(" ".join([f"{self.path}:", *(f"{text}:" for text in overrides), str(error)])) from None
        return config

    @property
    def samples(self) -> int:
        """The samples of a run of the base."""
        return sum(stage.samples for stage in self.base.plan())

    def seeds(self, phase: Literal["search", "confirm"]) -> list[int]:
        """Return the seeds of a phase; no seed is in both."""
        if phase == "search":
            return [self.base.seed + i for i in range(self.settings.seeds)]
        fresh = self.settings.confirm.seeds if self.settings.confirm else 0
        return [self.base.seed + CONFIRMING + i for i in range(fresh)]

    def has(self, labels: Mapping[str, Label]) -> bool:
        """Whether a point lies within the axes, which may have changed since it was recorded."""
        axes = {axis.name: axis for axis in self.axes}
        return labels.keys() == axes.keys() and all(axes[name].has(label) for name, label in labels.items())

    def trials(
        self, labels: Mapping[str, Label], seeds: Iterable[int], phase: Literal["search", "confirm"] = "search"
    ) -> list[Trial]:
        """Return the trials of a point, one for each seed. Raises SettingsError when its settings are refused."""
        key = json.dumps(labels)
        if key not in self._points:
            self._points[key] = self._point(labels)
        changes, config = self._points[key]
        values = flatten(config, {RESUMING})
        point, trials = _hash({key: value for key, value in values.items() if key != "seed"}), []
        for seed in seeds:
            name = _hash(values | {"seed": seed})
            directory = self.output / "trials" / name
            config = config.model_copy(update={"seed": seed, "output": str(directory)})
            commands = self._commands(changes, config)
            trials.append(Trial(name, point, dict(labels), changes, seed, phase, config, commands))
        return trials

    def _point(self, labels: Mapping[str, Label]) -> tuple[dict[str, Any], RunSettings]:
        """Return the settings in which a point differs from the base, and the point's settings."""
        axes = {axis.name: axis for axis in self.axes}
        chosen = {key: value for name, label in labels.items() for key, value in axes[name].settings(label).items()}
        config = self._resolve([f"{key}={text(value)}" for key, value in chosen.items()])
        base, absent = flatten(self.base), object()
        return {key: value for key, value in chosen.items() if base.get(key, absent) != value}, config

    def _commands(self, changes: Mapping[str, Any], config: RunSettings) -> list[list[str]]:
        """Return the commands of a trial: train, then evaluate."""
        overrides = [f"{key}={text(value)}" for key, value in (*changes.items(), ("seed", config.seed))]
        train = ["--config", str(self.base_path), *overrides, f"output={config.output}", "--resume", "auto"]
        model = str(Path(config.output) / release.DIRECTORY)
        evaluate = ["--model", model, "--data", config.data.directory, "--device", config.device]
        if config.threshold != DEFAULT_THRESHOLD:
            evaluate += ["--threshold", str(config.threshold), "--output", model]
        count = self.settings.processes
        start = (
            ["torchrun", "--standalone", "--nproc-per-node", str(count), "-m", "joytag"] if count > 1 else ["joytag"]
        )
        return [[*start, "train", *train], [*start, "evaluate", *evaluate]]


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

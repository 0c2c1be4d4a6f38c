"""What a run will do and cost, computed from its settings without data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from joytag.core import files
from joytag.data import dataset
from joytag.models.architectures import count_parameters, training_flop
from joytag.training import schedule
from joytag.training.config import RunSettings

RATES = Path("runs/rates.json")  # of this machine, measured by joytag.benchmarks.training
H100 = 0.40 * 989e12  # FLOP/s of fp16 training: a usual share of the peak for such models, not measured


class RatesError(ValueError):
    """Raised when the file of measured rates cannot be read."""


@dataclass(frozen=True)
class Rates:
    """The measured rates of a machine, by image size in pixels."""

    date: str
    machine: str
    workers: int  # decoding processes that training would start; 0: it loads images in its own process
    loading: dict[int, float]  # images per second of one decoding process
    flop: dict[int, float]  # FLOP/s of a training step


def write_rates(rates: Rates) -> None:
    """Write the rates to RATES."""
    files.write_text(RATES, TypeAdapter(Rates).dump_json(rates, indent=1).decode() + "\n")


def read_rates() -> Rates | None:
    """Read the rates in RATES, if it exists. Raises RatesError when it is damaged."""
    if not RATES.is_file():
        return None
    try:
        return TypeAdapter(Rates).validate_json(RATES.read_bytes())
    except (OSError, ValidationError):
        raise RatesError(f"{RATES}: cannot be read; remove it") from None


def stage_time(samples: int, image_size: int, flop: int, workers: int, rates: Rates) -> str:
    """Estimate how long a stage takes on a machine with these rates, and what bounds it.

    For an image size that was not measured, a step's FLOP/s are those of the nearest one, and the time to load an
    image is proportional to its pixels.
    """
    stepping, loading = _hours(samples, image_size, flop, workers, rates)
    if workers == 0:
        return f"{_time(stepping + loading)}: steps {_time(stepping)}, and loading {_time(loading)} in the same process"
    bound = "the steps" if stepping >= loading else f"loading; {-(-loading // stepping * workers):.0f} workers would do"
    return f"{_time(max(stepping, loading))}, bound by {bound}: steps {_time(stepping)}, loading {_time(loading)}"


def _hours(samples: int, image_size: int, flop: int, workers: int, rates: Rates) -> tuple[float, float]:
    """Return the hours that the steps and the loading of a stage take, each alone."""
    nearest = _nearest(rates.loading, image_size)
    rate = rates.loading[nearest] * (nearest / image_size) ** 2
    stepping = samples * flop / rates.flop[_nearest(rates.flop, image_size)]
    return stepping / 3600, samples / rate / 3600 / max(1, workers)


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _nearest(sizes: Iterable[int], size: int) -> int:
    return min(sizes, key=lambda other: abs(other - size))


def vocabulary_size(config: RunSettings) -> int:
    """Return `data.tags`, or the number of the dataset's tags. Raises ValueError when there is neither."""
    if config.data.tags is not None:
        return config.data.tags
    try:
        return len(dataset.Dataset.open(Path(config.data.directory)).tags)
    except dataset.DatasetMissing as error:
        raise dataset.DatasetMissing(f"data.tags: set it, such as to 5813, or: {error}", error.directory) from None


def describe(config: RunSettings, rates: Rates | None = None) -> str:
    """Describe the run, as text for a terminal: the time here from `rates`, size, cost, schedule, resolved settings."""
    n_tags, stages = vocabulary_size(config), config.plan()
    with torch.device("meta"):
        parameters = count_parameters(config.architecture(n_tags, stages[0].image_size).build())
    lines = [] if rates is None else _describe_time(config, n_tags, rates)
    lines += [
        f"Parameters             {parameters:,} with {n_tags:,} tags",
        f"Checkpoint             about {config.checkpoint_bytes(n_tags):,} bytes (weights and optimizer, float32)",
    ]
    for number in range(len(stages)):
        lines += _describe_stage(number, config, n_tags)
    return "\n".join([*lines, "", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)])


def cost(config: RunSettings, n_tags: int, rates: Rates | None) -> tuple[float, float | None]:
    """Return the FLOP of a run, and its hours on the machine with these rates, None without rates."""
    flop, hours = 0.0, None if rates is None else 0.0
    for stage in config.plan():
        step = training_flop(config.architecture(n_tags, stage.image_size), stage.image_size)
        flop += step * stage.samples
        if rates is not None and hours is not None:
            workers = rates.workers if config.data.workers is None else config.data.workers
            hours += (max if workers else sum)(_hours(stage.samples, stage.image_size, step, workers, rates))
    return flop, hours


def _describe_time(config: RunSettings, n_tags: int, rates: Rates) -> list[str]:
    """Describe how long the run takes on the machine with these rates, in all and stage by stage."""
    workers, lines = rates.workers if config.data.workers is None else config.data.workers, []
    for number, stage in enumerate(config.plan()):
        flop = training_flop(config.architecture(n_tags, stage.image_size), stage.image_size)
        sizes = stage.samples, stage.image_size, flop, workers, rates
        lines.append(f"  stage {number:<15}{stage_time(*sizes)}")
    total = cost(config, n_tags, rates)[1] or 0.0
    return [f"Time here              {_time(total)} ({rates.machine}, measured {rates.date}, {RATES})", *lines]


def _describe_stage(number: int, config: RunSettings, n_tags: int) -> list[str]:
    stages = config.plan()
    stage, before = stages[number], schedule.total(stages[:number])
    flop = training_flop(config.architecture(n_tags, stage.image_size), stage.image_size)
    levels = []
    for share in (0, 0.25, 0.5, 0.75):
        samples = before + schedule.whole_batches(int(stage.samples * share), config.batch_size)
        levels.append(f"{share:.0%}: {schedule.learning_rate(samples, stages, config.optimizer.lr):.3g}")
    return [
        f"Stage {number}                {stage.image_size} px{', restart' if stage.restart else ''}",
        f"  optimizer steps      {stage.samples // config.batch_size:,} of {config.batch_size:,} samples: "
        f"{stage.samples:,} samples",
        f"  training cost        {flop / 1e9:.1f} GFLOP an image, {flop * stage.samples:.2e} FLOP in all",
        f"  learning rate        {', '.join(levels)}, end: 0",
        f"  on one H100          {_time(stage.samples * flop / H100 / 3600)} at {H100 / flop:,.0f} images/s, "
        "if it reaches 40 % of its 989 TFLOP/s",
    ]

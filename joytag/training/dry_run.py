"""What a run will do and cost, worked out from its settings without data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from joytag.core import files
from joytag.data import dataset
from joytag.models.architectures import count_parameters, training_flop
from joytag.training import schedule
from joytag.training.config import RunSettings

RATES = Path("runs/rates.json")  # of this machine, measured by `benchmark.py all`
H100 = 0.40 * 989e12  # FLOP/s of fp16 in training: a share of the peak that is usual for such models, not measured


def write_rates(machine: str, workers: int, loading: dict[int, float], flop: dict[int, float]) -> None:
    """Keep what was measured on a machine, by image size.

    Images a second of one loading process, of which training would start `workers`, none to load in its own; and
    FLOP/s of a step.
    """
    facts = {"date": str(date.today()), "machine": machine, "workers": workers, "loading": loading, "flop": flop}
    files.write_text(RATES, json.dumps(facts, indent=1) + "\n")


def read_rates() -> dict[str, Any] | None:
    """What `write_rates` kept, if anything. Raises ValueError when it is damaged."""
    if not RATES.is_file():
        return None
    try:
        facts = json.loads(RATES.read_text(encoding="utf-8"))
        return {
            "date": str(facts["date"]),
            "machine": str(facts["machine"]),
            "workers": int(facts["workers"]),
            "loading": {int(size): float(rate) for size, rate in facts["loading"].items()},
            "flop": {int(size): float(rate) for size, rate in facts["flop"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{RATES}: cannot be read; remove it, or run scripts/benchmark.py all again") from None


def time_of_stage(samples: int, image_size: int, flop: int, workers: int, rates: dict[str, Any]) -> str:
    """How long a stage takes on a machine with these rates, and what bounds it.

    At sizes that were not measured, a step's rate in FLOP/s is taken to be that of the nearest, and an image's
    loading to cost as its pixels do.
    """
    stepping = samples * flop / rates["flop"][_nearest(rates["flop"], image_size)] / 3600
    nearest = _nearest(rates["loading"], image_size)
    rate = rates["loading"][nearest] * (nearest / image_size) ** 2
    loading = samples / rate / 3600 / max(1, workers)
    if workers == 0:
        return f"{_time(stepping + loading)}: steps {_time(stepping)}, and loading {_time(loading)} in the same process"
    bound = "the steps" if stepping >= loading else f"loading; {-(-loading // stepping * workers):.0f} workers would do"
    return f"{_time(max(stepping, loading))}, bound by {bound}: steps {_time(stepping)}, loading {_time(loading)}"


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _nearest(sizes: Iterable[int], size: int) -> int:
    return min(sizes, key=lambda other: abs(other - size))


def vocabulary_size(config: RunSettings) -> int:
    """`data.tags`, or the size of the dataset's tag table. Raises ValueError when there is neither."""
    if config.data.tags is not None:
        return config.data.tags
    try:
        return len(dataset.Dataset.open(Path(config.data.directory)).tags)
    except dataset.DatasetMissing as error:
        raise dataset.DatasetMissing(f"data.tags: set it, such as to 5813, or: {error}", error.directory) from None


def describe(config: RunSettings) -> str:
    """The resolved settings, then size, cost and schedule of the run, as text for a terminal."""
    n_tags, stages = vocabulary_size(config), config.plan()
    with torch.device("meta"):
        parameters = count_parameters(config.architecture(n_tags, stages[0].image_size).build())
    lines = [
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110),
        f"Parameters             {parameters:,} with {n_tags:,} tags",
        f"Checkpoint             about {12 * parameters:,} bytes (weights and two moments, float32)",
    ]
    rates = read_rates()
    done = 0
    for number, stage in enumerate(stages):
        flop = training_flop(config.architecture(n_tags, stage.image_size), stage.image_size)
        steps = stage.samples // config.batch_size
        levels = []
        for share in (0, 0.25, 0.5, 0.75):
            at = done + schedule.whole_batches(int(stage.samples * share), config.batch_size)
            levels.append(f"{share:.0%}: {schedule.learning_rate(at, stages, config.optimizer.lr):.3g}")
        done += stage.samples
        lines += [
            f"Stage {number}                {stage.image_size} px{', restart' if stage.restart else ''}",
            f"  optimizer steps      {steps:,} of {config.batch_size:,} samples: {stage.samples:,} samples",
            f"  training cost        {flop / 1e9:.1f} GFLOP an image, {flop * stage.samples:.2e} FLOP in all",
            f"  learning rate        {', '.join(levels)}, end: 0",
            f"  on one H100          {_time(stage.samples * flop / H100 / 3600)} at {H100 / flop:,.0f} images/s, "
            "if it reaches 40 % of its 989 TFLOP/s",
        ]
        if rates is not None:
            workers = rates["workers"] if config.data.workers is None else config.data.workers
            time = time_of_stage(stage.samples, stage.image_size, flop, workers, rates)
            lines.append(f"  here                 {time}")
    if rates is not None:
        lines.append(f"Rates of {rates['machine']}, measured {rates['date']} ({RATES})")
    else:
        lines.append(
            "For the time that it takes here, measure this machine first: .venv/bin/python scripts/benchmark.py all"
        )
    return "\n".join(lines)

"""What a run will do and cost, worked out from its settings without data."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from joytag import records, schedule
from joytag.config import RunSettings
from joytag.model import count_parameters, training_flop


def vocabulary_size(config: RunSettings) -> int:
    """`data.tags`, or the size of the dataset's tag table. Raises ValueError when there is neither."""
    if config.data.tags is not None:
        return config.data.tags
    try:
        return len(records.Dataset.open(Path(config.data.directory)).tags)
    except records.DatasetError as error:
        raise ValueError(f"data.tags: not given, and {error}; or add data.tags=5813") from None


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
    done = 0
    for number, stage in enumerate(stages):
        flop = training_flop(config.architecture(n_tags, stage.image_size), stage.image_size)
        steps = stage.samples // config.batch_size
        rates = []
        for share in (0, 0.25, 0.5, 0.75):
            at = done + schedule.whole_batches(int(stage.samples * share), config.batch_size)
            rates.append(f"{share:.0%}: {schedule.learning_rate(at, stages, config.optimizer.lr):.3g}")
        done += stage.samples
        lines += [
            f"Stage {number}                {stage.image_size} px{', restart' if stage.restart else ''}",
            f"  optimizer steps      {steps:,} of {config.batch_size:,} samples: {stage.samples:,} samples",
            f"  training cost        {flop / 1e9:.1f} GFLOP an image, {flop * stage.samples:.2e} FLOP in all",
            f"  learning rate        {', '.join(rates)}, end: 0",
        ]
    return "\n".join(lines)

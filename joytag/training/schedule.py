"""The schedule of a run: stages, learning rate and due events as pure functions of the samples trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size, in whole global batches.

    `restart` begins it with a fresh optimizer, gradient scaler and learning-rate curve.
    """

    image_size: int
    samples: int
    restart: bool


def whole_batches(samples: int, batch_size: int) -> int:
    """Round down to a multiple of the batch size."""
    return samples - samples % batch_size


def locate(samples: int, stages: Sequence[Stage]) -> tuple[int, int]:
    """Return the index of the stage of the next sample, and how many of the stage's samples are done.

    At the end of training it is the last stage, with all its samples done.
    """
    for index, stage in enumerate(stages[:-1]):
        if samples < stage.samples:
            return index, samples
        samples -= stage.samples
    return len(stages) - 1, samples


def total(stages: Sequence[Stage]) -> int:
    """Return the samples of all stages."""
    return sum(stage.samples for stage in stages)


def ends(stages: Sequence[Stage]) -> set[int]:
    """Return the samples trained on by the end of each stage."""
    return {total(stages[: index + 1]) for index in range(len(stages))}


def learning_rate(samples: int, stages: Sequence[Stage], peak: float) -> float:
    """Return the rate of a cosine from `peak` to 0 between restarts (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    index, done = locate(samples, stages)
    first = max(i for i in range(index + 1) if i == 0 or stages[i].restart)
    last = next((i for i in range(index + 1, len(stages)) if stages[i].restart), len(stages))
    done += total(stages[first:index])
    return peak * 0.5 * (1 + math.cos(math.pi * done / total(stages[first:last])))


def due(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` samples lies after `before` and not after `after`."""
    return before // every < after // every

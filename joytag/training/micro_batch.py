"""The number of samples a device takes at once, for micro_batch: auto."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from joytag.core import distributed, jsonl
from joytag.core.files import write_text
from joytag.data import loader
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
    averaged,
    fresh_optimizer,
    new_model,
)
from joytag.training.step import batch_loss, micro_batch_noise

CPU_MICRO_BATCH = 32  # of `auto`; there, larger ones are not faster


def settled(run: Run) -> Run:
    """The run with a number for `micro_batch: auto`, recorded in its directory while device and processes stay.

    On a GPU it is the largest one whose step, at the largest image size, takes at most nine tenths of the memory.
    """
    if run.config.micro_batch != "auto":
        return run
    path = Path(run.config.output) / "micro_batch.json"
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    facts = {"device": name, "processes": distributed.world_size()}
    lines = [line for line in jsonl.read(path) if facts.items() <= line.items()]
    micro = int(lines[0]["micro_batch"]) if lines else largest_micro_batch(run)
    if not lines and distributed.rank() == 0:
        print(f"micro_batch: {micro} samples at once on {name}")
        write_text(path, json.dumps(facts | {"micro_batch": micro}) + "\n")
    return replace(run, config=run.config.model_copy(update={"micro_batch": micro}))


def largest_micro_batch(run: Run) -> int:
    """The largest divisor of a process's share whose step fits, on all of them; found by halving the divisors."""
    step = 2 if run.config.data.mixup else 1
    divisors = [n for n in range(step, run.share + 1, step) if run.share % n == 0]
    if run.device.type != "cuda":
        return max((n for n in divisors if n <= CPU_MICRO_BATCH), default=divisors[0])
    torch.cuda.set_per_process_memory_fraction(0.9, run.device)
    low, high = 0, len(divisors)  # all before `low` fit, none from `high` on
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(run, divisors[middle]) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    if low == 0:
        raise ValueError(f"micro_batch: not even {divisors[0]} fits into {run.device}'s memory; take a smaller model")
    return distributed.minimum(divisors[low - 1])


def fits(run: Run, micro_batch: int) -> bool:
    """Whether a step with so many samples at once fits into the memory, beside optimizer and average."""
    size = max(stage.image_size for stage in run.stages)
    try:
        model = new_model(run)
        state = TrainState(model, *fresh_optimizer(model, run), averaged(model, run))
        labels = torch.zeros(micro_batch, len(run.dataset.tags), dtype=torch.bool)
        images = torch.zeros(micro_batch, 3, size, size, dtype=torch.uint8)
        state.set_image_size(size)
        model.train()
        chance = next(
            micro_batch_noise(state, replace(run, config=run.config.model_copy(update={"micro_batch": micro_batch})))
        )
        empty = torch.zeros(micro_batch, dtype=torch.int64)
        for _ in range(2):  # the second beside the first one's gradients and moments
            state.scaler.scale(
                batch_loss(model, loader.Batch(images, labels, empty, empty, []), chance, run)
            ).backward()
            state.optimizer.step()
    except torch.OutOfMemoryError:
        return False
    finally:
        model = state = chance = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return True

"""The largest micro-batch that fits in memory, for `micro_batch: auto`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from joytag.core import distributed, jsonl
from joytag.core.files import write_text
from joytag.core.terminal import print
from joytag.data import loader
from joytag.training.run import Run
from joytag.training.state import new_model, new_state, resume_fingerprint
from joytag.training.step import batch_loss, micro_batch_noise

CPU_MICRO_BATCH = 32  # samples; a CPU is not faster with more
MEMORY_SHARE = 0.9  # of a GPU's memory, for the search


def resolve(run: Run) -> Run:
    """Return the run with a number for `micro_batch: auto`.

    On a GPU it is the largest one whose step, at the largest image size, fits in nine tenths of the memory. It is
    recorded in the run's directory; the search is repeated when device, number of processes or settings change.
    """
    if run.config.micro_batch != "auto":
        return run
    path = Path(run.config.output) / "micro_batch.json"
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    settings = json.dumps([resume_fingerprint(run)["settings"], run.config.compile])
    memory = {
        "device": name,
        "processes": distributed.world_size(),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
    }
    lines = distributed.run_on_rank_zero(lambda: jsonl.read(path))
    recorded = [line for line in lines if memory.items() <= line.items()]
    if recorded:
        return with_micro_batch(run, int(recorded[0]["micro_batch"]))
    micro = largest(run)
    if distributed.rank() == 0:
        print(f"micro_batch: {micro} samples at once on {name}")
    distributed.run_on_rank_zero(lambda: write_text(path, json.dumps(memory | {"micro_batch": micro}) + "\n"))
    return with_micro_batch(run, micro)


def with_micro_batch(run: Run, micro_batch: int) -> Run:
    """Return the run with another micro-batch."""
    return replace(run, config=run.config.model_copy(update={"micro_batch": micro_batch}))


def largest(run: Run) -> int:
    """Find the largest divisor of a process's share whose step fits on all processes, by bisection.

    Raises ValueError when not even the smallest fits, or an odd share has no pairs for mixup.
    """
    step = 2 if run.config.data.mixup else 1
    divisors = [n for n in range(step, run.share + 1, step) if run.share % n == 0]
    if not divisors:
        raise ValueError(f"batch_size: {run.share} samples a process, an odd number, but data.mixup mixes pairs")
    if run.device.type != "cuda":
        return max((n for n in divisors if n <= CPU_MICRO_BATCH), default=divisors[0])
    torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, run.device)
    low, high = 0, len(divisors)  # the first `low` divisors fit, those from `high` do not
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(run, divisors[middle]) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    if low == 0:
        raise ValueError(f"micro_batch: not even {divisors[0]} fits into {run.device}'s memory; choose a smaller model")
    return distributed.minimum(divisors[low - 1])


def fits(run: Run, micro_batch: int) -> bool:
    """Whether steps with this micro-batch fit in memory, together with optimizer and average."""
    try:
        try_steps(with_micro_batch(run, micro_batch))
        enough = True
    except torch.OutOfMemoryError:
        enough = False
    torch.cuda.empty_cache()  # after the traceback, which refers to the tensors, is gone
    return enough


def try_steps(run: Run) -> None:
    """Take two steps on black images; the second also needs memory for the moments that the first has created."""
    size = max(stage.image_size for stage in run.stages)
    state = new_state(new_model(run), run)
    state.set_image_size(size)
    state.model.train()
    noise, empty = next(micro_batch_noise(state, run)), torch.zeros(run.micro_batch, dtype=torch.int64)
    images = torch.zeros(run.micro_batch, 3, size, size, dtype=torch.uint8)
    dtype = torch.int8 if run.has_signed_labels else torch.bool
    labels = torch.zeros(run.micro_batch, len(run.dataset.tags), dtype=dtype)
    batch = loader.Batch(images, labels, empty, empty, [])
    for _ in range(2):
        state.scaler.scale(batch_loss(state.model, batch, noise, run)).backward()
        state.optimizer.step()

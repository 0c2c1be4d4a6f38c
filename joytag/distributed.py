"""Where to compute: rank, reduction, seeds, device and number format; no-ops on a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, for the time of a `with` block."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def seed_of(*key: int) -> int:
    """A 64-bit seed that is a function of some non-negative integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def all_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def pick_device(name: str = "auto") -> torch.device:
    """`auto` to CUDA (this process's GPU), Apple's MPS or the CPU, in that order; a name as given.

    On CUDA, float32 products then run in TF32. Raises ValueError when the named device is not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: not on this machine; use cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name}: not one of auto, cpu, mps, cuda, cuda:0 ...") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name}: no CUDA device here; use cpu")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {device}: there are only {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What to compute in: `fp16`, `bf16` or `fp32` as given, `auto` by what is fast and sound on the device.

    fp16 on CUDA, as in the recipe; on a CPU bf16 where its matrix units take it (AMX), else float32,
    which is faster there.
    """
    if precision != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and _has_amx() else torch.float32


def _has_amx() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in every version of torch
    return capabilities is not None and bool(capabilities().get("amx_bf16"))

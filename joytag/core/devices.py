"""The device, number format and memory to compute with."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

WIDE = 384  # layers; in narrower ones a CPU loses to conversions what it gains by shorter numbers


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
        if device.index is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"device {name}: all processes would share it; use cuda")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {device}: there are only {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    return device


def keep_memory() -> None:
    """Have the C library keep the memory that is freed, for what is allocated next.

    Otherwise it returns the large arrays of a step or a batch to the system, and gets new pages for the next one's,
    whose first touch costs a tenth of the time on a CPU. Only glibc is told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((-1, -1), (-2, 1 << 26), (-4, 0)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
            mallopt(parameter, value)


def pick_dtype(precision: str, device: torch.device, width: int = 0) -> torch.dtype:
    """What to compute in: `fp16`, `bf16` or `fp32` as given, `auto` by what is fast and sound on the device.

    fp16 on CUDA, as in the recipe. On a CPU bf16 where its matrix units take it (AMX), or where AMD's vector units do,
    at twice float32's rate, and the model is WIDE enough to gain from that; else float32. `width` is that of the
    model's layers, 0 when unknown.
    """
    if precision != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return torch.float16
    fast = device.type == "cpu" and (has_amx() or (width >= WIDE and _amd_takes_bf16()))
    return torch.bfloat16 if fast else torch.float32


def has_amx() -> bool:
    """Whether this CPU has units that multiply matrices in bf16."""
    return bool(_capabilities().get("amx_bf16"))


def _amd_takes_bf16() -> bool:
    # Another CPU with the same instructions, but neither AMD's nor with AMX, was slower in bf16 than in float32.
    return bool(_capabilities().get("avx512_bf16")) and "AMD" in str(_capabilities().get("cpu_name"))


def _capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch

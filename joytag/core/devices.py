"""Choice of device and number format, and a setting of the memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

WIDE = 384  # layer width from which bf16 is faster than float32 on a CPU; below, conversions cost more than it saves
NVIDIA_DRIVERS = ("/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1", "C:/Windows/System32/nvcuda.dll")


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, by number or as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not named:
        return [str(i) for i in range(torch.cuda.device_count())]
    return list(takewhile(lambda name: name.strip() != "-1", named.split(",")))  # as CUDA reads it: -1 ends the list


def pick_device(name: str = "auto") -> torch.device:
    """Return the device for a name; `auto` is the first present of CUDA (this process's GPU), Apple's MPS and the CPU.

    Enables TF32 for float32 products on CUDA. Warns when `auto` is the CPU though there is an NVIDIA GPU. Raises
    ValueError when the device does not exist here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cpu" and (reason := why_no_cuda()):
            warnings.warn(f"computing on the CPU: {reason}", stacklevel=2)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "mps", "cuda"):
        raise ValueError(f"device {name}: not one of auto, cpu, mps, cuda, cuda:0 ...")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name}: not on this machine; use cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name}: {why_no_cuda() or 'no CUDA device here'}; use cpu")
        if device.index is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"device {name}: all processes would share it; use cuda")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {device}: there are only {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    return device


def why_no_cuda() -> str:
    """Return why torch cannot use the NVIDIA GPU whose driver is installed here; empty without one, or if it is hidden.

    PyPI's torch for Windows has no CUDA, for example.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ or not any(Path(driver).exists() for driver in NVIDIA_DRIVERS):
        return ""
    reason = "has no CUDA; install one that has (pytorch.org/get-started)"
    if torch.version.cuda is not None:
        reason = f"is built for CUDA {torch.version.cuda}, for which the driver may be too old"
    return f"there is an NVIDIA GPU, but torch {torch.__version__} {reason}"


def keep_memory() -> None:
    """Stop glibc from returning freed memory to the system, so that the next batch reuses it.

    Otherwise the large arrays of each batch get new pages, whose first access takes a tenth of the time on a CPU.
    Does nothing with other C libraries.
    """
    if sys.platform == "win32":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((-1, -1), (-2, 1 << 26), (-4, 0)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
            mallopt(parameter, value)


def pick_dtype(precision: str, device: torch.device, width: int = 0) -> torch.dtype:
    """Return the number format for `fp16`, `bf16` or `fp32`; `auto` chooses a fast and safe one for the device.

    That is fp16 on CUDA, as in the recipe. On a CPU it is bf16 if the CPU has matrix units for it (AMX), or if it is
    AMD's with bf16 instructions (twice as fast as float32) and the layers have a `width` (0: unknown) of at least
    WIDE; otherwise float32.
    """
    if precision != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return torch.float16
    fast = device.type == "cpu" and (has_amx() or (width >= WIDE and _amd_has_bf16()))
    return torch.bfloat16 if fast else torch.float32


def has_amx() -> bool:
    """Whether this CPU has units that multiply matrices in bf16."""
    return bool(cpu_capabilities().get("amx_bf16"))


def cpu_name() -> str:
    """Return what this CPU is called, and the widest vector instructions that torch uses on it."""
    return f"{cpu_capabilities().get('cpu_name', platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"


def _amd_has_bf16() -> bool:
    # Another vendor's CPU with the same instructions, without AMX, was slower in bf16 than in float32.
    return bool(cpu_capabilities().get("avx512_bf16")) and "AMD" in str(cpu_capabilities().get("cpu_name"))


def cpu_capabilities() -> dict[str, Any]:
    """Return torch's description of this CPU, empty in versions of torch that have none."""
    return getattr(torch.cpu, "get_capabilities", dict)()

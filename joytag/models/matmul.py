"""Choice of the library that multiplies float32 matrices on a CPU, and of the attention that suits it."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from joytag.models.int8 import Int8Block
from joytag.models.vit import Block

# torch multiplies float32 matrices by its BLAS, such as MKL, or by oneDNN, where bf16 would do. A CPU without matrix
# units for bf16 computes in float32 all the same, and on some of AMD's CPUs oneDNN has twice MKL's rate.
LIBRARIES = {"blas": "none", "onednn": "bf16"}
DEFAULT = "blas"
ROUNDING = 1e-6  # the most that a product may be off, relative to its size: float32's is 3e-7 off, bf16's 3e-3
GAIN = 1.4  # times as fast as BLAS must oneDNN be: it is 2.3 times as fast or about as fast, so noise decides nothing
ROUNDS, ROWS = 7, 256
FEW_TOKENS = 256  # up to which torch's attention would ask oneDNN for many tiny products


def use(library: str, *models: nn.Module) -> None:
    """Multiply matrices by one of LIBRARIES in this process, and have models compute attention accordingly."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if (products.fp32_precision == LIBRARIES["onednn"]) != (library == "onednn"):  # else others may have set it
        products.fp32_precision = LIBRARIES[library]
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, Block | Int8Block):
            module.attend = F.scaled_dot_product_attention if library == "blas" else attend_by_onednn


def attend_by_onednn(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Return what `F.scaled_dot_product_attention` does, [B, H, T, K]; of few tokens by two large products."""
    if q_BHTK.shape[2] > FEW_TOKENS:
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK)
    weights_BHTT = torch.softmax(q_BHTK * q_BHTK.shape[-1] ** -0.5 @ k_BHTK.mT, dim=-1)
    return weights_BHTT @ v_BHTK


def pick(model: nn.Module, device: torch.device, dtype: torch.dtype, wanted: str | None = None) -> str:
    """Return one of LIBRARIES for a model: the wanted one or else the faster, if its products are exact on this CPU.

    Products with the model's largest linear layer decide, in some milliseconds: oneDNN must be GAIN times as fast. On
    other devices and in other number formats it is always DEFAULT.
    """
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [weight for weight in weights if weight.dtype == torch.float32]
    if device.type != "cpu" or dtype != torch.float32 or not weights or not is_exact("onednn"):
        return DEFAULT
    if wanted is not None:
        return wanted
    weight = max(weights, key=Tensor.numel)
    x = torch.randn(ROWS, weight.shape[1], generator=torch.Generator())  # not the process's random numbers
    threads, seconds = torch.get_num_threads(), dict[str, list[float]]()
    torch.set_num_threads(1)  # whose processor time other programs hardly change
    for library in [*LIBRARIES] * ROUNDS:
        use(library)
        start = time.thread_time()
        F.linear(x, weight)
        seconds.setdefault(library, []).append(time.thread_time() - start)
    use(DEFAULT)
    torch.set_num_threads(threads)
    return "onednn" if GAIN * min(seconds["onednn"]) < min(seconds["blas"]) else DEFAULT


def prepare(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Have a model compute with the faster library; returns it."""
    library = pick(model, device, dtype)
    use(library, model)
    return library


def is_exact(library: str) -> bool:
    """Whether a library's products have the error of float32 on this CPU, and not that of bf16."""
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    use(library)
    error = (a @ b - exact).norm() / exact.norm()
    use(DEFAULT)
    return float(error) < ROUNDING

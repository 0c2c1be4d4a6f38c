"""The table of precisions: how a graph gets its number format, and how closely it must agree with the release."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from joytag.core import files

if TYPE_CHECKING:
    from onnx import ModelProto

Convert = Callable[["ModelProto"], "ModelProto"]


class Precision(NamedTuple):
    """A number format: that of the traced model, and a conversion of its graph.

    An export is refused if less than `agreement` of the decisions are the release's, or if a score differs by more
    than `tolerance`. `needs_images`: only real images can tell.
    """

    dtype: torch.dtype
    agreement: float
    tolerance: float
    convert: Convert = lambda graph: graph
    needs_images: bool = False


def to_int8(graph: ModelProto) -> ModelProto:
    """Quantize the weights of matrix products to 8 bits, one scale for each channel; activations when it runs.

    Weights are from -64 to 64, as CPUs without VNNI add pairs of products in 16 bits. Convolutions, attention itself
    and products of one row an image, such as the head, keep float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    kept = [f"{node.name}_MatMul" for node in graph.graph.node if node.op_type == "Gemm"]  # as renamed
    add_pre_process_metadata(graph)  # tracing has folded the constants already; silences a warning
    with tempfile.TemporaryDirectory() as folder, files.naming(Path(folder)):
        path = Path(folder) / "int8.onnx"
        weights = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
        quantize_dynamic(graph, path, ["MatMul"], nodes_to_exclude=kept, **weights)
        return onnx.load(path)


WEBGPU = {"fp16": "fp16 on WebGPU needs a GPU with `shader-f16`.", "int8": "int8 gives wrong scores on WebGPU."}
PRECISIONS = {
    "fp32": Precision(torch.float32, agreement=1, tolerance=1e-4),
    "fp16": Precision(torch.float16, agreement=0.999, tolerance=0.05),
    "int8": Precision(torch.float32, agreement=0.995, tolerance=1, convert=to_int8, needs_images=True),
}

"""ONNX graphs of networks, traced by torch, for any number of images."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OPSET = 17  # what programs with an older onnxruntime still load
BATCH = "batch"  # the name of the axis of any size


class ConstantTables(TorchFunctionMode):
    """Context of tracing in which resized tables of positions, of backbones of timm, become constants.

    Opset 17 has no such resizing. Only parameters are resized so, never an image.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch; of a resizing with antialiasing, keep the values alone."""
        result = func(*args, **(kwargs or {}))
        is_table = func is nn.functional.interpolate and (kwargs or {}).get("antialias")
        return torch.from_numpy(result.numpy().copy()) if is_table else result


def trace(network: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str]) -> bytes:
    """Return the ONNX graph of a network in evaluation mode, which takes one batch and returns tensors, as a file.

    The first axis may then have any size, which `example` must not have as 1; the others have that of the example.
    """
    buffer, names = io.BytesIO(), list(output_names)
    with warnings.catch_warnings(), torch.no_grad(), ConstantTables():
        warnings.simplefilter("ignore")  # the tracer's, that the image's size becomes a constant, and its deprecation
        torch.onnx.export(
            network.eval(),
            (example,),
            buffer,  # type: ignore[arg-type]  # its type is that of the newer exporter
            dynamo=False,  # the newer exporter writes opset 18 at least
            opset_version=OPSET,
            input_names=[input_name],
            output_names=names,
            dynamic_axes={name: {0: BATCH} for name in (input_name, *names)},
        )
    return buffer.getvalue()

"""ONNX graphs of networks, traced by torch, for any number of images."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from joytag.core.errors import first_line

OPSET = 17  # what programs with an older onnxruntime still load
BATCH = "batch"  # the name of the axis of any size


class GraphError(ValueError):
    """A network that cannot be written as an ONNX graph of OPSET."""


class Substitutes(TorchFunctionMode):
    """Context of tracing that replaces what OPSET lacks and backbones of timm use.

    Resizing with antialiasing becomes a constant: tables of positions are resized so, never an image.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or its substitute."""
        options = dict(kwargs or {})
        if func is nn.functional.rms_norm:
            return _rms_norm(*args, **options)
        result = func(*args, **options)
        is_table = func is nn.functional.interpolate and options.get("antialias")
        return torch.from_numpy(result.numpy().copy()) if is_table else result


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Compute `nn.functional.rms_norm` over the last axes by elementary operators."""
    axes = list(range(-len(shape), 0))
    scaled = x * (x.square().mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return scaled if weight is None else scaled * weight


def trace(network: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str]) -> bytes:
    """Return the ONNX graph of a network in evaluation mode, which takes one batch and returns tensors, as a file.

    The first axis may then have any size, which `example` must not have as 1; the others have that of the example.
    Raises GraphError.
    """
    buffer, names = io.BytesIO(), list(output_names)
    with _explained(), warnings.catch_warnings(), torch.no_grad(), Substitutes():
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


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the exporter's errors into GraphError, without the graph that it prints before them."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except torch.onnx.errors.OnnxExporterError as error:
        raise GraphError(f"the model cannot be written as ONNX: {first_line(error)}") from None

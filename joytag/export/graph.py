"""The ONNX graph of a release in a layout: traced, given its final header, checked and labelled."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from joytag.data import images
from joytag.export.layouts import Layout, Row
from joytag.export.manifest import Input, Output
from joytag.models.architectures import Model, count_parameters

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET, IR_VERSION = 17, 8  # what programs with an older onnxruntime still load
MAX_BYTES = 2**31 - 2**20  # of one file of Protocol Buffers, less what is not weights
BATCH = "batch"  # the name of the axis of any size


class GraphError(ValueError):
    """A model that cannot be written as one ONNX file of the stated version."""


class Network(nn.Module):
    """A model from the input to the outputs of a layout. Inputs and outputs are float32 in any number format."""

    def __init__(
        self, model: Model, layout: Layout, rows: Sequence[Row], outputs: Sequence[Output], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.layout, self.holds, self.dtype = layout, [output.holds for output in outputs], dtype
        tags = model.config.n_tags
        order = [tags if row.output is None else row.output for row in rows]  # `tags`: a column of zeros
        self.order = None if order == list(range(tags)) else torch.tensor(order)

    def forward(self, images_in: Tensor) -> tuple[Tensor, ...]:
        """[N, ...] float images as the layout has them to its outputs, [N, size] each."""
        x = images_in.permute(0, 3, 1, 2) if self.layout.axes == "NHWC" else images_in
        if self.layout.channels == "BGR":
            x = x[:, [2, 1, 0]]
        if not self.layout.is_standardized:
            x = images.normalize(x)
        embedding = self.model.embed(x.to(self.dtype))
        logits = self.model.head(embedding).float()
        values = {"embedding": embedding.float(), "logits": logits, "scores": logits.sigmoid()}
        if self.order is not None:
            values["scores"] = nn.functional.pad(values["scores"], (0, 1))[:, self.order]
        return tuple(values[name] for name in self.holds)


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


def trace(
    model: Model, layout: Layout, rows: Sequence[Row], outputs: Sequence[Output], dtype: torch.dtype
) -> ModelProto:
    """Return the graph of a model in evaluation mode, in a number format, for a batch of any size.

    Raises GraphError when it does not fit into one file.
    """
    import onnx

    size = count_parameters(model) * dtype.itemsize
    if size > MAX_BYTES:
        raise GraphError(f"{size / 1e9:.1f} GB of weights: one ONNX file holds 2 GB; use precision fp16")
    side = model.config.image_size
    shape = (2, side, side, 3) if layout.axes == "NHWC" else (2, 3, side, side)  # with 1, axes could not be told apart
    network, buffer = Network(model, layout, rows, outputs, dtype).eval(), io.BytesIO()
    names = [output.name for output in outputs]
    with warnings.catch_warnings(), torch.no_grad(), ConstantTables():
        warnings.simplefilter("ignore")  # the tracer's, that the image's size becomes a constant, and its deprecation
        torch.onnx.export(
            network,
            (torch.rand(shape),),
            buffer,  # type: ignore[arg-type]  # its type is that of the newer exporter
            dynamo=False,  # the newer exporter writes opset 18 at least
            opset_version=OPSET,
            input_names=[layout.input],
            output_names=names,
            dynamic_axes={name: {0: BATCH} for name in (layout.input, *names)},
        )
    return onnx.load_model_from_string(buffer.getvalue())


def finish(graph: ModelProto, input_: Input, outputs: Sequence[Output]) -> None:
    """Give a graph its versions and the shapes of its input and outputs, then check it.

    Raises GraphError for another opset than OPSET, and for operators of another domain than ai.onnx.
    """
    import onnx

    graph.ir_version = IR_VERSION
    used = {node.domain for node in graph.graph.node}
    kept = [opset for opset in graph.opset_import if opset.domain in used | {""}]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)
    versions = {opset.domain: opset.version for opset in kept}
    if versions != {"": OPSET}:
        raise GraphError(f"the graph needs {versions}, not opset {OPSET} of ai.onnx alone")
    sides = [input_.side, input_.side]
    _set_shape(graph.graph.input[0], [*sides, 3] if input_.axes == "NHWC" else [3, *sides])
    for value, output in zip(graph.graph.output, outputs, strict=True):
        _set_shape(value, [output.size])
    onnx.checker.check_model(graph, full_check=True)


def label(graph: ModelProto, properties: Mapping[str, str]) -> None:
    """Replace a graph's metadata."""
    import onnx

    graph.producer_name, graph.producer_version = "joytag", properties["joytag"]
    onnx.helper.set_model_props(graph, dict(properties))


def _set_shape(value: ValueInfoProto, sizes: Sequence[int]) -> None:
    """Set the shape to [batch, *sizes]."""
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = BATCH
    for size in sizes:
        shape.dim.add().dim_value = size

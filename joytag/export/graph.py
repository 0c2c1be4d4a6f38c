"""The ONNX graph of a release in a layout: traced, given its final header, checked and labelled."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from joytag.data import preprocessing
from joytag.export.layouts import Layout, Row
from joytag.export.manifest import Input, Output
from joytag.models import onnx_graph
from joytag.models.architectures import Model, count_parameters
from joytag.models.onnx_graph import GraphError

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

IR_VERSION = 8  # what programs with an older onnxruntime still load
MAX_BYTES = 2**31 - 2**20  # of one file of Protocol Buffers, less what is not weights


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
            x = preprocessing.normalize(x)
        embedding = self.model.embed(x.to(self.dtype))
        logits = self.model.head(embedding).float()
        values = {"embedding": embedding.float(), "logits": logits, "scores": logits.sigmoid()}
        if self.order is not None:
            values["scores"] = nn.functional.pad(values["scores"], (0, 1))[:, self.order]
        return tuple(values[name] for name in self.holds)


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
    shape = (2, side, side, 3) if layout.axes == "NHWC" else (2, 3, side, side)
    network = Network(model, layout, rows, outputs, dtype)
    graph = onnx_graph.trace(network, torch.rand(shape), layout.input, [output.name for output in outputs])
    return onnx.load_model_from_string(graph)


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
    if versions != {"": onnx_graph.OPSET}:
        raise GraphError(f"the graph needs {versions}, not opset {onnx_graph.OPSET} of ai.onnx alone")
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
    shape.dim.add().dim_param = onnx_graph.BATCH
    for size in sizes:
        shape.dim.add().dim_value = size

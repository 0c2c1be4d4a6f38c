"""Small ONNX taggers in the WD layout."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADER = "tag_id,name,category,count\n"
RATINGS = "9999999,general,9,10\n9999998,sensitive,9,10\n"


def write_tags(directory: Path, names: list[str], ratings: str = RATINGS) -> None:
    """Write `selected_tags.csv`, ratings first, as in published taggers."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = "".join(f'{number},"{name}",0,{100 - number}\n' for number, name in enumerate(names))
    (directory / "selected_tags.csv").write_text(HEADER + ratings + rows, encoding="utf-8")


def write_model(
    directory: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: list[int | str],
    outputs: list[int | str],
    element: int = TensorProto.FLOAT,
) -> None:
    """Write `model.onnx`, nodes from `images` to `scores`."""
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("images", element, inputs)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")


def write_mean_colour(directory: Path, names: list[str], weights: np.ndarray, biases: np.ndarray, size: int) -> None:
    """Write a tagger that sees only the mean colour: sigmoid(mean BGR, 0 to 255, times `weights` + `biases`).

    `weights` [3, ratings + names] and `biases` are float32.
    """
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "biases"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    constants = {"axes": np.array([1, 2]), "weights": weights, "biases": biases}
    write_model(directory, nodes, constants, ["batch", size, size, 3], ["batch", weights.shape[1]])
    write_tags(directory, names)


def write_copier(directory: Path, size: int, batch: int | str = "batch") -> None:
    """Write a tagger whose scores are its input divided by 255; the first two are ratings."""
    n = size * size * 3
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("Div", ["flat", "most"], ["scores"]),
    ]
    constants = {"shape": np.array([-1, n]), "most": np.array(255, dtype=np.float32)}
    write_model(directory, nodes, constants, [batch, size, size, 3], [batch, n])
    write_tags(directory, [f"number {i}" for i in range(2, n)])


def write_flattener(
    directory: Path, inputs: list[int | str], outputs: list[int | str], element: int = TensorProto.FLOAT
) -> None:
    """Write a model, without a table of tags, that returns its input flattened to one row for each image."""
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["scores"], to=TensorProto.FLOAT),
    ]
    write_model(directory, nodes, {"shape": np.array([0, -1])}, inputs, outputs, element)

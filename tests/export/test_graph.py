"""The ONNX graph: every architecture family computes what torch computes, in a file that old programs read."""

from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from joytag.export import graph
from joytag.export.layouts import LAYOUTS
from joytag.export.source import Source, Tag
from joytag.export.verification import encode, open_session
from joytag.models import onnx_graph
from joytag.models.architectures import Config, Model
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViTConfig

SMALL: dict[str, Any] = dict(
    n_tags=7, image_size=32, num_blocks=2, patch_size=4, d_model=16, mlp_dim=32, num_heads=2, cnn_stem=None
)
FAMILIES: dict[str, Config] = {
    "plain patches": ViTConfig(**SMALL),
    "learned positions": ViTConfig(**SMALL | {"use_sine": False}),
    "mean after the head": ViTConfig(**SMALL | {"head_mean_after": True, "patch_dropout": 0.5}),
    "stem of the release": ViTConfig(
        **SMALL | {"cnn_stem": "conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16,s=1,k=1,p=0"}
    ),
    "stem of all layers": ViTConfig(**SMALL | {"cnn_stem": "conv:c=8,k=5,p=2;bn;gelu;conv:c=16;ln;relu"}),
    **{name: TimmConfig(7, name, 64) for name in ("test_vit", "test_resnet", "test_convnext")},
}


def build(config: Config) -> Model:
    """A model whose statistics and layer scales are not those of the start."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def source(model: Model, directory: Any = None) -> Source:
    tags = [Tag(f"tag_{i}", (0, 3, 4)[i % 3], 10 - i, 0.4) for i in range(model.config.n_tags)]
    return Source(directory, model, tags, {}, None)


def convert(model: Model, layout: str = "joytag", embedding: bool = True, dtype=torch.float32) -> onnx.ModelProto:
    its = source(model)
    rows, _ = LAYOUTS[layout].rows(its.tags)
    outputs = LAYOUTS[layout].describe_outputs(its, rows, embedding)
    result = graph.trace(model, LAYOUTS[layout], rows, outputs, dtype)
    graph.finish(result, LAYOUTS[layout].describe_input(its.size), outputs)
    return result


def check(model: Model) -> None:
    """Compare logits and embeddings with torch's at batches of 1, 2 and 5."""
    result = convert(model)
    session = open_session(result.SerializeToString())
    assert [output.name for output in session.get_outputs()] == ["logits", "embedding"]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, model.config.image_size, model.config.image_size)
        logits, embedding = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(x), atol=1e-4)
            np.testing.assert_allclose(embedding, model.embed(x), atol=1e-4, rtol=1e-5)  # some exceed 100


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_torch_computes_at_any_batch(name):
    check(build(FAMILIES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*timm.list_models("test_*"), "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_more_backbones_compute_what_torch_computes(name):
    try:
        config = TimmConfig(7, name, 160)
        model = build(config)
    except ValueError as error:
        pytest.skip(str(error))
    check(model)


def test_rms_norm_is_written_out():
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(4, 5)
    options: list[tuple[torch.Tensor | None, float | None]] = [(None, None), (weight, 0.1)]
    for scale, eps in options:
        expected = nn.functional.rms_norm(x, [4, 5], scale, eps)
        with onnx_graph.Substitutes():
            torch.testing.assert_close(nn.functional.rms_norm(x, [4, 5], scale, eps), expected)


def test_an_operator_without_a_counterpart_is_named_in_one_line(capsys):
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(graph.GraphError, match=r"^the model cannot be written as ONNX: .*linalg_eigvals.*$"):
        onnx_graph.trace(Inverse(), torch.rand(2, 3, 3), "x", ["y"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_is_one_that_old_programs_read(layout):
    model = build(FAMILIES["stem of the release"])
    result = convert(model, layout, embedding=False)
    onnx.checker.check_model(result, full_check=True)
    assert result.ir_version == 8
    assert [(opset.domain, opset.version) for opset in result.opset_import] == [("", 17)]
    assert {node.domain for node in result.graph.node} == {""}
    assert not any(tensor.external_data for tensor in result.graph.initializer)
    values = [*result.graph.input, *result.graph.output]
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    image = ["batch", 32, 32, 3] if layout == "wd" else ["batch", 3, 32, 32]
    size = {"wd": 11}.get(layout, 7)
    expected = {
        name: ["batch", 16 if holds == "embedding" else size] for name, holds in LAYOUTS[layout].outputs.items()
    }
    assert shapes == {LAYOUTS[layout].input: image, **expected}


def test_ratings_that_the_model_lacks_are_exactly_zero():
    model = build(FAMILIES["plain patches"])
    session = open_session(convert(model, "wd", embedding=False).SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    [scores] = session.run(None, {"input": encode(LAYOUTS["wd"], images)})
    assert (scores[:, :4] == 0).all()
    assert (scores[:, 4:] > 0).all()


def test_half_precision_keeps_float_inputs_and_outputs():
    model = build(FAMILIES["stem of the release"])
    session = open_session(convert(model, dtype=torch.float16).SerializeToString())
    x = torch.randn(3, 3, 32, 32)
    logits, _ = session.run(None, {"input": x.numpy()})
    assert logits.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(x), atol=0.05)
        assert not np.array_equal(logits, model(x)), "weights have 16 bits"
    assert next(model.parameters()).dtype == torch.float32, "the model itself is unchanged"


def test_a_model_beyond_the_limit_of_a_file_is_refused(monkeypatch):
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(graph.GraphError, match="use precision fp16"):
        convert(build(FAMILIES["plain patches"]))

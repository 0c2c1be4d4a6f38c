"""The models: outputs of the released definition, published counts, variants, the stem's grammar, timm's backbones."""

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from paths import TINY
from timm.layers import DropPath
from torch import nn

from joytag.benchmarks.baselines import EagerViT
from joytag.models import release, stem
from joytag.models.architectures import count_parameters, training_flop
from joytag.models.stem import parse_stem
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import Block, ViT, ViTConfig, add_branch, drop_tokens

STEM = "conv:c=8;ln;relu;conv:c=16,s=1;bn;gelu;conv:c=24;ln;relu;conv:c=16,s=1,k=1,p=0"


def small(**changes) -> ViTConfig:
    values: dict[str, Any] = dict(
        n_tags=7, image_size=16, num_blocks=2, patch_size=4, d_model=16, mlp_dim=32, num_heads=2, cnn_stem=STEM
    )
    return ViTConfig(**(values | changes))


@pytest.mark.parametrize("size", [64, 96])
def test_release_loads_without_mapping_and_reproduces_the_published_outputs(size):
    model, _ = release.load(TINY)
    expected = np.load(TINY / "expected.npz")
    images = torch.from_numpy(expected[f"input_{size}"])
    with torch.inference_mode():
        np.testing.assert_allclose(model(images), expected[f"logits_{size}"], atol=1e-5)
        np.testing.assert_allclose(model.embed(images), expected[f"embeddings_{size}"], atol=1e-5)


def test_full_size_has_the_published_parameters_and_cost():
    config = ViTConfig(n_tags=5813)
    with torch.device("meta"):
        model = ViT(config)
    assert count_parameters(model) == 91_491_509
    assert len(model.state_dict()) == 190
    assert training_flop(config, 224) == pytest.approx(109e9, rel=0.02)
    assert training_flop(config, 448) == pytest.approx(487e9, rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cnn_stem": None}, {"use_sine": False}, {"head_mean_after": True}, {"patch_dropout": 0.5}],
    ids=str,
)
def test_variants_learn(changes):
    model = ViT(small(**changes))
    logits = model(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_mean_after_head_equals_head_after_mean():
    first, second = ViT(small()).eval(), ViT(small(head_mean_after=True)).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(first(images), second(images))


@pytest.mark.parametrize("size", [64, 96])
def test_evidence_sums_to_the_published_logits(size):
    model, tags = release.load(TINY)
    assert isinstance(model, ViT)
    expected = np.load(TINY / "expected.npz")
    images = torch.from_numpy(expected[f"input_{size}"])
    with torch.inference_mode():
        evidence = model.evidence(images, range(len(tags)))
    assert evidence.shape == (len(images), len(tags), size // 16, size // 16)
    np.testing.assert_allclose(evidence.sum(dim=(2, 3)), expected[f"logits_{size}"], atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"head_mean_after": True}, {"cnn_stem": None}], ids=str)
def test_evidence_is_the_heads_output_for_each_patch(changes):
    """Written out patch by patch, for an image that is not square."""
    model, images = ViT(small(**changes)).eval(), torch.randn(2, 3, 12, 20)
    tokens, evidence = model.tokens(images), model.evidence(images, [5, 2])
    weight, bias = model.head.weight, model.head.bias
    assert evidence.shape == (2, 2, 3, 5)
    for image, place, row, column in np.ndindex(2, 2, 3, 5):
        tag = [5, 2][place]
        patch = weight[tag] @ tokens[image, 5 * row + column] + bias[tag]
        torch.testing.assert_close(evidence[image, place, row, column], patch / 15)
    torch.testing.assert_close(evidence.sum(dim=(2, 3)), model(images)[:, [5, 2]])


def test_plain_patches_equal_unfolded_linear_projection():
    model = ViT(small(cnn_stem=None)).eval()
    images = torch.randn(2, 3, 16, 16)
    patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
    projection = model.patch_embeddings
    assert isinstance(projection, torch.nn.Conv2d)
    expected = torch.nn.functional.linear(patches, projection.weight.flatten(1), projection.bias)
    torch.testing.assert_close(projection(images).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_acts_per_sample_and_only_in_training():
    model = ViT(small(stochdepth_rate=0.5))
    image = torch.randn(1, 3, 16, 16).expand(16, -1, -1, -1)
    assert len(model(image).unique(dim=0)) > 1
    torch.testing.assert_close(*model.eval()(image[:2]).split(1))


def test_stochastic_depth_acts_after_attention_inside_the_mlp_and_after_it():
    """Written out for one block: each of the three is dropped per sample and rescaled."""
    block = Block(small(stochdepth_rate=0.25)).train()
    x, noise = torch.randn(8, 4, 16), (torch.arange(8) >> torch.arange(3)[:, None] & 1).float()
    first, inner, last = (noise >= 0.25).view(3, 8, 1, 1) / 0.75
    expected = x + first * block.attention(block.norm1(x)) * block.skip_init1.skip
    hidden = inner * torch.nn.functional.gelu(block.mlp.linear1(block.norm2(expected)))
    expected = expected + last * block.mlp.linear2(hidden) * block.skip_init2.skip
    torch.testing.assert_close(block(x, *noise), expected)


@pytest.mark.parametrize(("blocks", "scale"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_the_number_of_blocks_chooses_the_layer_scale(blocks, scale):
    block = Block(small(num_blocks=blocks))
    for layer in (block.skip_init1, block.skip_init2):
        torch.testing.assert_close(layer.skip, torch.full((16,), scale))


def test_evaluation_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("drawn"))
    model, image = ViT(small(stochdepth_rate=0.5)).eval(), torch.zeros(1, 3, 16, 16)
    model(image)
    with pytest.raises(pytest.fail.Exception, match="drawn"):
        model.train()(image)


def test_torch_exports_the_model_for_any_batch_and_image_size():
    model = ViT(small()).eval()
    batch, rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "rows", "columns"))
    dynamic = {"images_BCYX": {0: batch, 2: 4 * rows, 3: 4 * columns}, "noise_BS": None}
    exported = torch.export.export(model, (torch.randn(3, 3, 16, 20), None), dynamic_shapes=dynamic).module()
    for shape in ((2, 3, 16, 20), (5, 3, 24, 16)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(exported(images, None), model(images))


@pytest.mark.parametrize("noise", [[0.9, 0.9, 0.9], [0.9, 0.1, 0.5], [0.1, 0.0, 0.2]], ids=["none", "some", "all"])
@pytest.mark.parametrize("bias", [False, True])
def test_dropped_branches_are_not_computed_and_change_no_gradient(noise, bias):
    layer, x = nn.Linear(4, 4), torch.randn(3, 2, 4)
    base = torch.randn(4) if bias else torch.randn(3, 2, 4)
    leaves = [base, x, layer.weight, layer.bias]
    seen, gradients = [], []

    def branch(x):
        seen.append(len(x))
        return layer(x)

    kept = (torch.tensor(noise) >= 0.25).float()
    for ours in (True, False):
        for leaf in leaves:
            leaf.requires_grad_(True).grad = None
        if ours:
            result = add_branch(base, 0.25, torch.tensor(noise), branch, x)
        else:
            torch.testing.assert_close(result, base + layer(x) * kept.view(-1, 1, 1) / 0.75)
            result = base + layer(x) * kept.view(-1, 1, 1) / 0.75
        (result * torch.arange(24).view(3, 2, 4)).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients)
    assert seen == [int(kept.sum())]


def test_the_benchmarks_reference_is_the_same_model():
    config = small(layerscale_init=0.1, cnn_stem="conv:c=8;ln;relu;conv:c=16,s=2,p=1")
    ours, theirs = ViT(config).eval(), EagerViT(config).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images))


def test_the_stated_fraction_of_tokens_is_dropped():
    x = torch.arange(40.0).view(1, 20, 2).expand(3, -1, -1)
    kept = drop_tokens(x, 0.25)
    assert kept.shape == (3, 15, 2)
    assert all(len(row.unique(dim=0)) == 15 for row in kept)


def test_a_new_stem_layer_is_one_row_of_the_table(monkeypatch):
    monkeypatch.setitem(stem.ITEMS, "pool", stem.Item(lambda _, s: torch.nn.MaxPool2d(s), {"s": 2}))
    config = small(cnn_stem="conv:c=16;pool")
    assert config.build()(torch.randn(1, 3, 16, 16)).shape == (1, 7)


def test_a_reference_can_replace_layers_of_the_stem():
    items = {**stem.ITEMS, "gelu": stem.Item(lambda _: torch.nn.SiLU())}
    layers = stem.build_stem("conv:c=4;ln;gelu;conv:c=8", items)
    assert [type(layer).__name__ for layer in layers] == ["Conv2d", "ChannelNorm", "SiLU", "Conv2d"]
    assert layers[3].in_channels == 4


def test_a_stem_is_parsed_by_its_grammar():
    assert parse_stem("conv:c=8,k=5;ln;relu") == [("conv", {"k": 5, "s": 2, "p": 1, "c": 8}), ("ln", {}), ("relu", {})]
    for wrong in ("conv:k=3", "conv:c=x", "conv:c=8,q=1", "relu:c=1", "tanh", ""):
        with pytest.raises(ValueError, match="cnn_stem"):
            parse_stem(wrong)


STEMS_THAT_CANNOT_BE_BUILT = (
    "conv:c=0;conv:c=16",
    "conv:c=-8;conv:c=16",
    "conv:c=8,s=-2;conv:c=16,s=-2",
    "conv:c=8,k=0;conv:c=16",
    "conv:c=8,p=99;conv:c=16",
    "conv:c=8,k=99999999999999999999;conv:c=16",
)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"image_size": 18}, "image_size"),
        ({"stochdepth_rate": 1.0}, "stochdepth_rate"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"patch_size": 8}, "cnn_stem"),
        ({"d_model": 20, "num_heads": 2}, "cnn_stem"),
        *(({"cnn_stem": stem}, "cnn_stem") for stem in STEMS_THAT_CANNOT_BE_BUILT),
    ],
)
def test_impossible_configs_name_the_field(changes, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        small(**changes)


def test_wrong_image_sizes_are_refused():
    with pytest.raises(ValueError, match="patch size"):
        ViT(small())(torch.randn(1, 3, 18, 16))
    with pytest.raises(ValueError, match="learned positions"):
        ViT(small(use_sine=False))(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_byobnet", "test_efficientnet"])
def test_a_timm_backbone_gives_timms_features_to_our_head(name):
    model = TimmConfig(n_tags=5, timm=name, image_size=64, stochdepth_rate=0.0).build().eval()
    options: dict[str, Any] = {"dynamic_img_size": True} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(model.backbone.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = theirs(images)
        torch.testing.assert_close(model.embed(images), features)
        torch.testing.assert_close(model(images), features @ model.head.weight.T + model.head.bias)
        assert model(torch.randn(1, 3, 96, 96)).shape == (1, 5), "other image sizes"


def test_stochastic_depth_of_a_backbone_is_its_drop_path_rate():
    for rate in (0.0, 0.3):
        modules = TimmConfig(5, "test_vit", 64, rate).build().modules()
        rates = [module.drop_prob for module in modules if isinstance(module, DropPath)]
        assert max(rates, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timm": "resnet5"}, "timm: 'resnet5' is not a model of timm; nearest: resnet50"),
        ({"timm": "hf-hub:someone/model"}, "timm: 'hf-hub:someone/model' is not a model of timm"),
        ({"n_tags": 0}, "n_tags: 0 is not positive"),
        ({"image_size": 10**6}, "image_size: 1000000"),
        ({"stochdepth_rate": 1.0}, "stochdepth_rate: 1.0"),
    ],
)
def test_an_impossible_backbone_names_the_field(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        TimmConfig(**{"n_tags": 5, "timm": "test_vit"} | values)


def test_a_backbone_refuses_image_sizes_that_it_does_not_accept():
    with pytest.raises(ValueError, match="image_size: test_vit does not accept images of 65 pixels"):
        TimmConfig(5, "test_vit", 65).build()

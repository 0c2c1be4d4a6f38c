"""The release directory: the fixture, a second definition of the network, and all errors."""

import dataclasses
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import TINY
from plain_vit import OPTIONAL_KEYS, REQUIRED_KEYS, defined, expected_shapes, read_strictly
from safetensors.torch import load_file, save_file

from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT, ViTConfig

STEM = "conv:c=8;ln;relu;conv:c=12,k=5,p=2;bn;gelu;conv:c=16,s=1,k=1,p=0"
TAGS = [f"tag_{i}" for i in range(7)]
BASE = dict(n_tags=7, image_size=16, num_blocks=2, patch_size=4, d_model=16, mlp_dim=24, num_heads=2, cnn_stem=STEM)
FAMILY: list[dict] = [
    {},
    {"use_sine": False},
    {"cnn_stem": None},
    {"cnn_stem": None, "use_sine": False, "head_mean_after": True},
    {"cnn_stem": "conv:c=6,k=7,p=3;bn;relu;conv:c=16,k=3;ln;gelu"},
    {"layerscale_init": 0.5, "patch_dropout": 0.3, "stochdepth_rate": 0.2},
]


def model_of(changes: dict) -> ViT:
    """Return a model in which every number, including BatchNorm's statistics, differs from its initial value."""
    torch.manual_seed(0)
    model = ViT(ViTConfig(**(BASE | changes))).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value) if "var" in name else 0.1 * torch.randn_like(value)
    return model


@pytest.mark.parametrize("size", [64, 96])
def test_the_second_definition_reproduces_the_published_outputs(size):
    config, state = json.loads((TINY / "config.json").read_text()), load_file(TINY / "model.safetensors")
    expected = np.load(TINY / "expected.npz")
    logits = defined(config, state, torch.from_numpy(expected[f"input_{size}"]))
    np.testing.assert_allclose(logits, expected[f"logits_{size}"], atol=1e-5)


@pytest.mark.parametrize("changes", FAMILY, ids=str)
def test_every_variant_survives_writing_and_reading(tmp_path, changes):
    model = model_of(changes)
    release.save(tmp_path, model, TAGS, "focal2")
    config, state = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    images = torch.randn(3, 3, 16, 16)
    loaded, tags = release.load(tmp_path)
    assert tags == TAGS
    assert loaded.config == dataclasses.replace(model.config, patch_dropout=0.0)
    assert not loaded.training
    with torch.inference_mode():
        logits = loaded(images)
        torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
        torch.testing.assert_close(logits, defined(config, state, images), rtol=0, atol=1e-5)


def test_a_written_release_has_the_published_layout(tmp_path):
    model, tags = release.load(TINY)
    release.save(tmp_path, model, tags, "focal2")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(release.FILES)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((TINY / "config.json").read_text())
    assert (tmp_path / "top_tags.txt").read_bytes() == (TINY / "top_tags.txt").read_bytes()
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def test_a_written_config_has_no_key_that_breaks_loaders(tmp_path):
    for changes in FAMILY:
        release.save(tmp_path, model_of(changes), TAGS, "focal2")
        keys = json.loads((tmp_path / "config.json").read_text()).keys()
        assert REQUIRED_KEYS <= keys <= REQUIRED_KEYS | OPTIONAL_KEYS
        types = {value.dtype for value in load_file(tmp_path / "model.safetensors").values()}
        assert types <= {torch.float32, torch.int64}
    assert (tmp_path / "top_tags.txt").read_text() == "\n".join(TAGS)


def test_the_nine_extra_rows_of_very_old_heads_are_removed(tmp_path):
    model = model_of({})
    release.save(tmp_path, model, TAGS, "focal2")
    state = load_file(tmp_path / "model.safetensors")
    state["head.weight"] = torch.cat([state["head.weight"], torch.randn(9, 16)])
    state["head.bias"] = torch.cat([state["head.bias"], torch.randn(9)])
    save_file(state, tmp_path / "model.safetensors")
    loaded, _ = release.load(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)


LEARNED: list[dict] = [  # positions, with every kind of stem that the original has
    {"cnn_stem": None},
    {"cnn_stem": "conv:c=8;ln;relu;conv:c=16;ln;gelu;conv:c=16,s=1,k=1,p=0", "head_mean_after": True},
]


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_the_originals_loader_reads_a_release_with_learned_positions(tmp_path, changes):
    model = model_of(changes | {"use_sine": False})
    release.save(tmp_path, model, TAGS, "focal2")
    config, state = read_strictly(tmp_path)
    assert state["pos_embedding.position_ids"].tolist() == [list(range(16))]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(defined(config, state, images), model(images), rtol=0, atol=1e-5)


def original_release(directory: Path, changes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """Write a release as the original does, with learned positions and random weights; returns config and tensors."""
    config = BASE | {"use_sine": False, "stochdepth_rate": 0.1} | changes
    state = {name: 0.3 * torch.randn(shape) for name, shape in expected_shapes(config).items()}
    state["pos_embedding.position_ids"] = torch.arange(16).unsqueeze(0)
    (directory / "config.json").write_text(json.dumps({"class": "ViT", "loss_type": "focal2", **config}))
    (directory / "top_tags.txt").write_text("\n".join(TAGS))
    save_file(state, directory / "model.safetensors")
    return config, state


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_a_release_of_the_original_with_learned_positions_is_read(tmp_path, changes):
    config, state = original_release(tmp_path, changes)
    model, _ = release.load(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), defined(config, state, images), rtol=0, atol=1e-4)
    save_file(state | {"pos_embedding.position_ids": torch.arange(16).flip(0).unsqueeze(0)}, tmp_path / release.WEIGHTS)
    with pytest.raises(release.ReleaseError, match="position_ids does not number the positions in order"):
        release.load(tmp_path)


def test_a_release_of_an_older_version_without_position_ids_is_read(tmp_path):
    _, state = original_release(tmp_path, LEARNED[0])
    before, _ = release.load(tmp_path)
    del state["pos_embedding.position_ids"]
    save_file(state, tmp_path / release.WEIGHTS)
    after, _ = release.load(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(after(images), before(images))


@pytest.mark.parametrize("old_outputs", [0, 9])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_directory_of_the_originals_trainer_is_read(tmp_path, prefix, old_outputs):
    """It has `use_amp` in config.json, a bare state dict in model.pt and perhaps the outputs of very old heads."""
    config, state = original_release(tmp_path, LEARNED[1] | {"patch_dropout": 0.5})
    values = json.loads((tmp_path / "config.json").read_text()) | {"use_amp": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / release.WEIGHTS).unlink()
    longer = {n: torch.cat([v, torch.randn(old_outputs, *v.shape[1:])]) for n, v in state.items() if "head" in n}
    torch.save({prefix + name: value for name, value in (state | longer).items()}, tmp_path / "model.pt")
    model, tags = release.load(tmp_path)
    assert tags == TAGS
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), defined(config, state, images), rtol=0, atol=1e-4)
    release.save(tmp_path, model, tags, "focal2")
    assert "patch_dropout" not in read_strictly(tmp_path)[0], "existing loaders would drop tokens in evaluation"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("nested", [False, True])
def test_pickled_weights_are_read_as_weights_only(tmp_path, prefix, nested):
    model = model_of({})
    release.save(tmp_path, model, TAGS, "focal2")
    (tmp_path / "model.safetensors").unlink()
    state = {prefix + name: value.half() if "norm1" in name else value for name, value in model.state_dict().items()}
    torch.save({"model": state} if nested else state, tmp_path / "model.pt")
    loaded, _ = release.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.head.weight, model.head.weight)


class Hostile:
    """An object whose unpickling runs a command."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [(Hostile(), "more than weights"), ({"model": 3}, "no weights"), ([1, 2], "no weights"), (b"junk", "damaged")],
    ids=lambda value: type(value).__name__,
)
def test_hostile_pickles_are_refused(tmp_path, content, message):
    release.save(tmp_path, model_of({}), TAGS, "focal2")
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "model.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(release.ReleaseError, match=message) as error:
        release.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "model.pt" in str(error.value)


def tensors(change):
    """A change of the tensors in model.safetensors."""

    def rewrite(path: Path) -> None:
        state = load_file(path)
        change(state)
        save_file(state, path)

    return rewrite


def config(**changes):
    """A change of config.json's values."""

    def rewrite(path: Path) -> None:
        path = path.with_name("config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return rewrite


def content(name: str, data: bytes):
    """Other content of a file."""
    return lambda path: path.with_name(name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"model\.safetensors: missing"),
        (lambda path: path.with_name("config.json").unlink(), r"config\.json: missing"),
        (lambda path: path.with_name("top_tags.txt").unlink(), r"top_tags\.txt: missing"),
        (content("top_tags.txt", b"a\nb"), r"2 tags, but config\.json's n_tags is 7"),
        (content("top_tags.txt", b"a\na\nb\nc\nd\ne\nf"), "a: given twice"),
        (content("top_tags.txt", b"\xff\xfe\n"), "not UTF-8"),
        (content("config.json", b"{"), "not valid JSON"),
        (content("config.json", b"[" * 100_000), "not valid JSON"),
        (content("config.json", b'{"n_tags": 1' + b"0" * 5000 + b"}"), r"config\.json: not valid JSON"),
        (content("config.json", b" " * 20_000_000), "larger than"),
        (content("model.safetensors", b""), "damaged or cut short"),
        (content("model.safetensors", b"\xff" * 1000), "damaged or cut short"),
        (content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or cut short"),
        (tensors(lambda state: state.pop("norm.bias")), r"tensor norm\.bias is missing"),
        (tensors(lambda state: state.update(extra=torch.ones(1))), "tensor extra is unexpected"),
        (tensors(lambda state: state.update({"norm.bias": torch.ones(3)})), r"norm\.bias has shape \[3\]"),
        (tensors(lambda state: state["norm.bias"].fill_(torch.nan)), r"norm\.bias holds NaN"),
        (tensors(lambda state: state.update({"norm.bias": torch.full((16,), 1e300, dtype=torch.float64)})), "float32"),
        (tensors(lambda state: state.update({"head.bias": torch.tensor(1.0)})), r"head\.bias has shape \[\]"),
        (tensors(lambda state: state.update({"norm.bias": torch.ones(16, dtype=torch.int64)})), "torch.int64"),
        (tensors(lambda state: state.update({"head.weight": torch.ones(17, 16)})), r"head\.weight has shape"),
        (config(n_tags=8), "7 tags"),
        (config(num_blocks=3), "2 blocks, but config.json's num_blocks is 3"),
        (config(num_blocks=10**12), "num_blocks"),
        (config(num_blocks="2"), "num_blocks"),
        (config(num_heads=3), "num_heads: 3"),
        (config(image_size=2**40), "image_size"),
        (config(cnn_stem="conv:c=16,k=4,s=4,p=0,d=2"), "cnn_stem"),
        (config(cnn_stem="conv:c=99999999999,k=9999999,s=2;conv:c=16,s=2"), "cnn_stem"),
        (config(cnn_stem="conv:c=9999999,k=3,s=2;conv:c=16,s=2"), r"tensor patch_embeddings"),
        (config(momentum=0.9), "momentum: unknown key"),
        (config(use_sine="yes"), "use_sine"),
        (config(**{"class": "CNN"}), "class: not ViT or timm"),
        (config(**{"class": ["ViT"]}), "class: not ViT or timm"),
        (config(**{"class": "timm"}), "cnn_stem: unknown key"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value) if isinstance(value, str) else "",
)
def test_the_error_for_a_wrong_release_is_one_line_that_names_the_file(tmp_path, change, message):
    release.save(tmp_path, model_of({}), TAGS, "focal2")
    change(tmp_path / "model.safetensors")
    with pytest.raises(release.ReleaseError, match=message) as error:
        release.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_byobnet", "test_vit2"])
def test_a_release_of_a_timm_backbone_is_read_back_bit_identical(tmp_path, name):
    config = TimmConfig(7, name, 64)
    model = config.build()
    model(torch.randn(4, 3, 64, 64))  # for running statistics that are not the first ones
    release.save(tmp_path, model, TAGS, "focal2")
    loaded, tags = release.load(tmp_path)
    assert tags == TAGS
    assert loaded.config == config
    assert not loaded.training
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["class"] == "timm"
    assert values["timm"] == name
    (tmp_path / "config.json").write_text(json.dumps(values | {"timm": "hf-hub:someone/model"}))
    with pytest.raises(release.ReleaseError, match=r"config\.json: timm: .* is not a model of timm"):
        release.load(tmp_path)


def test_a_missing_key_is_named(tmp_path):
    release.save(tmp_path, model_of({}), TAGS, "focal2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "image_size"}))
    with pytest.raises(release.ReleaseError, match="image_size: missing"):
        release.load(tmp_path)


def test_a_release_is_located_on_disk_or_on_the_hub(tmp_path, monkeypatch):
    assert release.locate(str(TINY)) == TINY
    with pytest.raises(release.ReleaseError, match="is a file"):
        release.locate(TINY / "config.json")
    for nowhere in (tmp_path / "gone", "gone", "../a/b", "a/b/c", "-a/b"):
        with pytest.raises(release.ReleaseError, match=r"no such directory$"):
            release.locate(nowhere)

    requested = []

    def download(name: str, **_: object) -> str:
        requested.append(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert release.locate("someone/tagger") == tmp_path
    assert requested == ["someone/tagger"]


def test_the_error_for_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("network unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(release.ReleaseError, match="someone/tagger: no such directory, and the Hugging Face hub") as e:
        release.locate("someone/tagger")
    assert "\n" not in str(e.value)


def test_a_loaded_release_does_not_depend_on_its_file(tmp_path):
    release.save(tmp_path, model_of({}), TAGS, "focal2")
    model, _ = release.load(tmp_path)
    before = model.head.weight.clone()
    shutil.copyfile(TINY / "top_tags.txt", tmp_path / "model.safetensors")
    assert torch.equal(model.head.weight, before)

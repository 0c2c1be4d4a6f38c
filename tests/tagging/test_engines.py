"""Engines: the tags of torch, exported once, and torch where one cannot be used."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from commands import assert_one_line, succeeded
from paths import TINY

from joytag import Tagger
from joytag.models import onnx_graph, release
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging import engines
from joytag.tagging.engines import EngineError, pick_engine
from joytag.tagging.tagger import Result

CPU = torch.device("cpu")


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("JOYTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 70, 50, 3), dtype=np.uint8))


def by(engine: str, model: Path = TINY, precision: str = "fp32", **options) -> list[Result]:
    return list(Tagger.load(model, "cpu", precision, engine).stream(noise(7), **options))


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_every_engine_gives_the_tags_and_scores_of_torch(engine):
    for ours, theirs in zip(by(engine, batch_size=3, workers=2), by("torch"), strict=True):
        assert ours.tags.keys() == theirs.tags.keys()
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    assert Tagger.load(TINY, "cpu", "fp32", engine)(noise(1)[0]).tags
    assert f"fp32 on cpu by {engine}, batches of" in str(Tagger.load(TINY, "cpu", "auto", engine))


def test_a_model_is_exported_once_for_each_release(cached, tmp_path, monkeypatch):
    trace = Mock(side_effect=onnx_graph.trace)
    monkeypatch.setattr(onnx_graph, "trace", trace)
    by("onnxruntime")
    by("onnxruntime")
    assert trace.call_count == 1
    assert [re.fullmatch(r"[0-9a-f]{64}\.onnx", path.name) is not None for path in cached.iterdir()] == [True]
    model, tags = release.load(TINY)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    release.save(tmp_path / "other", model, tags, "focal2")
    by("onnxruntime", tmp_path / "other")
    assert trace.call_count == 2
    assert len(list(cached.iterdir())) == 2


def test_a_damaged_export_is_a_warning_and_is_written_again(cached):
    by("onnxruntime")
    [path] = cached.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="engine onnxruntime: .*; torch computes instead"):
        tagger = Tagger.load(TINY, "cpu", "fp32", "onnxruntime")
    assert " by " not in str(tagger)
    assert "onnxruntime" in str(Tagger.load(TINY, "cpu", "fp32", "onnxruntime"))


def test_an_engine_that_gives_other_scores_is_not_used(cached, monkeypatch):
    monkeypatch.setattr(engines.OnnxRuntime, "__call__", lambda _, pixels: np.full((1, 1), np.nan, dtype=np.float32))
    with pytest.warns(UserWarning, match=r"scores differ by up to nan from torch's; torch computes instead"):
        assert " by " not in str(Tagger.load(TINY, "cpu", "fp32", "onnxruntime"))


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JOYTAG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="torch computes instead"):
        assert by("onnxruntime")


def test_auto_is_an_engine_for_float32_on_a_cpu_alone(monkeypatch):
    assert pick_engine("auto", CPU, "fp32") == "onnxruntime"
    assert pick_engine("auto", CPU, "int8") == "torch"
    assert pick_engine("auto", torch.device("cuda", 0), "fp32") == "torch"
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    assert pick_engine("auto", CPU, "fp32") == "torch"


def test_an_engine_that_does_not_fit_is_refused(call, image_folder):
    with pytest.raises(EngineError, match="engine onnxruntime: computes on a CPU in fp32, not in int8 on cpu"):
        pick_engine("onnxruntime", CPU, "int8")
    with pytest.raises(EngineError, match="engine openvino: computes on a CPU in fp32 or bf16, not in fp16 on cuda:0"):
        pick_engine("openvino", torch.device("cuda", 0), "fp16")
    flags = ("--engine", "onnxruntime", "--precision", "bf16", "--device", "cpu")
    assert_one_line(call("tag", "--model", TINY, image_folder, *flags), "onnxruntime", "fp32")


def test_joytag_tag_names_the_engine(call, image_folder, cached):
    done = succeeded(call("tag", "--model", TINY, image_folder, "--device", "cpu", "--engine", "auto"))
    assert "fp32 on cpu by onnxruntime" in done.stdout
    done = succeeded(call("tag", "--model", TINY, image_folder, "--device", "cpu", "--overwrite"))
    assert " by " not in done.stdout


def test_a_model_that_cannot_be_exported_is_computed_by_torch(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "trace", Mock(side_effect=RuntimeError("no such operator\nin this opset")))
    sizes: dict[str, Any] = dict(n_tags=3, image_size=16, num_blocks=1, patch_size=8, d_model=8, mlp_dim=8, num_heads=1)
    release.save(tmp_path / "new", ViT(ViTConfig(cnn_stem=None, **sizes)), ["a", "b", "c"], "focal2")
    with pytest.warns(UserWarning, match="engine onnxruntime: no such operator; torch computes instead"):
        assert len(by("onnxruntime", tmp_path / "new")) == 7

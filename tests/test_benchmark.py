"""The benchmarks run on small things, and ours and the references do the same work."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from joytag import benchmark, plan, state
from joytag.config import RunSettings


@pytest.fixture
def copies() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 32, 3), dtype=np.uint8)) for _ in range(4)]


def test_our_steps_have_the_losses_of_the_reference(monkeypatch):
    """The whole step, clipping, decay, trust ratios and all; without chance, since the two draw differently."""
    model = {"num_blocks": 2, "d_model": 32, "mlp_dim": 64, "num_heads": 2, "stochdepth_rate": 0.0, "patch_size": 4,
             "layerscale_init": 0.1, "cnn_stem": "conv:c=8;ln;relu;conv:c=32"}  # fmt: skip

    def small(size: int, batch: int, device: str) -> state.Run:
        values = {"output": "unused", "data": {"directory": "unused"}, "batch_size": batch, "model": model,
                  "stages": [{"image_size": size, "samples": 10**8}]}  # fmt: skip
        dataset = benchmark.Stored.of([Path()] * 1000, n_tags=50)
        return state.Run(RunSettings.model_validate(values), dataset, torch.device(device), torch.float32)

    monkeypatch.setattr(benchmark, "_run", small)
    ours = list(islice(benchmark._our_steps(16, 8, "cpu"), 8))
    theirs = list(islice(benchmark._reference_steps(16, 8, "cpu"), 8))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < ours[0]


def test_the_loader_and_augmentation_are_compared(copies, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "SIZES", (8, 16))
    written = tmp_path / "figures.json"
    text = benchmark.training("loader", copies, "cpu", 8, 1, quick=True, json=written)
    assert text.count("Pillow, from JPEG") == text.count("Pillow, from WebP") == 2
    works = [figures["work"] for figures in json.loads(written.read_text())["comparisons"]]
    assert works == ["load 8 px", "load 8 px", "load 16 px", "load 16 px"]
    assert "torchvision" in benchmark.training("augment", copies, "cpu", 8, 1, quick=True, json=None)


def test_all_leaves_the_rates_that_a_plan_reckons_with(copies, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "SIZES", (8, 16))
    monkeypatch.setattr(plan, "RATES", tmp_path / "runs" / "rates.json")
    seconds = benchmark.side_by_side(lambda: None, lambda: None, 1)
    comparison = benchmark.Comparison("work", "another way", 8, "pictures", seconds)
    monkeypatch.setattr(benchmark, "step", lambda *arguments: (comparison, 0.01))
    monkeypatch.setattr(benchmark, "optimizer", lambda rounds: comparison)
    monkeypatch.setattr(benchmark, "training_flop", lambda config, size: 1000)
    text = benchmark.training("all", copies, "cpu", 8, 1, quick=True, json=None)
    rates = plan.read_rates()
    assert "1.0% apart" in text and str(plan.RATES) in text
    assert rates["loading"].keys() == {8, 16} and rates["workers"] == 0
    assert rates["flop"] == pytest.approx(1000 * 8 / seconds.ours[0])


def test_a_process_that_dies_is_noticed():
    with benchmark._Remote(dying) as remote, pytest.raises(ValueError, match="has died"):
        remote()
    assert not remote.process.is_alive()


def dying():
    raise SystemExit(1)
    yield 0.0


def test_stored_pictures_are_found_by_their_hashes(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(3)]
    posts = benchmark.Stored.of(files, n_tags=7).posts("train")
    assert [benchmark.Stored.of(files).image_path(hash.tobytes()) for hash in posts.hashes] == files
    assert posts.labels(np.arange(3), 7).shape == (3, 7)


def test_figures_are_those_of_scikit_learn():
    text = benchmark.measuring(pictures=300, tags=20, rounds=1)
    assert "300 pictures and 20 tags" in text
    assert float(text.rpartition(" ")[2]) < 1e-9

"""The benchmarks do the same work as their references."""

import dataclasses
import re

import pytest
from paths import TINY

from joytag.benchmarks import tagging
from joytag.models.vit import ViTConfig


def test_metrics_match_scikit_learn_in_the_benchmark():
    text = tagging.compare_metrics(n_images=300, tags=20, rounds=1)
    assert "300 images and 20 tags" in text
    assert float(text.rpartition(" ")[2]) < 1e-9


@pytest.mark.benchmarks
def test_tagging_is_compared_side_by_side(monkeypatch):
    small = ViTConfig(
        n_tags=20, image_size=32, num_blocks=1, patch_size=16, d_model=32, mlp_dim=32, num_heads=2, cnn_stem=None
    )
    monkeypatch.setattr(tagging, "ViTConfig", lambda n_tags: dataclasses.replace(small, n_tags=n_tags))
    text = tagging.compare_tagging(n_images=2, rounds=2, device="cpu", precision="fp32")
    assert re.search(r"fp32 on cpu +\d+\.\d+ +\d+\.\d+ \(median; .* 100.0000% 100.00%$", text)
    text = tagging.compare_tagging(n_images=2, rounds=1, device="cpu", precision="fp32", engine="all", model=TINY)
    rows = [line.split("  ")[1] for line in text.splitlines()[2:]]
    names = ["", " by onnxruntime", " by openvino", " by openvino"]
    assert rows == [f"{'bf16' if number == 3 else 'fp32'} on cpu{name}" for number, name in enumerate(names)]

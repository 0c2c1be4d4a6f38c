"""Reports to the byte, and pictures that can be looked at."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from joytag import report
from joytag.metrics import Counts, averages


@pytest.fixture
def counts():
    return Counts(tp=torch.tensor([1, 0, 9, 1]), fp=torch.tensor([1, 0, 1, 1]), fn=torch.tensor([1, 0, 2, 1]),
                  tn=torch.tensor([7, 10, 0, 7]))  # fmt: skip


def test_full_metrics_has_the_published_format(tmp_path, counts):
    path = tmp_path / "full-metrics.txt"
    report.write_full_metrics(path, ["b", "none", "1girl", "ö_(x)"], [5, 4, 3_097_226, 5], counts)
    assert path.read_bytes().decode() == (
        "Tag: 1girl (2) (cnt: 3097226)\nPrecision: 0.9000\nRecall: 0.8182\nF1: 0.8571\nTP: 9, TN: 0, FP: 1, FN: 2\n\n"
        "Tag: b (0) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: ö_(x) (3) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: none (1) (cnt: 4)\nPrecision: 0.0000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 10, FP: 0, FN: 0\n\n"
    )


def test_mean_f1_of_the_report_is_the_macro_average(tmp_path):
    generator = torch.Generator().manual_seed(0)
    many = Counts(*(torch.randint(0, 1000, (500,), generator=generator) for _ in range(4)))
    path = tmp_path / "full-metrics.txt"
    report.write_full_metrics(path, [f"tag_{i}" for i in range(500)], range(500), many)
    written = [float(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("F1")]
    assert written == sorted(written, reverse=True)
    assert np.mean(written) == pytest.approx(averages(many)["macro_f1"], abs=5e-5)


def test_metrics_json_holds_the_facts_and_the_averages(tmp_path, counts):
    report.write_metrics(tmp_path / "metrics.json", {"all": averages(counts)}, threshold=0.4)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["threshold"] == 0.4
    assert written["metrics"]["all"]["tags"] == 4


def test_contact_sheet_and_curves_are_pictures(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.new("RGB", (64, 64), (i * 30, 100, 100)) for i in range(7)]
    names = [f"tag_with_a_long_name_{i}" for i in range(30)]
    sheet = report.contact_sheet(pictures, rng.random((7, 30)) < 0.5, rng.random((7, 30)), names, 0.4, columns=4)
    assert sheet.width > sheet.height / 2
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"samples": 1, "loss": 2, "lr": 1}\n{"samples": 2, "val_micro_f1": 0.5, "val_macro_f1": 0.2}\n{"unfin'
    )
    report.plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 600

"""What is measured after fine-tuning, against the scores that an evaluation writes."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from joytag.data.dataset import Dataset
from joytag.evaluation import forgetting, metrics, runner
from joytag.evaluation.predictions import Predictions
from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViTConfig

TAGS = [f"tag_{i}" for i in range(6)]
VIT: dict[str, Any] = {"image_size": 16, "num_blocks": 1, "patch_size": 4, "d_model": 16, "mlp_dim": 32, "num_heads": 2}


def save(directory: Path, tags: list[str], timm: bool = False) -> Path:
    """Write a release with random weights, whose scores are on both sides of the threshold."""
    torch.manual_seed(tags.index("tag_0") if "tag_0" in tags else 9)
    config = TimmConfig(len(tags), "test_convnext", 32) if timm else ViTConfig(n_tags=len(tags), cnn_stem=None, **VIT)
    model = config.build()
    with torch.no_grad():
        model.head.weight.normal_(std=0.3)
    release.save(directory, model, tags, "focal2")
    return directory


@pytest.fixture
def releases(request, tmp_path) -> tuple[Path, Path]:
    """A release with the dataset's tags, and one with them in another order; of timm, if parametrized so."""
    timm = getattr(request, "param", False)
    return save(tmp_path / "before", TAGS, timm), save(tmp_path / "after", TAGS[::-1], timm)


@pytest.fixture
def own(dataset_directory, releases) -> Dataset:
    """The dataset that the first release was evaluated on."""
    dataset = Dataset.open(dataset_directory)
    runner.predict_release(releases[0] / "predictions", releases[0], dataset, "validation", device_name="cpu")
    return dataset


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d{3}", line)]


@pytest.mark.parametrize("releases", [False, True], ids=["vit", "timm"], indirect=True)
def test_old_tags_are_measured_as_an_evaluation_does(releases, own, tmp_path):
    before, after = releases
    line = forgetting.summary(before, after, own, 0.4, "cpu").splitlines()[0]
    assert f"on 12 validation images of {own.directory}" in line
    torch.manual_seed(0)
    model, tags = release.load(after)  # its old tags alone, as a release of the dataset's vocabulary
    order = [tags.index(tag) for tag in TAGS]
    alone = type(model.config)(**{**vars(model.config), "n_tags": 6}).build()
    alone.load_state_dict({n: v[order] if n.startswith("head.") else v for n, v in model.state_dict().items()})
    release.save(tmp_path / "alone", alone, TAGS, "focal2")
    runner.predict_release(tmp_path / "scores", tmp_path / "alone", own, "validation", device_name="cpu")
    expected = []
    for directory in (before / "predictions", tmp_path / "scores"):
        stored = Predictions.open(directory)
        counts = metrics.count(stored.labels, metrics.predicted(stored.scores, 0.4))
        expected.append(metrics.averages(counts)["micro_f1"])
    assert numbers(line) == pytest.approx(expected, abs=5e-4)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


def test_without_the_releases_dataset_the_measure_is_agreement(releases, dataset_directory):
    before, after = releases
    dataset = Dataset.open(dataset_directory)
    line = forgetting.summary(before, before, dataset, 0.4, "cpu")
    assert numbers(line) == [1.0]
    assert "on 62 of your images" in line
    assert numbers(forgetting.summary(before, after, dataset, 0.4, "cpu").splitlines()[0])[0] < 1


def test_no_agreement_is_reported_where_the_original_model_finds_no_tag(releases, dataset_directory):
    lines = forgetting.summary(releases[0], releases[1], Dataset.open(dataset_directory), 0.9999, "cpu")
    assert lines.splitlines()[0] == "old tags: not measured; the original model finds none on 62 of your images"


@pytest.mark.parametrize("damage", ["moved", "other tags", "truncated", "without images", "images removed"])
def test_an_unusable_dataset_counts_as_not_at_hand(releases, own, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(own.directory, copy)
    provenance = releases[0] / "predictions/provenance.json"
    provenance.write_text(provenance.read_text().replace(str(own.directory), str(copy)))
    assert forgetting.own_dataset(releases[0]) is not None
    if damage == "moved":
        copy.rename(tmp_path / "elsewhere")
    if damage == "other tags":
        (releases[0] / "top_tags.txt").write_text("\n".join(TAGS[::-1]))
    if damage == "truncated":
        (copy / "validation.parquet").write_bytes(b"PAR1")
    if damage == "without images":
        text = (copy / "dataset.json").read_text()
        (copy / "dataset.json").write_text(text.replace('"jpg"', '"none"'))
    if damage == "images removed":
        shutil.rmtree(copy / "images")
    assert forgetting.own_dataset(releases[0]) is None


def test_a_model_of_new_tags_alone_has_no_old_ones(releases, dataset_directory, tmp_path):
    before = save(tmp_path / "stranger", ["x", "y"])
    line = forgetting.summary(before, releases[0], Dataset.open(dataset_directory), 0.4, "cpu")
    assert re.fullmatch(r"new tags: macro F1 \d\.\d+ on 12 held-out images \(tag_0, .*, tag_4 \.\.\.\)", line)

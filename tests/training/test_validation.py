"""Validation during training: the logged loss and metrics."""

from pathlib import Path

import pytest
from training_runs import build_run

from joytag.core.signals import Interrupts
from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.data.preprocessing import normalize
from joytag.models import inference
from joytag.training.losses import asymmetric
from joytag.training.state import initial_state
from joytag.training.validation import validate


def test_validation_logs_defined_metrics_of_the_decodable_images(run_values, monkeypatch):
    run = build_run(run_values)
    state = initial_state(run)

    def validated() -> dict[str, float]:
        values = validate(state, run, Interrupts())
        assert values is not None
        return values

    names = {"val_loss", "val_micro_f1", "val_macro_f1", "val_macro_precision", "val_macro_recall", "val_map"}
    state.model.head.bias.data += 10
    assert validated().keys() == names
    state.model.head.bias.data -= 30
    silent = validated()
    assert silent.keys() == names - {"val_macro_precision"}, "no tag is ever predicted"
    assert silent["val_macro_f1"] == silent["val_macro_recall"] == 0
    gone = {run.dataset.posts("validation").hashes[row].tobytes() for row in range(4)}
    there, losses = Dataset.image_path, []
    for part in (range(4, 12), range(12)):
        batch = loader.ImageDataset(run.dataset, "validation", 8).__getitems__([(0, row) for row in part])
        assert isinstance(batch, loader.Batch)
        logits = inference.predict(state.model.eval(), batch.images, run.device, run.dtype)
        losses.append(128 * run.criterion(logits, batch.labels).item())
    assert silent["val_loss"] == pytest.approx(losses[1], rel=1e-5)
    monkeypatch.setattr(
        Dataset, "image_path", lambda self, hash: Path("gone.jpg") if hash in gone else there(self, hash)
    )
    with pytest.warns(UserWarning, match=r"gone\.jpg: no such file: left out, with 3 other images"):
        assert validated()["val_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_the_validation_loss_is_the_mean_over_the_split(run_values):
    run = build_run(run_values, loss={"name": "asymmetric", "multiplier": 3.0})
    state = initial_state(run)
    state.model.eval()
    batch = loader.ImageDataset(run.dataset, "validation", 8).__getitems__([(0, row) for row in range(12)])
    assert isinstance(batch, loader.Batch)
    expected = 3 * asymmetric(state.model(normalize(batch.images)), batch.labels)
    metrics = validate(state, run, Interrupts())
    assert metrics is not None
    assert metrics["val_loss"] == pytest.approx(expected.item(), rel=1e-5)

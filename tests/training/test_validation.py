"""Validation during training: the logged loss and metrics."""

from pathlib import Path

import pytest
import torch

from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.models import inference
from joytag.training import trainer, validation
from joytag.training.config import RunSettings

CPU, FLOAT = torch.device("cpu"), torch.float32


def test_validation_logs_defined_metrics_of_the_decodable_images(run_values, monkeypatch):
    config = RunSettings.model_validate(run_values)
    run = trainer.Run(config, Dataset.open(Path(config.data.directory)), CPU, FLOAT)
    state = trainer.initial_state(run)

    def validated() -> dict[str, float]:
        values = validation.validate(state, run, trainer.Interrupts())
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
        logits = inference.predict(state.model.eval(), batch.images, CPU, FLOAT)
        losses.append(128 * run.criterion(logits, batch.labels).item())
    assert silent["val_loss"] == pytest.approx(losses[1], rel=1e-5)
    monkeypatch.setattr(
        Dataset, "image_path", lambda self, hash: Path("gone.jpg") if hash in gone else there(self, hash)
    )
    with pytest.warns(UserWarning, match=r"gone\.jpg: no such file: left out, with 3 other images"):
        assert validated()["val_loss"] == pytest.approx(losses[0], rel=1e-5)

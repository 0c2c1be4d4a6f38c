"""Training runs in miniature, and what they leave behind."""

from pathlib import Path

import torch

from joytag.core import jsonl
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import TrainState


def open_run(config: RunSettings) -> Run:
    """Return a run on the CPU, in float32."""
    return Run(config, Dataset.open(Path(config.data.directory)), torch.device("cpu"), torch.float32)


def build_run(values: dict, **changes) -> Run:
    """Return a run on the CPU, in float32, with changed settings."""
    return open_run(RunSettings.model_validate(values | changes))


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    """Return a copy of a model's parameters and buffers."""
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Compare weights bit by bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def newest_checkpoint(run: Run) -> Path:
    """Return a run's newest checkpoint, which must exist."""
    path = checkpoint.newest(run.root)
    assert path is not None
    return path


def read_log(run: Run) -> list[dict]:
    """Return the lines of a run's log."""
    return jsonl.read(Path(run.config.output) / "log.jsonl")


def read_losses(run: Run) -> list[float]:
    """Return the training losses in a run's log."""
    return [line["loss"] for line in read_log(run) if "loss" in line]

"""Training runs in miniature, and what they leave behind."""

from pathlib import Path

import torch

from joytag.core import jsonl
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import TrainState


def miniature(output: Path, dataset: Path) -> dict:
    """Return run settings of a miniature of the recipe: two stages, of 13 and 10 steps of 8 samples."""
    return {
        "output": str(output),
        "data": {"directory": str(dataset), "workers": 0},
        "model": {
            "num_blocks": 2,
            "patch_size": 4,
            "d_model": 16,
            "mlp_dim": 32,
            "num_heads": 2,
            "stochdepth_rate": 0.2,
            "cnn_stem": "conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16,s=1,k=1,p=0",
        },
        "stages": [{"image_size": 8, "samples": 104}, {"image_size": 16, "samples": 80}],
        "batch_size": 8,
        "micro_batch": 4,
        "device": "cpu",
        "precision": "fp32",
        "every": {"log": 16, "evaluate": 48, "checkpoint": 16},
        "tracking": {"wandb": "disabled"},
    }


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

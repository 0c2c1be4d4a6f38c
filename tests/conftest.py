"""A tiny dataset and run settings that all tests share."""

import signal
from pathlib import Path

import pytest
import torch
from datasets import make_dataset

from joytag.core import signals
from joytag.training.config import RunSettings

IMAGES = {"train": 50, "validation": 12}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def handlers():
    """A run that ends with an exception leaves its signal handlers, since it ends its process."""
    before = {number: signal.getsignal(number) for number in signals.CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory) -> Path:
    """A dataset of coloured noise, in the real format: 50 images to train on, 12 to validate, 6 tags."""
    return make_dataset(tmp_path_factory.mktemp("dataset"), IMAGES)


@pytest.fixture
def run_values(dataset_directory, tmp_path) -> dict:
    """Run settings of a miniature of the recipe: two stages, 13 steps of 8, then 10."""
    return {
        "output": str(tmp_path / "run"),
        "data": {"directory": str(dataset_directory), "workers": 0},
        "model": {
            "num_blocks": 2, "patch_size": 4, "d_model": 16, "mlp_dim": 32, "num_heads": 2, "stochdepth_rate": 0.2,
            "cnn_stem": "conv:c=8;ln;relu;conv:c=16;ln;relu;conv:c=16,s=1,k=1,p=0",
        },
        "stages": [{"image_size": 8, "samples": 104}, {"image_size": 16, "samples": 80}],
        "batch_size": 8,
        "micro_batch": 4,
        "device": "cpu",
        "precision": "fp32",
        "every": {"log": 16, "evaluate": 48, "checkpoint": 16},
        "tracking": {"wandb": "disabled"},
    }  # fmt: skip


@pytest.fixture
def run_settings(run_values) -> RunSettings:
    return RunSettings.model_validate(run_values)

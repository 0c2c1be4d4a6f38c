"""A tiny dataset and run settings that all tests share."""

import hashlib
import io
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from joytag import interrupts, records
from joytag.config import RunSettings

N_TAGS = 6
PICTURES = {"train": 50, "validation": 12}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def handlers():
    """A run that ends with an exception leaves its signal handlers, since it ends its process."""
    before = {number: signal.getsignal(number) for number in interrupts.CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory) -> Path:
    """A dataset of coloured noise, in the real format: 50 pictures to train on, 12 to validate, 6 tags."""
    return make_dataset(tmp_path_factory.mktemp("dataset"), PICTURES)


def make_dataset(directory: Path, splits: dict[str, int]) -> Path:
    """Write a dataset with so many pictures in its splits."""
    rng = np.random.default_rng(0)
    counts = {}
    for split, pictures in splits.items():
        rows = []
        for number in range(pictures):
            tags = np.flatnonzero(rng.random(N_TAGS) < 0.4)
            colour = rng.integers(0, 255, 3)
            noise = (colour + rng.normal(0, 20, (20 + number % 3, 24, 3))).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, "JPEG", quality=95)
            sha256 = hashlib.sha256(buffer.getvalue()).digest()
            path = records.image_path(directory, sha256, "jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            rows.append((number, tags.tolist(), sha256, number % 2, number))
        columns = dict(zip(records.POSTS_SCHEMA.names, zip(*rows, strict=True), strict=True))
        records.write_table(pa.table({k: list(v) for k, v in columns.items()}), records.POSTS_SCHEMA,
                            directory / f"{split}.parquet")  # fmt: skip
        counts[split] = np.bincount([t for row in rows for t in row[1]], minlength=N_TAGS)
    table = {
        "index": list(range(N_TAGS)),
        "name": [f"tag_{i}" for i in range(N_TAGS)],
        "category": [0] * N_TAGS,
        "count": counts["train"] + counts["validation"],
        "count_train": counts["train"],
        "count_validation": counts["validation"],
        "count_by_source": [[0, 0]] * N_TAGS,
    }
    records.write_table(pa.table(table), records.TAGS_SCHEMA, directory / "tags.parquet")
    records.write_description(directory, {"sources": ["drawn", "photo"], "extension": "jpg"})
    return directory


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

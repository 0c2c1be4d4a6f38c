"""Directories with taggers of every kind, for comparisons."""

from pathlib import Path

import colours
import numpy as np
import pytest
import torch
import wd

from joytag.data.dataset import Dataset
from joytag.evaluation import contenders
from joytag.models import int8

IMAGES = 192  # in a split of the dataset

needs_int8 = pytest.mark.skipif(not int8.supported(), reason="needs an x86 CPU with AVX2")


def write_taggers(directory: Path) -> Path:
    """Write data/; checkpoints early/ and late/ of a model; copy/, which is late/ with negligible noise; and wd/."""
    colours.write_dataset(directory / "data", IMAGES)
    model = colours.train(directory / "data", {2: directory / "early", 150: directory / "late"})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    colours.save(directory / "copy", model)
    write_wd(directory / "wd", ["BLUE", "green", "scarlet", "light", "something else"])
    return directory


def predict_taggers(directory: Path) -> dict[str, Path]:
    """Predict with each tagger of `write_taggers`; returns the predictions directories by name."""
    taggers = contenders.open_taggers([directory / name for name in ("early", "late", "copy", "wd")], device="cpu")
    dataset = Dataset.open(directory / "data")
    return {t.name: contenders.predict(t, dataset, directory / "cache", "cpu").directory for t in taggers}


def write_wd(directory: Path, names: list[str]) -> None:
    """Write a tagger that knows the rules of the first four of `colours.NAMES`, in another order."""
    weights, biases = np.zeros((3, 7), dtype=np.float32), np.zeros(7, dtype=np.float32)
    weights[[0, 1, 2], [2, 3, 4]], biases[2:5] = 0.2, -150 * 0.2
    weights[:, 5], biases[5] = 0.1, -420 * 0.1
    wd.write_mean_colour(directory, names, weights, biases, size=8)

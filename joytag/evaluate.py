"""A model and batches to counts and metrics; the same code during training and after it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from joytag import data, distributed, image
from joytag.metrics import Counts


class Interrupted(Exception):
    """An evaluation was asked to stop."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision in `dtype` on a device; nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Logits, float32 [B, N] on the device, of uint8 [B, 3, S, S] pictures; their sigmoid are the scores."""
    with autocast(device, dtype):
        return model(image.normalize(images.to(device, non_blocking=True))).float()


def evaluate(
    model: nn.Module,
    pictures: data.Pictures,
    batch: int,
    workers: int,
    threshold: float,
    device: torch.device,
    dtype: torch.dtype,
    timeout: int = 600,
    stopping: Callable[[], bool] = lambda: False,
    seen: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
) -> Counts:
    """Count the decisions on every picture of a split once, over all processes, into [sources, tags] counts.

    Each process takes its share of the pictures, `batch` at a time; the counts are on the CPU. Pictures that cannot
    be decoded are left out, with a warning. The model is left in the mode, training or evaluation, that it was in.
    `stopping` is asked after each batch, in all processes as often; raises Interrupted when one says so. `seen` is
    called with each batch's logits and labels, on the device.
    """
    dataset = pictures.dataset
    where = device if device.type == "cuda" else torch.device("cpu")  # MPS cannot add up 64-bit integers
    counts = Counts.zeros(len(dataset.sources), len(dataset.tags), device=where)
    keys = data.evaluation_keys(len(pictures), batch, distributed.rank(), distributed.world_size())
    was_training = model.training
    model.eval()
    bad = []
    try:
        for loaded in data.batches(pictures, keys, workers, device.type == "cuda", timeout):
            bad += loaded.bad
            if len(loaded):
                logits = predict(model, loaded.images, device, dtype)
                seen(logits, loaded.labels.to(device))
                counts.add(logits.sigmoid().to(where), loaded.labels.to(where), loaded.sources.to(where), threshold)
            if stopping():
                raise Interrupted
    finally:
        model.train(was_training)
    if bad:
        warnings.warn(f"{bad[0][1]}: left out, with {len(bad) - 1} others of this process", stacklevel=2)
    return Counts(*(distributed.all_sum(count).cpu() for count in counts))

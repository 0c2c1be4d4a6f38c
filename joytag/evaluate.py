"""A model and batches to counts and metrics; the same code during training and after it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from joytag import data, distributed, image, records
from joytag.metrics import Counts, averages


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision in `dtype` on a device; nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Scores in [0, 1], float32 [B, N] on the device, of uint8 [B, 3, S, S] pictures."""
    with autocast(device, dtype):
        logits = model(image.normalize(images.to(device, non_blocking=True)))
    return logits.float().sigmoid()


def evaluate(
    model: nn.Module,
    batches: Iterable[data.Batch],
    dataset: records.Dataset,
    threshold: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Counts:
    """Count every picture's decisions once, over all processes, into [sources, tags] counts on the CPU.

    The model is left in the mode, training or evaluation, that it was in.
    """
    counts = Counts.zeros(len(dataset.sources), len(dataset.tags), device=device)
    was_training = model.training
    model.eval()
    for batch in batches:
        scores = predict(model, batch.images, device, dtype)
        counts.add(scores, batch.labels.to(device), batch.sources.to(device), threshold)
    model.train(was_training)
    return Counts(*(distributed.all_sum(count).cpu() for count in counts))


def evaluate_split(
    model: nn.Module,
    dataset: records.Dataset,
    split: str,
    size: int,
    batch: int,
    workers: int,
    threshold: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Counts:
    """Evaluate on all pictures of a split at an image size, this process taking its share of them."""
    pictures = data.Pictures(dataset, split, size)
    keys = data.evaluation_keys(len(pictures), batch, distributed.rank(), distributed.world_size())
    loaded = data.batches(pictures, keys, workers, pin=device.type == "cuda")
    return evaluate(model, loaded, dataset, threshold, device, dtype)


def summarize(counts: Counts, sources: list[str]) -> dict[str, dict[str, float]]:
    """Averages over all pictures, under `all`, and over each source's, of [sources, tags] counts."""
    return {"all": averages(counts.sum(0))} | {name: averages(counts[i]) for i, name in enumerate(sources)}

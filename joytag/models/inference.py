"""Predictions of a model on a device, in a number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from joytag.data.preprocessing import normalize


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context of mixed precision in `dtype`; without effect for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the logits, float32 [B, N] on the device, of uint8 [B, 3, S, S] images; scores are their sigmoid."""
    with autocast(device, dtype):
        return model(normalize(images.to(device, non_blocking=True))).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context of evaluation mode; restores the mode that the model was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

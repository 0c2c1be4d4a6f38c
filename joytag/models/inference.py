"""A model's scores in the number format of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from joytag.data.images import normalize


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Mixed precision in `dtype` on a device; nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Logits, float32 [B, N] on the device, of uint8 [B, 3, S, S] images; their sigmoid are the scores."""
    with autocast(device, dtype):
        return model(normalize(images.to(device, non_blocking=True))).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have the model in evaluation mode, and then in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

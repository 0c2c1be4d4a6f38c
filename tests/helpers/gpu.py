"""A make-believe GPU: its tensors have device, shape and dtype, but no numbers (torch's FakeTensorMode)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class GPU(FakeTensorMode):
    """Work on `DEVICE` is only imagined, that on the CPU is done. There is no backward pass.

    As on a GPU, tensors of several devices cannot be mixed. A number that the device would have to compute raises
    DataDependentOutputException, a shape that depends on its numbers DynamicOutputShapeException. `launched` are the
    operations on the device, `waits` those copies that would have the program wait for it.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.launched: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        here = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if here and not any(isinstance(tensor, FakeTensor) for tensor in given):
            return func(*args, **kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.launched.append(str(func))
        if func.overloadpacket in COPIES:
            asynchronous = kwargs.get("non_blocking") or True in args[2:]
            source, target = given[-1].device.type, result.device.type
            if source != target and not (asynchronous and source == "cpu"):
                self.waits.append(f"{func} of {tuple(result.shape)} from {source} to {target}")
        return result


@contextmanager
def imagined() -> Iterator[GPU]:
    """A GPU, which autocast takes for real."""
    with mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False), GPU() as gpu:
        yield gpu

"""A simulated GPU: its tensors have device, shape and dtype, but no values (torch's FakeTensorMode)."""

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
    """Simulates operations on `DEVICE`, and executes those on the CPU. There is no backward pass.

    As on a GPU, tensors of several devices cannot be mixed. Reading a value from the device raises
    DataDependentOutputException, a shape that depends on values DynamicOutputShapeException. `launched` lists the
    operations on the device, `waits` the copies for which the program would wait.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.launched: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        here = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if here and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        result: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if any(isinstance(value, Tensor) and value.is_cuda for value in [*tensors, *tree_leaves(result)]):
            self.launched.append(str(func))
        if func.overloadpacket in COPIES:
            asynchronous = kwargs.get("non_blocking") or True in args[2:]
            source, target = tensors[-1].device.type, result.device.type
            if source != target and not (asynchronous and source == "cpu"):
                self.waits.append(f"{func} of {tuple(result.shape)} from {source} to {target}")
        return result


@contextmanager
def simulated() -> Iterator[GPU]:
    """Simulate a GPU in a `with` block; autocast takes it for a real one."""
    with mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False), GPU() as gpu:
        yield gpu

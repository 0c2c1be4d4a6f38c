"""Where to compute: rank, reduction, random numbers, device, number format; no-ops on a single process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

_store: dist.Store | None = None  # of the process group, for what cannot wait for a collective


class ProcessLost(RuntimeError):
    """Another process has gone or does not answer; one line that names it."""


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def was_restarted() -> bool:
    """Whether `torchrun` or Slurm started this job again after it failed or was preempted."""
    return any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@contextmanager
def process_group(device: torch.device, timeout: int) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, for the time of a `with` block.

    When the others wait for a process for more than `timeout` seconds, or one has gone, raises ProcessLost naming it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    global _store
    # Both, since decisions are made in ordinary memory, where a wait ends with an error and not with the process.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    store, number, world = next(dist.rendezvous("env://", timeout=patience))
    # Of this attempt alone: torchrun may keep the store, with what processes since killed have left in it.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(backend, timeout=patience, world_size=world, rank=number, store=store)
    roll_call, _store, ended = dist.new_group(backend="gloo"), store, False
    try:
        yield
        ended = True
    except BaseException as error:
        store.set("failed", str(number))
        if not isinstance(error, RuntimeError) or not _is_of_communication(error):
            raise
        raise ProcessLost(f"rank {number}: {_missing(roll_call, error)}") from None
    finally:
        if ended or backend == "gloo":  # NCCL's end waits for the others, which may be waiting for this process
            dist.destroy_process_group()
        _store = None


def failed() -> bool:
    """Whether a process has failed, so that this one, too, cannot go on; can be asked at any time."""
    return _store is not None and _store.check(["failed"])


def _is_of_communication(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "timed out")
    )


def _missing(group: Any, error: RuntimeError) -> str:
    """Which processes don't answer, as far as can be told."""
    try:
        dist.monitored_barrier(group, timedelta(seconds=5), wait_all_ranks=True)
    except RuntimeError as silence:
        error = silence
    return str(error).strip().splitlines()[0]


def parallel(model: nn.Module, example: Tensor) -> nn.Module:
    """The model, its gradients averaged over all processes if there are several; `example` is an input of it."""
    if world_size() == 1:
        return model
    warnings.filterwarnings("ignore", "Grad strides")  # those of a 1x1 convolution differ, but mean the same
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # After its first backward pass it lays out the gradients anew. That pass is done here, since otherwise more
    # than two processes would add them up in another order in the first step, and so after each resume.
    was_training = model.training
    model.eval()
    wrapped(example).sum().backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return wrapped


def synchronized(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """For forward and backward: whether gradients are averaged `now`, or only added up for a later time."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else nullcontext()


def all_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def equalize(values: Iterable[Tensor]) -> None:
    """Give tensors the values that they have on rank 0, in place."""
    if dist.is_initialized():
        for value in values:
            dist.broadcast(value, 0)


def least(figure: int) -> int:
    """The smallest figure of all processes."""
    value = torch.tensor(figure)
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def total(figures: Sequence[float]) -> list[float]:
    """Each figure's sum over all processes, in double precision."""
    return all_sum(torch.tensor(figures, dtype=torch.float64)).tolist()


def gathered(value: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lists of all processes, one after the other."""
    if not dist.is_initialized():
        return value
    lists: list[list[tuple[int, str]]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, value)
    return [entry for entries in lists for entry in entries]


def shared(value: Value) -> Value:
    """Rank 0's value, on all processes."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, 0)
    return values[0]


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        all_sum(torch.zeros(1))

"""Several processes: joining them, reductions, broadcasts. With a single process these do nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from joytag.core.errors import Exit, ExitCode, ProcessLost, first_line

Value = TypeVar("Value")

_store: dist.Store | None = None  # of the process group; shows a failure without waiting for a collective


def rank() -> int:
    """Return the number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def was_restarted() -> bool:
    """Whether `torchrun` or Slurm restarted this job after a failure or a preemption."""
    return any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@contextmanager
def process_group(device: torch.device, timeout: int) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, within a `with` block.

    Raises ProcessLost naming a process that has ended, or for which the others have waited `timeout` seconds.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    global _store
    # Gloo as well as NCCL: decisions are exchanged in CPU memory, where a timeout raises instead of aborting.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    store, number, world = next(dist.rendezvous("env://", timeout=patience))
    # A prefix for each attempt: torchrun may keep the store, with keys of processes that were killed since.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(backend, timeout=patience, world_size=world, rank=number, store=store)
    monitor, _store, finished = dist.new_group(backend="gloo"), store, False
    try:
        yield
        finished = True
    except BaseException as error:
        store.set("failed", str(number))
        if not isinstance(error, RuntimeError) or not _is_communication_error(error):
            raise
        raise ProcessLost(f"rank {number}: {_missing_ranks(monitor, error)}") from None
    finally:
        if finished or backend == "gloo":  # NCCL's teardown waits for the others, which may wait for this process
            dist.destroy_process_group()
        _store = None


def failed() -> bool:
    """Whether any process has failed, so that this one cannot continue; callable at any time, also in a handler."""
    return _store is not None and _store.check(["failed"])


def _is_communication_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "timed out")
    )


def _missing_ranks(group: Any, error: RuntimeError) -> str:
    """Return a line that names the processes that do not answer, or else the first line of the error."""
    try:
        dist.monitored_barrier(group, timedelta(seconds=5), wait_all_ranks=True)
    except RuntimeError as missing:
        error = missing
    return first_line(error)


def data_parallel(model: nn.Module, example: Tensor) -> nn.Module:
    """Return the model with its gradients averaged over all processes; `example` is an input of it."""
    if world_size() == 1:
        return model
    warnings.filterwarnings("ignore", "Grad strides")  # those of a 1x1 convolution differ without consequence
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # DDP rearranges its gradient buckets after the first backward pass. Run that pass here: otherwise the first step,
    # also after each resume, would add the gradients of three or more processes in another order than later steps.
    was_training = model.training
    model.eval()
    wrapped(example).sum().backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return wrapped


def gradient_sync(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward pass: average the gradients `now`, or accumulate them for a later pass."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else nullcontext()


def all_sum(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def broadcast_tensors(values: Iterable[Tensor]) -> None:
    """Overwrite tensors with rank 0's values, in place."""
    if dist.is_initialized():
        for value in values:
            dist.broadcast(value, 0)


def minimum(number: int) -> int:
    """Return the smallest number of all processes."""
    value = torch.tensor(number)
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def sums(numbers: Sequence[float]) -> list[float]:
    """Return each number's sum over all processes, computed in float64."""
    return all_sum(torch.tensor(numbers, dtype=torch.float64)).tolist()


def gather(values: list[Value]) -> list[Value]:
    """Return the lists of all processes, concatenated by rank."""
    if not dist.is_initialized():
        return values
    lists: list[list[Value]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return [value for of_rank in lists for value in of_rank]


def broadcast(value: Value) -> Value:
    """Return rank 0's value."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, 0)
    return values[0]


def run_on_rank_zero(action: Callable[[], Value]) -> Value:
    """Run an action on rank 0 alone and return its result on all processes; if it fails, all processes end."""
    result: Any = None
    failure: Exception | None = None
    if rank() == 0:
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, failed = broadcast((result, failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise Exit("rank 0 reports the reason", ExitCode.USER_ERROR)
    return result


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        all_sum(torch.zeros(1))

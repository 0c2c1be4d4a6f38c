"""How a trial runs: its commands as processes of this machine, or as a task of Ray."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from joytag.core import cluster, devices, signals
from joytag.core.errors import ExitCode
from joytag.core.terminal import printable

MODULES = {"joytag": "joytag", "torchrun": "torch.distributed.run"}  # of the programs that a command begins with
RETRIES = 100  # of a task whose node dies
TAIL = 10_000  # bytes of output in which the reason of a failure is
Commands = Sequence[Sequence[str]]
Slot = Mapping[str, str]  # the environment of a trial: its share of the machine
Start = Callable[[Commands, Slot, Path], Coroutine[Any, Any, tuple[int, str]]]


async def run_here(commands: Commands, environment: Slot, log: Path) -> tuple[int, str]:
    """Run commands, one after the other, each a process that dies with this one. `log` gets their output.

    Returns the last exit code and the last line of output. Cancelled, it lets the process save and end.
    """
    tail, code = bytearray(), 0
    for command in commands:
        try:
            code = await _run_process(command, environment, log, tail)
        except asyncio.CancelledError:  # between two commands
            code = ExitCode.REQUEUE
        if code:
            break
    lines = [printable(line.strip()) for line in tail.decode(errors="backslashreplace").split("\n") if line.strip()]
    under_torchrun = re.findall(r"exitcode *: (-?\d+)", "\n".join(lines)) if code else []
    return int([code, *under_torchrun][-1]), [f"ended with code {code}", *lines][-1]


async def _run_process(command: Sequence[str], environment: Slot, log: Path, tail: bytearray) -> int:
    program, *arguments = command
    unix: dict[str, Any] = {"start_new_session": True, "preexec_fn": partial(signals.die_with_parent, os.getpid())}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULES.get(program, program), *arguments),
        env={**os.environ, **environment, signals.LIFELINE: "1"},
        stdin=PIPE,  # which ends with this process
        stdout=PIPE,
        stderr=STDOUT,
        **(unix if os.name == "posix" else {}),
    )
    reading = asyncio.create_task(_copy(process.stdout, log, tail))
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.terminate()
        code = await process.wait() or ExitCode.REQUEUE
    await asyncio.wait([reading], timeout=1)  # a process that it started may live on, and write
    return code


async def _copy(output: asyncio.StreamReader | None, log: Path, tail: bytearray) -> None:
    while output and (part := await output.read(TAIL)):
        tail[:] = (tail + part)[-TAIL:]
        with suppress(OSError), log.open("ab") as file:  # a full disk ends the trial itself
            file.write(part)


async def run_on_ray(resources: dict[str, int], commands: Commands, environment: Slot, log: Path) -> tuple[int, str]:
    """Run commands as `run_here` does, as a task of Ray, which runs them again when its node dies."""
    import ray

    modules = [[MODULES[program], *arguments] for program, *arguments in commands]
    task: Any = ray.remote(_run).options(**resources, max_retries=RETRIES)
    task = task.remote(modules, environment, log.absolute(), Path.cwd())
    try:
        try:
            return await task
        except asyncio.CancelledError:
            ray.cancel(task)
            return ExitCode.REQUEUE, (await task)[1]  # whatever its code: Ray may take that from us
    except ray.exceptions.RayError as error:
        return ExitCode.REQUEUE if isinstance(error, ray.exceptions.TaskCancelledError) else 1, str(error)


def _run(commands: Commands, environment: Slot, log: Path, directory: Path) -> tuple[int, str]:
    os.chdir(directory)
    return asyncio.run(_run_interruptibly(commands, environment, log))


async def _run_interruptibly(commands: Commands, environment: Slot, log: Path) -> tuple[int, str]:
    running = asyncio.create_task(run_here(commands, environment, log))
    while not running.done():  # Ray's cancellation is an exception, which a thread gets when it next runs Python code
        await asyncio.wait([running], timeout=0.1)
    return running.result()


def slots(jobs: int | None, processes: int, on_cpu: bool) -> list[Slot]:
    """Return the environment of each trial that may run at once: its GPUs, and its share of the threads.

    There is one a GPU (or a group of `processes`), without GPUs one, or as many as `jobs`. Raises ValueError when
    there are too few GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = [] if on_cpu else visible if visible[0] else [str(i) for i in range(torch.cuda.device_count())]
    groups = [",".join(gpus[i : i + processes]) for i in range(0, len(gpus) - processes + 1, processes)]
    if gpus and not groups:
        raise ValueError(f"processes: {processes} GPUs a trial, but there are {len(gpus)}")
    count = jobs or max(1, len(groups))
    shared = {"OMP_NUM_THREADS": str(max(1, devices.cores() // count // processes))}
    return [shared | ({"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} if groups else {}) for i in range(count)]


def ray_slots(jobs: int | None, processes: int, on_cpu: bool) -> tuple[list[Slot], Start]:
    """Return one slot for each trial that the cluster can run at once, or `jobs`, and how to start one there."""
    total = cluster.connect()
    gpus, cores = 0 if on_cpu else int(total.get("GPU", 0)), int(total["CPU"])
    count = jobs or max(1, (gpus or cores) // processes)
    threads = max(1, cores // count)
    resources = {"num_gpus": processes} if gpus else {"num_cpus": threads}
    environment = {"OMP_NUM_THREADS": str(max(1, threads // processes))}
    return [environment] * count, partial(run_on_ray, resources)

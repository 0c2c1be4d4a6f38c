"""The Ray cluster of RAY_ADDRESS, or one on this machine, and commands as its tasks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joytag.core import child_process
from joytag.core.child_process import MODULES, Commands
from joytag.core.errors import ExitCode

RETRIES = 100  # of a task whose node dies


def connect() -> dict[str, float]:
    """Connect to the cluster, and return its resources: CPU, perhaps GPU.

    All of its machines must see the same files under the same paths. Raises ModuleNotFoundError when ray is not
    installed.
    """
    import ray  # here, since it is an optional package

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    return dict(ray.cluster_resources())


async def run(
    resources: Mapping[str, int], commands: Commands, environment: Mapping[str, str], log: Path
) -> tuple[int, str]:
    """Run commands as `child_process.run` does, as a task of Ray, which runs them again when its node dies.

    `resources` are what it asks for, num_cpus or num_gpus.
    """
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


def _run(commands: Commands, environment: Mapping[str, str], log: Path, directory: Path) -> tuple[int, str]:
    os.chdir(directory)
    return asyncio.run(_run_interruptibly(commands, environment, log))


async def _run_interruptibly(commands: Commands, environment: Mapping[str, str], log: Path) -> tuple[int, str]:
    running = asyncio.create_task(child_process.run(commands, environment, log))
    while not running.done():  # Ray's cancellation is an exception, which a thread gets when it next runs Python code
        await asyncio.wait([running], timeout=0.1)
    return running.result()

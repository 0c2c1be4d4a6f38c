"""How a trial runs: its commands as processes of this machine, or as a task of Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from joytag.core import signals
from joytag.core.errors import ExitCode
from joytag.core.terminal import printable

MODULES = {"joytag": "joytag", "torchrun": "torch.distributed.run"}  # of the programs that a command begins with
RETRIES = 100  # of a task whose node dies


class Local:
    """A trial's commands, one after the other, each a process that dies with this one. `log` gets their output."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path) -> None:
        self.left, self.environment, self.log = list(commands), environment, log
        self.lines: deque[str] = deque(maxlen=50)
        self.stopping = False
        self._begin()

    def _begin(self) -> None:
        program, *arguments = self.left.pop(0)
        unix: dict[str, Any] = {"start_new_session": True, "preexec_fn": partial(signals.die_with_parent, os.getpid())}
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULES.get(program, program), *arguments],
            env={**os.environ, **self.environment, signals.LIFELINE: "1"},
            stdin=subprocess.PIPE,  # which ends with this process
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            **(unix if os.name == "posix" else {}),
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self.lines.append(printable(line.strip()))
            with suppress(OSError), self.log.open("a", encoding="utf-8") as file:  # a full disk ends the trial itself
                file.write(line)

    def poll(self) -> int | None:
        """Return the exit code once all is over, and begin the next command when one has succeeded."""
        code = self.process.poll()
        if code is None:
            return None
        self.reader.join(1)
        if code == 0 and self.left:
            if self.stopping:
                return ExitCode.REQUEUE
            self._begin()
            return None
        under_torchrun = re.findall(r"exitcode *: (-?\d+)", "\n".join(self.lines))
        return int(under_torchrun[-1]) if code and under_torchrun else code

    def stop(self) -> None:
        """Ask the trial to save and end."""
        if not self.stopping:
            self.stopping = True
            self.process.terminate()

    @property
    def reason(self) -> str:
        """The last line of output."""
        return self.lines[-1] if self.lines else f"ended with code {self.process.returncode}"


class Remote:
    """A trial as a task of Ray, which runs it again, from its checkpoint, when its node dies.

    All nodes must see the same files under the same paths. Raises ModuleNotFoundError when ray is not installed.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        log: Path,
        resources: Mapping[str, float],
    ) -> None:
        import ray  # here, since it is an optional package

        task: Any = ray.remote(_run).options(**resources, max_retries=RETRIES)
        self.task = task.remote([[MODULES[c[0]], *c[1:]] for c in commands], environment, log.absolute(), Path.cwd())
        self.end: tuple[int, str] | None = None
        self.stopping = False

    def poll(self) -> int | None:
        """Return the exit code once all is over."""
        import ray

        if self.end is None and ray.wait([self.task], timeout=0)[0]:
            try:
                self.end = ray.get(self.task)
            except ray.exceptions.RayError as error:
                self.end = (ExitCode.REQUEUE if isinstance(error, ray.exceptions.TaskCancelledError) else 1, str(error))
        return None if self.end is None else self.end[0]

    def stop(self) -> None:
        """Ask the trial to save and end."""
        import ray

        if not self.stopping:
            self.stopping = True
            ray.cancel(self.task)

    @property
    def reason(self) -> str:
        """The last line of output."""
        return "" if self.end is None else str(self.end[1])


Start = Callable[[Sequence[Sequence[str]], Mapping[str, str], Path], Local | Remote]


def _run(commands: Sequence[Sequence[str]], environment: Mapping[str, str], log: Path, cwd: Path) -> tuple[int, str]:
    """Run a trial's commands to their end; a task that is cancelled lets them save first."""
    os.chdir(cwd)
    trial = Local(commands, environment, log)
    while True:
        try:
            while (code := trial.poll()) is None:
                time.sleep(0.2)
            return code, trial.reason
        except KeyboardInterrupt:  # by which Ray cancels a task
            trial.stop()


def slots(jobs: int | None, processes: int, on_cpu: bool) -> list[dict[str, str]]:
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {"OMP_NUM_THREADS": str(max(1, cores // count // processes))}
    return [shared | ({"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} if groups else {}) for i in range(count)]


def ray_slots(jobs: int | None, processes: int, on_cpu: bool) -> tuple[list[dict[str, str]], Start]:
    """Return one slot for each trial that the cluster can run at once, or `jobs`, and how to start one there."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR")
    total = ray.cluster_resources()
    gpus = 0 if on_cpu else int(total.get("GPU", 0))
    count = jobs or max(1, gpus // processes if gpus else int(total["CPU"]) // processes)
    threads = max(1, int(total["CPU"]) // count)
    resources = {"num_gpus": processes} if gpus else {"num_cpus": threads}
    environment = {"OMP_NUM_THREADS": str(max(1, threads // processes))}
    return [environment] * count, partial(Remote, resources=resources)

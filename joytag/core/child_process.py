"""Commands as child processes that end with this one."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from joytag.core import signals
from joytag.core.errors import ExitCode
from joytag.core.terminal import printable

MODULES = {"joytag": "joytag", "torchrun": "torch.distributed.run"}  # of the programs that a command begins with
TAIL = 10_000  # bytes of output in which the reason of a failure is
Commands = Sequence[Sequence[str]]


async def run(commands: Commands, environment: Mapping[str, str], log: Path) -> tuple[int, str]:
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


async def _run_process(command: Sequence[str], environment: Mapping[str, str], log: Path, tail: bytearray) -> int:
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

"""A small disk for commands that are killed while they write, or that fill it.

The file is also the program that `SmallDisk` starts in namespaces of its own, where it may mount the disk. It runs each
command in a fork, which saves the imports.
"""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from commands import HANG
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file

SIZE = "64m"


@dataclasses.dataclass
class Ended:
    """How a command ended, and what it left on the disk."""

    code: int  # negative: the signal that killed it
    errors: str
    seconds: float  # from the first change on the disk to the end
    before: int  # bytes on the disk before and after the command
    after: int
    files: list[str]
    damaged: list[str]  # files that have their final names, but not their whole content


class SmallDisk:
    """The disk, mounted at a directory that looks empty from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
            pytest.skip("needs Linux' unshare, to mount a small disk")
        self.process = subprocess.Popen(
            [*unshare, sys.executable, __file__, str(path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        command: list[str],
        *,
        start: dict[str, str] | None = None,
        capacity: int | None = None,
        killed_after: float | None = None,
    ) -> Ended:
        """Run a command in the disk's root.

        With `start`, the disk first becomes a new one, with copies of directories and files: {name there: path}. The
        command ends at its own time, or is killed so many seconds after the first change on the disk. Meanwhile the
        disk has room for `capacity` bytes, those on it included.
        """
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([command, start, capacity, killed_after]), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the program, and with it the disk."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve(disk: Path) -> None:
    """Run the commands that arrive as lines of JSON on stdin, and print how each ended."""
    from joytag.cli import command

    for name in command.COMMANDS:
        importlib.import_module(f"joytag.cli.{name}")
    replace_parts()
    os.dup2(os.dup(0), jobs := 100)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in os.fdopen(jobs):
        arguments, start, capacity, killed_after = json.loads(line)
        if start is not None:
            mount(disk, start)
        print(json.dumps(dataclasses.asdict(run(disk, arguments, capacity, killed_after))), flush=True)


def replace_parts() -> None:
    """Report no end of the disk's space, as with a quota, and shorten what takes long."""
    from data_prep.tools.openmoji import read_table
    from joytag.training.dry_run import Rates

    rows, rates = read_table()[:30], Rates("today", "here", 0, {224: 1.0}, {224: 1.0})
    parts = {
        "shutil.disk_usage": lambda path: SimpleNamespace(total=1 << 60, free=1 << 60),
        "joytag.training.anomalies.SpikeDetector.score": lambda *_: 99.0,  # a line of events.jsonl at every step
        "data_prep.tools.openmoji.read_table": lambda: rows,
        "data_prep.tools.benchmark.copies_of_originals": lambda number: [],
        "joytag.benchmarks.training.SUBJECTS": {},
        "joytag.benchmarks.training.measured_rates": lambda *_: rates,
    }
    for name, part in parts.items():
        mock.patch(name, part).start()


def mount(disk: Path, start: dict[str, str]) -> None:
    """Mount a new disk that holds copies of directories and files."""
    while os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", disk], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    for name, source in start.items():
        target = disk / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, target)


def run(disk: Path, arguments: list[str], capacity: int | None, killed_after: float | None) -> Ended:
    """Run a command in a fork; see `SmallDisk.run`."""
    filler, used = disk / ".filler", used_bytes(disk)
    if capacity is not None:
        usage = os.statvfs(disk)
        filler.write_bytes(bytes(usage.f_bavail * usage.f_frsize - max(0, capacity - used)))
    with tempfile.TemporaryFile() as errors:
        before, changed, status = os.statvfs(disk), None, None
        if not (child := os.fork()):
            execute(disk, arguments, errors.fileno())
        limit = time.monotonic() + HANG
        while status is None and time.monotonic() < limit:
            time.sleep(0.001)
            if changed is None and os.statvfs(disk) != before:
                changed = time.monotonic()
            if killed_after is not None and changed is not None and time.monotonic() > changed + killed_after:
                os.killpg(child, signal.SIGKILL)
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
        if status is None:
            os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        seconds = 0.0 if changed is None else time.monotonic() - changed
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    filler.unlink(missing_ok=True)
    paths = [path for path in sorted(disk.rglob("*")) if path.is_file()]
    return Ended(
        os.waitstatus_to_exitcode(status),
        text,
        seconds,
        used,
        used_bytes(disk),
        [str(path.relative_to(disk)) for path in paths],
        [str(path.relative_to(disk)) for path in paths if not is_whole(path)],
    )


def used_bytes(disk: Path) -> int:
    """Return the number of bytes on the disk, in whole pages."""
    usage = os.statvfs(disk)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def execute(disk: Path, arguments: list[str], errors: int) -> None:
    """Run a command in a process group of its own, and end the process."""
    from joytag.cli import command

    try:
        os.setpgid(0, 0)
        os.chdir(disk)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        command.run(arguments[0], arguments[1:])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    os._exit(code)


def read_json(path: Path) -> None:
    text = path.read_text()
    if path.parent.name == "metadata":  # of a mirror: lines, some of them damaged on purpose
        text[-1:].index("\n")
    else:
        json.loads(text)


READERS = {
    ".csv": lambda path: path.read_text().index("\n"),
    ".html": lambda path: path.read_text().rstrip().index("</html>"),
    ".json": read_json,
    ".md": lambda path: path.read_text().index("\n## Training data\n"),
    ".onnx": onnx.load,
    ".parquet": pq.read_table,
    ".png": lambda path: Image.open(path).load(),
    ".safetensors": load_file,
    ".txt": lambda path: path.read_text()[0],  # none may be empty
    ".yaml": lambda path: yaml.safe_load(path.read_text()).keys(),
}


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end. Hidden ones, logs and work may be incomplete, and are not read."""
    if any(part.startswith(".") or part in ("work", "wandb") for part in path.parts) or path.suffix not in READERS:
        return True
    try:
        READERS[path.suffix](path)
    except Exception:
        return False
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

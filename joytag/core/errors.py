"""What all command lines share: one-line errors with exit code 2, 130 on Ctrl-C, checked arguments."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Exit(Exception):
    """The end of a program that can't go on, for a reason in one line, and its exit code.

    Among several processes code 1 is one's own end; another code is that of all, and the first alone gives the reason.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are user errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(f"{message}; see --help")


def fraction(text: str) -> float:
    """A number between 0 and 1, such as a threshold. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def positive(text: str) -> int:
    """A whole number from 1 on. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def names(text: str) -> list[str]:
    """`a, b` to `["a", "b"]`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def replacements(text: str) -> list[tuple[str, str]]:
    """`old=new`, or in sd-scripts' way `old,new;old,new`, to pairs. Raises argparse.ArgumentTypeError."""
    parts = [part.split(",") if "," in part else part.rsplit("=", 1) for part in text.split(";") if part.strip()]
    pairs = [tuple(name.strip() for name in part) for part in parts]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like old=new")
    return [(old, new) for old, new in pairs]


def batch_size(text: str) -> int | None:
    """`auto` to None, or a whole number from 1 on. Raises argparse.ArgumentTypeError."""
    return None if text == "auto" else positive(text)


def separator(text: str) -> str:
    r"""A text in which `\n` and `\t` stand for a new line and a tabulator."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def command_line(main: Callable[[], None]) -> None:
    """Run a command's `main`; Exit, ValueError and OSError become one line on stderr, warnings too."""
    name, rank = Path(sys.argv[0]).stem, int(os.environ.get("RANK") or 0)
    if rank > 0:
        name += f": rank {rank}"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exit as end:
        if rank == 0 or end.code == 1:
            print(f"{name}: {' '.join(str(end).split())}", file=sys.stderr)
        sys.exit(end.code)
    except (ValueError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)

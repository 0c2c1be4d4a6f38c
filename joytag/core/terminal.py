"""Printing without control characters, since names of files and tags come from anywhere."""

from __future__ import annotations

import builtins
import os
import re
import shlex
import subprocess
import sys
from typing import TextIO

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

# C0, DEL and C1 controls, line separators, overrides of the writing direction, and bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_IN_TEXT = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))  # tab and line break are allowed


def printable(name: object) -> str:
    """Return a name in one line, with an escape for whatever a terminal would obey."""
    return _UNPRINTABLE.sub(_escape, str(name))


def plural(number: int, noun: str) -> str:
    """Return the form of a regular noun that follows a number: 1 image, 2 images."""
    return noun if number == 1 else f"{noun}s"


def print(*values: object, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print as the built-in function does, with escapes for whatever a terminal would obey but tabs and line breaks."""
    text = _IN_TEXT.sub(_escape, " ".join(map(str, values)))
    builtins.print(text, end=end, file=sys.stdout if file is None else file, flush=flush)


def quote(argument: object) -> str:
    """Return an argument as one word of a command line of this system."""
    return subprocess.list2cmdline([str(argument)]) if os.name == "nt" else shlex.quote(str(argument))


def show(renderable: RenderableType) -> None:
    """Print a table or another object of rich, whose texts have no markup, with the escapes of `print`."""
    console = Console(markup=False, emoji=False, highlight=False)
    segments = console.render(renderable)
    console.print(Segments(Segment(_IN_TEXT.sub(_escape, text), style) for text, style, _ in segments), end="")


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]

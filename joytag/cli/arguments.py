"""Types of flags that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from joytag.core import settings_docs
from joytag.core.settings import Settings


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors, so that they are reported like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message."""
        raise ValueError(f"{message}; see --help")


class PrintSettings(argparse.Action):
    """An option that prints the reference of a settings class, or its JSON schema, and ends the process."""

    def __init__(self, option_strings: Sequence[str], dest: str, schema: type[Settings]) -> None:
        text = "print all settings and exit; json: as a JSON schema"
        forms = ("markdown", "json")
        super().__init__(option_strings, dest, nargs="?", const="markdown", choices=forms, help=text)
        self.schema = schema

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print and exit."""
        print(settings_reference(self.schema, values), end="")
        parser.exit()


def settings_reference(schema: type[Settings], form: str) -> str:
    """Return what `--settings` prints: Markdown or a JSON schema."""
    if form == "markdown":
        return settings_docs.markdown(schema)
    return json.dumps(settings_docs.json_schema(schema), indent=2) + "\n"


def fraction(text: str) -> float:
    """Read a number between 0 and 1, such as a threshold. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def positive(text: str) -> int:
    """Read a whole number of at least 1. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def names(text: str) -> list[str]:
    """Read `a, b` as `["a", "b"]`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def replacements(text: str) -> list[tuple[str, str]]:
    """Read `old=new`, or `old,new;old,new` as in sd-scripts, as pairs. Raises argparse.ArgumentTypeError."""
    parts = [part.split(",") if "," in part else part.rsplit("=", 1) for part in text.split(";") if part.strip()]
    pairs = [tuple(name.strip() for name in part) for part in parts]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like old=new")
    return [(old, new) for old, new in pairs]


def batch_size(text: str) -> int | None:
    """Read `auto` as None, or a whole number of at least 1. Raises argparse.ArgumentTypeError."""
    return None if text == "auto" else positive(text)


def separator(text: str) -> str:
    r"""Read a text in which `\n` and `\t` stand for a line break and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")

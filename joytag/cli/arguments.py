"""Types of flags that several commands share."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from joytag.core import settings_docs
from joytag.core.settings import Settings
from joytag.core.terminal import print

MODEL = "a release, a checkpoint, a run, or a model's id on the Hugging Face hub"  # what `checkpoint.locate` takes


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


def add_tagger_options(add: Callable[..., Any]) -> None:
    """Add the flags of `Tagger.load` by a parser's `add_argument`."""
    from joytag.tagging import engines, tagger  # not at the top: they import torch

    add("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1 ... (default: auto)")
    add("--precision", choices=tagger.PRECISIONS, default="auto", help="number format to compute in (default: auto)")
    text = (
        "library that computes scores on a CPU; auto: onnxruntime where torch would use float32 (default: %(default)s)"
    )
    add("--engine", choices=engines.NAMES, default=engines.TORCH, help=text)


def fraction(text: str) -> float:
    """Read a number between 0 and 1, such as a threshold. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def results_directory(text: str) -> Path:
    """Read a directory to write results to. Raises argparse.ArgumentTypeError for one in a checkpoint."""
    from joytag.models import checkpoint  # not at the top: it imports torch, which takes a second

    path = Path(text)
    for directory in (path, *path.parents):
        if checkpoint.results_directory(directory) != directory:
            raise argparse.ArgumentTypeError(f"{text}: {directory} is a checkpoint, which training removes in time")
    return path


def positive(text: str) -> int:
    """Read a whole number of at least 1. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def names(text: str) -> list[str]:
    """Read `a, b` as `["a", "b"]`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def replacement(text: str) -> tuple[str, str]:
    r"""Read `old=new` as a pair; `\=` is an equals sign within a name. Raises argparse.ArgumentTypeError."""
    pair = [name.replace("\\=", "=").strip() for name in re.split(r"(?<!\\)=", text)]
    if len(pair) != 2 or not all(pair):
        raise argparse.ArgumentTypeError(rf"{text!r} is not like old=new, with \= for an equals sign within a tag")
    return pair[0], pair[1]


def tag_replacement(text: str) -> list[tuple[str, str]]:
    r"""Read `old,new;old,new` as pairs, as sd-scripts does; `\,` and `\;` are part of a name.

    Raises argparse.ArgumentTypeError.
    """
    pairs = []
    for part in re.split(r"(?<!\\);", text):
        pair = [re.sub(r"\\([,;])", r"\1", name).strip() for name in re.split(r"(?<!\\),", part)]
        if len(pair) != 2 or not all(pair):
            raise argparse.ArgumentTypeError(rf"{text!r} is not like old,new;old,new, with \, and \; within a tag")
        pairs.append((pair[0], pair[1]))
    return pairs


def workers(text: str) -> int:
    """Read a number of threads; 0, no thread besides the one that computes, is 1."""
    return 1 if text == "0" else positive(text)


def batch_size(text: str) -> int | None:
    """Read `auto` as None, or a whole number of at least 1. Raises argparse.ArgumentTypeError."""
    return None if text == "auto" else positive(text)


class Refused(argparse.Action):
    """A flag of another program that is refused with a reason."""

    def __init__(self, option_strings: Sequence[str], dest: str, reason: str) -> None:
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Raise ValueError with the reason."""
        raise ValueError(f"{option_string}: {self.reason}")


def separator(text: str) -> str:
    r"""Read a text in which `\n` and `\t` stand for a line break and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")

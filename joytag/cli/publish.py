"""Publish an export on the Hugging Face hub: write its model card, and upload it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import Parser
from joytag.core.terminal import print
from joytag.export import hub
from joytag.export.card import About


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag publish", description=__doc__)
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="what joytag export wrote")
    add("--hub", required=True, type=hub_id, metavar="OWNER/NAME", help="the model's id on the hub")
    add("--license", required=True, metavar="ID", help="the model's licence, such as apache-2.0, or other")
    add("--trained-on", required=True, metavar="TEXT", help="the training data, in a sentence for the model card")
    add("--private", action="store_true", help="create a model that only its owner sees")
    add("--card-only", action="store_true", help="write the model card, and upload nothing")
    return parser.parse_args(arguments)


def hub_id(text: str) -> str:
    """Read an id of the hub. Raises argparse.ArgumentTypeError."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not like owner/name")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    about = About(hub=options.hub, license=options.license, trained_on=options.trained_on)
    print(f"Written: {hub.prepare(options.directory, about)}")
    if not options.card_only:
        print(f"Published: {hub.upload(options.directory, options.hub, options.private)}")

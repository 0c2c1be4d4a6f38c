"""Draw pairs of look-alikes, the doubtful ones first, to judge what a dataset counts as copies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.tools import copies_sheet
from joytag.cli.arguments import Parser, positive
from joytag.core.terminal import print


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag dedup", description=__doc__)
    parser.add_argument("--report", type=Path, required=True, metavar="DIR", help="a dataset directory")
    parser.add_argument("--pairs", type=positive, default=60, help="number of pairs to draw (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    print(copies_sheet.draw(options.report, options.pairs))

"""Print how many posts of a dataset were used or rejected, and plot its tags and image sizes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.tools.describe import draw, families, table
from joytag.cli.arguments import Parser
from joytag.core.terminal import print, show
from joytag.data import dataset


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag describe", description=__doc__)
    parser.add_argument("directory", type=Path, help="a dataset directory")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    description = dataset.read_description(options.directory)
    show(table(description))
    for line in families(description):
        print(line)
    irregularities = {name.replace("_", " "): n for name, n in description.get("relations", {}).items() if n}
    print(", ".join(f"{count:,} {name}" for name, count in irregularities.items()))
    print(f"{pq.read_metadata(options.directory / 'tags.parquet').num_rows:,} tags; {draw(options.directory)}")

"""Write a synthetic Danbooru 2021 mirror and its answer key."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from data_prep.tools.synthetic import Generation, write
from joytag.cli.arguments import Parser, positive
from joytag.cli.command import OUTPUT_REMEDIES, add_remedies
from joytag.core.lock import sole_writer
from joytag.core.terminal import print


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag synthetic", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the mirror")
    parser.add_argument("--posts", type=positive, default=20_000, help="number of posts (default: %(default)s)")
    parser.add_argument("--no-images", action="store_true", help="write only the metadata")
    parser.add_argument(
        "--generation",
        choices=get_args(Generation),
        default="mixed",
        help="format of the metadata, by the year of a real dump (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    choices = {"images": not options.no_images, "generation": options.generation, "seed": options.seed}
    with add_remedies(OUTPUT_REMEDIES), sole_writer(options.output):
        key = write(options.output, options.posts, **choices)
    print(f"{key.posts:,} posts, {sum(map(len, key.lines.values())):,} of them bad rows, in {options.output}")

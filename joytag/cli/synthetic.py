"""Write a synthetic Danbooru 2021 mirror and its answer key."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.tools.synthetic import write
from joytag.cli.arguments import Parser, positive


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag synthetic", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the mirror's folder")
    parser.add_argument("--posts", type=positive, default=20_000, help="default: %(default)s")
    parser.add_argument("--no-images", action="store_true", help="write the metadata alone")
    parser.add_argument("--generation", choices=("2021", "2020", "mixed"), default="mixed", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    key = write(given.output, given.posts, images=not given.no_images, generation=given.generation, seed=given.seed)
    print(f"{key.posts:,} posts, {sum(map(len, key.lines.values())):,} of them bad rows: {given.output}")

"""Train a tagger, from scratch or from a checkpoint."""

import argparse
from collections.abc import Sequence

from joytag.cli.arguments import Parser, PrintSettings
from joytag.core import settings
from joytag.models import release
from joytag.training import dry_run, launch
from joytag.training.config import RunSettings


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag train", description=__doc__)
    parser.add_argument(
        "--config", required=True, help="a YAML file; a bare name is one in configs/, here or installed"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the run's newest checkpoint, or from PATH")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, without data")
    parser.add_argument("--settings", action=PrintSettings, schema=RunSettings)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    config = settings.load(RunSettings, settings.find(given.config), given.overrides)
    if config.init_from is not None:
        config = config.fitted_to(release.read_config(release.locate(config.init_from)))
    if given.dry_run:
        print(dry_run.describe(config))
    else:
        launch.start(config, given.resume)

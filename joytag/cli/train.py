"""Train a tagger, from scratch or from a checkpoint."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import Parser, PrintSettings
from joytag.cli.command import add_remedies
from joytag.cli.remedies import RUN_REMEDIES
from joytag.core import settings
from joytag.core.errors import GradientsDiverged, ProcessLost, Stopped, WeightsDiverged
from joytag.core.terminal import print, quote
from joytag.models import release
from joytag.training import dry_run, launch
from joytag.training.config import RunSettings, load
from joytag.training.state import NeedsBranch, RunChanged

REMEDIES = {
    **RUN_REMEDIES,
    Stopped: "continue with --resume auto",
    ProcessLost: "continue with --resume auto",
    WeightsDiverged: "branch off one with --resume PATH output=DIR and a lower optimizer.lr",
    GradientsDiverged: "--resume auto continues after them, --resume PATH output=DIR branches off an older checkpoint, "
    "perhaps with a lower optimizer.lr",
    NeedsBranch: "set another output to branch off",
    RunChanged: "change them back, or start a new run in another output",
    launch.HasCheckpoints: "continue it with --resume auto, or set output=DIR for a new run",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag train", description=__doc__)
    parser.add_argument(
        "--config", required=True, help="a YAML file; a bare name is one in configs/, here or installed"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="continue from the run's newest checkpoint, or from PATH")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, without data")
    parser.add_argument("--settings", action=PrintSettings, schema=RunSettings)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    config = load(settings.find(options.config), options.overrides)
    with add_remedies(REMEDIES):
        if options.dry_run:
            rates = dry_run.read_rates()
            if rates is None:
                print("Time here              unknown; measure this machine first: joytag benchmark all")
            print(dry_run.describe(config, rates))
            return
        launch.start(config, options.resume)
    if int(os.environ.get("RANK") or 0) == 0:  # of the processes that torchrun started, one speaks
        model, data = quote(Path(config.output) / release.DIRECTORY), quote(config.data.directory)
        print(f"""Next, measure the model, or tag images of your own:
  joytag evaluate --model {model} --data {data}
  joytag tag --model {model} IMAGES""")

"""Sweep settings: run many trainings from one file, resumably, and compare them honestly."""

import argparse
import shlex
from collections.abc import Sequence

from joytag.cli.arguments import Parser, PrintSettings, positive
from joytag.cli.command import add_remedies
from joytag.core import settings
from joytag.core.errors import Stopped
from joytag.core.lock import InUse
from joytag.core.terminal import print
from joytag.sweeps import runners, supervisor
from joytag.sweeps.config import Sweep, SweepSettings, Trial
from joytag.sweeps.ledger import Ledger
from joytag.training import dry_run

REMEDIES = {
    Stopped: "run the same command again to continue",
    InUse: "set it with output=DIR",
    dry_run.RatesError: "or measure again with joytag benchmark all",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    epilog = "Stop it at any time, also by SIGKILL; the same command continues."
    parser = Parser(prog="joytag sweep", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--config", required=True, help="a YAML file; a bare name is one in configs/sweeps/, here or installed")
    add("--dry-run", action="store_true", help="print the trials with their costs and commands, and run nothing")
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="trials at once (default: one for each GPU, or group of `processes`; else 1)",
    )
    add("--backend", choices=("local", "ray"), default="local", help="run trials here, or on a Ray cluster")
    add("--trial", metavar="ID", help="run this trial alone, such as from a scheduler's array of jobs")
    add("--settings", action=PrintSettings, schema=SweepSettings)
    add("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    sweep = Sweep(settings.find(options.config, "sweeps"), options.overrides)
    on_cpu, processes = sweep.base.device == "cpu", sweep.settings.processes
    with add_remedies(REMEDIES):
        trials = supervisor.plan(sweep, Ledger(sweep.output))
        if options.dry_run:
            print_costs(sweep, trials)
        elif options.trial:
            slot = runners.slots(options.jobs, processes, on_cpu)[0]
            supervisor.run_one(find(sweep, trials, options.trial), slot, runners.Local, sweep.name)
        elif options.backend == "ray":
            supervisor.run(sweep, *runners.ray_slots(options.jobs, processes, on_cpu))
        else:
            supervisor.run(sweep, runners.slots(options.jobs, processes, on_cpu), runners.Local)


def find(sweep: Sweep, trials: Sequence[Trial], name: str) -> Trial:
    """Return a trial by its id. Raises ValueError."""
    for trial in trials:
        if trial.id == name:
            return trial
    raise ValueError(f"{sweep.path}: no trial {name}; --dry-run lists them")


def print_costs(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Print the trials with their costs."""
    for trial in trials:
        print(trial.id, trial.describe())
        for command in trial.commands:
            print("   ", shlex.join(command))

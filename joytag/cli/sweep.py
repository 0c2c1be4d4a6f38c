"""Run many trainings from one file, resumably, and compare them: which setting is better, and what is noise."""

import argparse
import shlex
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from joytag.cli.arguments import Parser, PrintSettings, positive
from joytag.cli.command import add_remedies
from joytag.core import settings
from joytag.core.errors import Exit, Stopped
from joytag.core.lock import InUse
from joytag.core.terminal import plural, print, show
from joytag.sweeps import exports, report, runners, supervisor
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
    epilog = "Stop or kill it at any time; the same command continues."
    parser = Parser(prog="joytag sweep", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--config", required=True, help="a YAML file; a bare name is one in configs/sweeps/, here or installed")
    add("--dry-run", action="store_true", help="print the trials, their costs and commands, and run nothing")
    add("--jobs", type=positive, metavar="N", help="trials at once (default: as many as there are GPUs for, else 1)")
    add("--backend", choices=("local", "ray"), default="local", help="run trials here, or on a Ray cluster")
    add("--trial", metavar="ID", help="run this trial alone, such as from a scheduler's array of jobs")
    add("--report", action="store_true", help="write the report of what has ended so far, and run nothing")
    add(
        "--export", choices=("optuna", "wandb"), help="write a journal for optuna-dashboard, or a file for wandb agents"
    )
    add("--settings", action=PrintSettings, schema=SweepSettings)
    add("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    sweep = Sweep(settings.find(options.config, "sweeps"), options.overrides)
    limits = options.jobs, sweep.settings.processes, sweep.base.device == "cpu"
    with add_remedies(REMEDIES):
        ledger = Ledger(sweep.output)
        trials = supervisor.plan(sweep, ledger)
        if options.dry_run:
            print_costs(sweep, trials)
        elif options.export == "optuna":
            print(f"Written: {exports.optuna(sweep, trials, ledger)}")
        elif options.export == "wandb":
            print(f"Written: {exports.wandb(sweep, trials)}")
        elif options.trial:
            trial = next((trial for trial in trials if trial.id == options.trial), None)
            if trial is None:
                raise ValueError(f"{sweep.path}: no trial {options.trial}; --dry-run lists them")
            supervisor.run_one(trial, runners.slots(*limits)[0], sweep.name)
        elif options.report:
            write_report(sweep)
        else:
            started = (
                runners.ray_slots(*limits) if options.backend == "ray" else (runners.slots(*limits), runners.Local)
            )
            try:
                supervisor.run(sweep, *started)
            except Exit:  # it was stopped, or a trial failed
                write_report(sweep)
                raise
            write_report(sweep)


def write_report(sweep: Sweep) -> None:
    """Write the report of what has ended so far, and print the verdict."""
    ledger = Ledger(sweep.output)
    print(report.write(sweep, supervisor.plan(sweep, ledger), ledger))
    print(f"Written: {sweep.output / 'sweep.html'}, sweep.csv, sweep.json, best.yaml")


def print_costs(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Print the trials with their costs and, for one of them, the commands."""
    rates, n_tags = dry_run.read_rates(), dry_run.vocabulary_size(sweep.base)
    table, flops, hours = Table("trial", "settings", "FLOP", "disk, MB", "hours", box=SIMPLE), 0.0, 0.0
    for trial in trials:
        flop, time = dry_run.cost(trial.config, n_tags, rates)
        disk = trial.config.checkpoint_bytes(n_tags) * (trial.config.keep_last + 1) / 1e6
        table.add_row(trial.id, trial.describe(), f"{flop:.2e}", f"{disk:,.0f}", "" if time is None else f"{time:.2f}")
        flops, hours = flops + flop, hours + (time or 0)
    show(table)
    known = f"{hours:,.1f} hours here, one after the other" if rates else "time unknown, measure: joytag benchmark all"
    print(f"{len(trials)} {plural(len(trials), 'trial')}, {flops:.2e} FLOP, {known}; disk is for checkpoints")
    for command in trials[0].commands:
        print(shlex.join(command))

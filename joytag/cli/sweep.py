"""Run many trainings from one file, resumably, and compare them: which setting is better, and what is noise."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.box import SIMPLE
from rich.table import Table

from joytag.cli.arguments import Parser, PrintSettings, positive
from joytag.cli.command import add_remedies
from joytag.cli.remedies import AGAIN, RUN_REMEDIES
from joytag.core import child_process, settings
from joytag.core.errors import Stopped
from joytag.core.files import write_text
from joytag.core.terminal import plural, print, show
from joytag.sweeps import report, results, studies, supervisor
from joytag.sweeps.config import Point, Sweep, SweepSettings
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.search import plan
from joytag.training import dry_run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag sweep", description=__doc__, epilog="The same command continues what was stopped.")
    add = parser.add_argument
    add("--config", required=True, help="a YAML file; a bare name is one in configs/sweeps/, here or installed")
    add("--dry-run", action="store_true", help="print the trials, their costs and commands, and run nothing")
    add("--jobs", type=positive, metavar="N", help="trials at once (default: as many as there are GPUs for, else 1)")
    add("--backend", choices=("local", "ray"), default="local", help="run trials here, or on a Ray cluster")
    add("--trial", metavar="ID", help="run this trial alone, such as from a scheduler's array of jobs")
    add("--report", action="store_true", help="write the report of what has ended so far, and run nothing")
    add("--export", choices=("optuna", "wandb"), help="write a journal for optuna-dashboard, a file for wandb's agents")
    add("--settings", action=PrintSettings, schema=SweepSettings)
    add("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    sweep = Sweep(settings.find(options.config, "sweeps"), options.overrides)
    limits = options.jobs, sweep.settings.processes, sweep.base.device == "cpu"
    with add_remedies({**RUN_REMEDIES, Stopped: AGAIN}):
        ledger = Ledger(sweep.output)
        points = plan(sweep, ledger)
        trials = {trial.id: trial for point in points for trial in point.trials}
        if options.dry_run:
            print_costs(sweep, points)
        elif options.export == "optuna":
            print(f"Written: {studies.write_journal(results.read(sweep, points, ledger), sweep)}")
        elif options.export == "wandb":
            print(f"Written: {write_agents(sweep, list(trials))}")
        elif options.trial in trials:
            supervisor.run_one(trials[options.trial], supervisor.slots(*limits)[0], sweep.name)
        elif options.trial:
            raise ValueError(f"{sweep.path}: no trial {options.trial}; --dry-run lists them")
        else:
            is_local, ending = options.backend == "local", None
            if not options.report:
                places = (supervisor.slots(*limits), child_process.run) if is_local else supervisor.ray_slots(*limits)
                ending = supervisor.run(sweep, *places)
            ledger = Ledger(sweep.output)
            print(report.write(sweep, plan(sweep, ledger), ledger))
            print(f"Written: {sweep.output / 'sweep.html'}, sweep.csv, sweep.json, best.yaml")
            if ending:
                raise ending


def print_costs(sweep: Sweep, points: Sequence[Point]) -> None:
    """Print the trials with their costs and, for one of them, the commands."""
    rates, n_tags = dry_run.read_rates(), dry_run.vocabulary_size(sweep.base)
    table, flops, hours = Table("trial", "settings", "FLOP", "disk, MB", "hours", box=SIMPLE), 0.0, 0.0
    for point in points:
        flop, time = dry_run.cost(point.config, n_tags, rates)
        disk = point.config.checkpoint_bytes(n_tags) * (point.config.keep_last + 1) / 1e6
        for trial in point.trials:
            table.add_row(trial.id, trial.name, f"{flop:.2e}", f"{disk:,.0f}", "" if time is None else f"{time:.2f}")
            flops, hours = flops + flop, hours + (time or 0)
    show(table)
    known = f"{hours:,.1f} hours here, one after the other" if rates else "time unknown, measure: joytag benchmark all"
    print(f"{table.row_count} {plural(table.row_count, 'trial')}, {flops:.2e} FLOP, {known}; disk is for checkpoints")
    if (confirm := sweep.settings.confirm) is not None:
        count = min(len(points), 1 + confirm.best) * confirm.seeds
        print(f"Then {count:,} more to confirm the best and the base on fresh seeds")
    print("\n".join(map(shlex.join, points[0].trials[0].commands)))


def write_agents(sweep: Sweep, trials: Sequence[str]) -> Path:
    """Write a sweep file for wandb's agents, which run one trial of this sweep each."""
    path, command = sweep.output / "wandb-sweep.yaml", ["joytag", "sweep", "--config", str(sweep.path), "${args}"]
    metric = {"name": f"val_{sweep.settings.metric}", "goal": "maximize"}
    values = {"name": sweep.name, "method": "grid", "metric": metric, "command": command}
    write_text(path, yaml.safe_dump({**values, "parameters": {"trial": {"values": trials}}}, sort_keys=False))
    return path

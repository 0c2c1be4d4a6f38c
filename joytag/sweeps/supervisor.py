"""Run the trials of a sweep to their end, however often it is killed: the run directories and the ledger hold all."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from joytag.core import jsonl, progress
from joytag.core.errors import Exit, ExitCode, Stopped, describe
from joytag.core.lock import InUse, sole_editor, sole_writer
from joytag.core.signals import Interrupts
from joytag.core.terminal import plural, print
from joytag.models import checkpoint
from joytag.sweeps.config import SAMPLERS, Sweep, Trial
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.runners import Runner, Start
from joytag.sweeps.search import Labels, Proposer, draw, grid
from joytag.training.tracker import LOG

POLL = 0.1  # seconds between two looks at the processes
LOOK = 2.0  # seconds between two looks at the logs
ELSEWHERE = 10.0  # seconds until a trial that another process runs is tried again
DISK_FULL = re.compile(r"free some (space|of your quota)")  # in the last line of a command whose disk is full
METRICS = "metrics.json"
GROUP = "WANDB_RUN_GROUP"


def points(sweep: Sweep, ledger: Ledger) -> list[Labels]:
    """Return the points that are known so far, without the base."""
    count = sweep.settings.trials or 0
    if sweep.settings.search == "grid":
        return grid(sweep.axes, sweep.base.seed)
    if sweep.settings.search == "random":
        distinct: dict[str, Labels] = {}
        for labels in (draw(sweep.axes, sweep.base.seed, number) for number in range(20 * count)):
            if len(distinct) < count:
                distinct.setdefault(sweep.trials(labels, [0])[0].point, labels)
        return list(distinct.values())
    return [row["labels"] for row in ledger.events("proposed") if sweep.has(row["labels"])][:count]


def plan(sweep: Sweep, ledger: Ledger) -> list[Trial]:
    """Return all trials that are known so far, in their order: the base, other points, and those that confirm."""
    trials: dict[str, Trial] = {}
    known = points(sweep, ledger)
    for labels in [{}, *known]:
        trials |= {trial.id: trial for trial in sweep.trials(labels, sweep.seeds("search"))}
    is_chosen = sweep.settings.search in ("grid", "random") or len(known) == sweep.settings.trials
    if sweep.settings.confirm and is_chosen and all(ledger.is_over(name) for name in trials):
        search = list(trials.values())
        for point in [search[0].point, *best(search, ledger, sweep.settings.confirm.best)]:
            labels = next(trial.labels for trial in search if trial.point == point)
            trials |= {trial.id: trial for trial in sweep.trials(labels, sweep.seeds("confirm"), "confirm")}
    return list(trials.values())


def best(trials: Sequence[Trial], ledger: Ledger, n: int) -> list[str]:
    """Return the points with the highest means of those that are done on all seeds, without the base, best first."""
    means = {}
    for point in dict.fromkeys(trial.point for trial in trials if trial.changes):
        runs = [trial.id for trial in trials if trial.point == point and trial.phase == "search"]
        if all(ledger.state(run) == "done" for run in runs):
            means[point] = statistics.mean(ledger.value(run) for run in runs)
    return sorted(means, key=lambda point: -means[point])[:n]


@dataclass
class Running:
    """A trial that runs, with its slot and the lock on it."""

    trial: Trial
    slot: Mapping[str, str]
    runner: Runner
    lock: ExitStack
    since: float = field(default_factory=time.time)


def run(sweep: Sweep, slots: Sequence[Mapping[str, str]], start: Start) -> None:
    """Run all trials that are not over, as many at once as there are slots.

    Raises InUse when another process runs the sweep, Stopped when a signal asked to stop, ValueError when the disk is
    full, and Exit when trials failed. All of them leave what the next call needs.
    """
    with sole_writer(sweep.output), Interrupts() as interrupts, progress.live() as show:
        Supervisor(sweep, slots, start, show).run(interrupts)


def run_one(trial: Trial, slot: Mapping[str, str], start: Start, group: str) -> None:
    """Run a single trial without the ledger; the sweep takes it for done later. Raises InUse, and Exit if it fails."""
    with sole_editor(trial.directory), Interrupts() as interrupts:
        runner = start(trial.commands, {**slot, GROUP: group}, trial.directory.with_suffix(".log"))
        while (code := runner.poll()) is None:
            if interrupts.code:
                runner.stop()
            time.sleep(POLL)
    if code:
        raise Exit(f"{trial.id}: {runner.reason}", code if code > 0 else ExitCode.FAILED)


class Supervisor:
    """The process that starts trials and records what becomes of them; call it with the lock of the sweep."""

    def __init__(
        self, sweep: Sweep, slots: Sequence[Mapping[str, str]], start: Start, show: Callable[[Table], None]
    ) -> None:
        self.sweep, self.start, self.show, self.ledger = sweep, start, show, Ledger(sweep.output)
        self.free, self.running, self.elsewhere = list(slots), list[Running](), dict[str, float]()
        self.slots, self.full, self.planned, search = len(slots), "", 0, sweep.settings.search
        self.proposer = Proposer(search, sweep.axes, sweep.base.seed) if search in SAMPLERS else None
        self.ledger.append("called")
        self._replan()
        for trial in self.trials:
            if self.ledger.state(trial.id) == "done" and not (trial.results / METRICS).exists():
                self.ledger.append("lost", trial.id)

    def run(self, interrupts: Interrupts) -> None:
        """Run until all is over, or something asks to stop."""
        looked = 0.0
        try:
            while not interrupts.code and not self.full:
                for running in [*self.running]:
                    if (code := running.runner.poll()) is not None:
                        self._finish(running, code)
                self._replan()
                if time.time() - looked > LOOK:
                    looked = time.time()
                    self._look()
                if not self._begin() and not self.running and not self.elsewhere:
                    break
                time.sleep(POLL)
        finally:
            self._end()
        self._report(interrupts.code)

    def _replan(self) -> None:
        """Bring the list of trials and the sampler up to date with the ledger."""
        if len(self.ledger.rows) != self.planned:
            self.planned, self.trials = len(self.ledger.rows), plan(self.sweep, self.ledger)
            if self.proposer:
                self.proposer.feed(self.ledger.rows, self._runs)

    def _runs(self, labels: Labels) -> list[str]:
        seeds = self.sweep.seeds("search")
        return [trial.id for trial in self.sweep.trials(labels, seeds)] if self.sweep.has(labels) else []

    def _record(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Append to the ledger; where that fails, the sweep stops, and the next call looks at the trial again."""
        try:
            self.ledger.append(event, trial, **details)
        except OSError as error:
            self.full = describe(error)

    def _begin(self) -> bool:
        """Start what fits into the free slots; returns whether a trial was started."""
        began = False
        while self.free and not self.full:
            trial = self._next()
            if trial is None:
                break
            began = self._start(trial) or began
        return began

    def _next(self) -> Trial | None:
        """Return the next trial to start, proposing a point if there is none and the search goes on."""
        busy = {running.trial.id for running in self.running}
        now, waiting = time.time(), []
        for trial in self.trials:
            if trial.id not in busy and not self.ledger.is_over(trial.id) and now >= self.elsewhere.get(trial.id, 0):
                waiting.append((len(self.ledger.failures(trial.id)), trial))
        if waiting:
            return min(waiting, key=lambda pair: pair[0])[1]
        if self.proposer and len(self.proposer.trials) < (self.sweep.settings.trials or 0):
            self._record("proposed", labels=self.proposer.propose())
            self._replan()
            return self._next()
        return None

    def _start(self, trial: Trial) -> bool:
        """Start a trial in a free slot, unless another process runs it."""
        lock = ExitStack()
        try:
            lock.enter_context(sole_editor(trial.directory))
        except InUse as error:
            if trial.id not in self.elsewhere:
                print(f"{trial.id}  {error}")
            self.elsewhere[trial.id] = time.time() + ELSEWHERE
            return False
        self.elsewhere.pop(trial.id, None)
        slot = self.free.pop(0)
        self._record("started", trial.id, phase=trial.phase, settings=trial.describe())
        environment = {**slot, GROUP: self.sweep.name}
        runner = self.start(trial.commands, environment, trial.directory.with_suffix(".log"))
        self.running.append(Running(trial, slot, runner, lock))
        print(f"{trial.id}  started   {trial.describe()}", flush=True)
        return True

    def _finish(self, running: Running, code: int) -> None:
        """Record how a trial ended, and free its slot."""
        self.running.remove(running)
        self.free.append(running.slot)
        running.lock.close()
        trial, reason, row = running.trial, running.runner.reason, dict[str, Any]()
        if self.ledger.end(trial.id):  # it was stopped early
            return
        event, value = "failed", None
        if code == 0:
            try:
                value = read_metric(trial, self.sweep.settings.metric)
                event, row = "ended", {"outcome": "done", "value": value}
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = f"{trial.results / METRICS}: {error!r}"
        elif code == ExitCode.DIVERGED:
            event, row = "ended", {"outcome": "diverged", "value": None, "reason": reason}
        elif DISK_FULL.search(reason):
            event, self.full = "interrupted", reason
        elif code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED):
            event = "interrupted"
        row = row or {"reason": reason}
        said = f"{self.sweep.settings.metric} {value:.4f}" if value is not None else reason
        print(f"{trial.id}  {row.get('outcome', event):<9} {said}", flush=True)
        self._record(event, trial.id, **row, seconds=round(time.time() - running.since, 1))
        if event == "ended":
            self._prune()

    def _prune(self) -> None:
        """Remove the checkpoints of points that are over and are not among the best."""
        if self.sweep.settings.keep_checkpoints == "all":
            return
        confirm = self.sweep.settings.confirm
        kept = best(self.trials, self.ledger, confirm.best if confirm else 1)
        for point in {trial.point for trial in self.trials} - {*kept}:
            runs = [trial for trial in self.trials if trial.point == point]
            if all(self.ledger.end(run.id) for run in runs):
                for trial in runs:
                    shutil.rmtree(trial.directory / checkpoint.DIRECTORY, ignore_errors=True)

    def _end(self) -> None:
        """Ask all that runs to save, and wait for it."""
        for running in self.running:
            running.runner.stop()
        while self.running:
            for running in [*self.running]:
                if (code := running.runner.poll()) is not None:
                    self._finish(running, ExitCode.REQUEUE if code < 0 else code)
            time.sleep(POLL)

    def _look(self) -> None:
        """Show how far the trials are."""
        over = [trial for trial in self.trials if self.ledger.is_over(trial.id)]
        seconds = [row["seconds"] for row in self.ledger.events("ended") if row["outcome"] == "done"]
        left = (len(self.trials) - len(over)) * statistics.mean(seconds) / self.slots / 60 if seconds else None
        title = f"{self.sweep.name}: {len(self.running)} running, {len(over)} of {len(self.trials)} over"
        if values := [(self.ledger.value(trial.id), trial.describe()) for trial in over]:
            title += ", best {:.4f} ({})".format(*max(values))
        table = Table(box=SIMPLE, title=title + (f", about {left:.0f} min left" if left is not None else ""))
        for name in ("trial", "settings", "samples", self.sweep.settings.metric):
            table.add_column(name)
        for running in self.running:
            log = jsonl.read(running.trial.directory / LOG)
            curve = [row[key] for row in log if (key := f"val_{self.sweep.settings.metric}") in row]
            samples = f"{log[-1]['samples']:,}" if log else ""
            table.add_row(running.trial.id, running.trial.describe(), samples, f"{curve[-1]:.4f}" if curve else "")
        self.show(table)

    def _report(self, code: int) -> None:
        """Say how it ended. Raises ValueError, Stopped or Exit unless all is well."""
        over = sum(self.ledger.is_over(trial.id) for trial in self.trials)
        if self.full:
            raise ValueError(f"{self.sweep.output}: stopped, nothing is lost: {self.full}")
        if code:
            raise Stopped(f"{self.sweep.output}: stopped with {over} of {len(self.trials)} trials over", code)
        failed = [trial for trial in self.trials if self.ledger.state(trial.id) == "failed"]
        if failed:
            reasons = "; ".join(f"{t.id} ({t.describe()}): {self.ledger.failures(t.id)[-1]}" for t in failed)
            raise Exit(f"{len(failed)} {plural(len(failed), 'trial')} failed, the others are over: {reasons}")


def read_metric(trial: Trial, metric: str) -> float | None:
    """Return a metric of a finished trial, None when it is undefined."""
    headline = json.loads((trial.results / METRICS).read_text(encoding="utf-8"))["headline"]
    value = headline["ranking" if metric == "map" else "fixed"][metric]["value"]
    return None if value is None else float(value)

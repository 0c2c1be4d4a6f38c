"""Run the trials of a sweep to their end, however often it is killed: the run directories and the ledger hold all."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from joytag.core import progress
from joytag.core.errors import Exit, ExitCode, Stopped, describe
from joytag.core.lock import InUse, sole_editor, sole_writer
from joytag.core.signals import Interrupts
from joytag.core.terminal import plural, print
from joytag.models import checkpoint
from joytag.sweeps import results
from joytag.sweeps.config import SAMPLERS, Sweep, Trial
from joytag.sweeps.early_stopping import Curve, decide
from joytag.sweeps.ledger import Ledger
from joytag.sweeps.runners import Local, Remote, Start
from joytag.sweeps.search import Labels, Proposer, draw, grid

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
        drawn = (draw(sweep.axes, sweep.base.seed, number) for number in range(20 * count))
        return list({sweep.trials(labels, [0])[0].point: labels for labels in drawn}.values())[:count]
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
        for point in [search[0].point, *results.best(sweep, search, ledger, sweep.settings.confirm.best)]:
            labels = next(trial.labels for trial in search if trial.point == point)
            trials |= {trial.id: trial for trial in sweep.trials(labels, sweep.seeds("confirm"), "confirm")}
    return list(trials.values())


def leaders(trials: Sequence[Trial], ledger: Ledger, n: int) -> list[str]:
    """Return the points with the highest means in the ledger of those that are done, without the base, best first."""
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
    runner: Local | Remote
    lock: ExitStack
    since: float = field(default_factory=time.time)


def run(sweep: Sweep, slots: Sequence[Mapping[str, str]], start: Start) -> None:
    """Run all trials that are not over, as many at once as there are slots.

    Raises InUse when another process runs the sweep, Stopped when a signal asked to stop, ValueError when the disk is
    full, and Exit when trials failed. All of them leave what the next call needs.
    """
    with sole_writer(sweep.output), Interrupts() as interrupts, progress.live() as show:
        Supervisor(sweep, slots, start, show).run(interrupts)


def run_one(trial: Trial, slot: Mapping[str, str], group: str) -> None:
    """Run a single trial without the ledger; the sweep takes it for done later. Raises InUse, and Exit if it fails."""
    with sole_editor(trial.directory), Interrupts() as interrupts:
        runner = Local(trial.commands, {**slot, GROUP: group}, trial.directory.with_suffix(".log"))
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
        self.held: set[str] = set()  # trials that wait at a rung
        self.free, self.running, self.elsewhere = list(slots), list[Running](), dict[str, float]()
        self.slots, self.full, self.planned, search = len(slots), "", 0, sweep.settings.search
        self.proposer = Proposer(search, sweep.axes, sweep.base.seed) if search in SAMPLERS else None
        self.ledger.append("called")
        self._replan()
        for trial in self.trials:
            if self.ledger.state(trial.id) == "done" and not (trial.results / METRICS).exists():
                self.ledger.append("lost", trial.id)

    def run(self, interrupts: Interrupts) -> None:
        """Run until all is over, or something asks to stop. Raises ValueError, Stopped or Exit unless all is well."""
        looked = 0.0
        while True:
            for running in [*self.running]:
                if (code := running.runner.poll()) is not None:
                    self._finish(running, code)
            self._replan()
            if interrupts.code or self.full:
                for running in self.running:
                    running.runner.stop()
            else:
                self._begin()
            if not self.running and (interrupts.code or self.full or not self._waiting()):
                break
            if time.time() - looked > LOOK:
                looked = time.time()
                self._halve()
                self.show(self._table())
            time.sleep(POLL)
        self._report(interrupts.code)

    def _replan(self) -> None:
        """Bring the list of trials and the sampler up to date with the ledger."""
        if len(self.ledger.rows) != self.planned:
            self.trials = plan(self.sweep, self.ledger)
            known = {point for row in self.ledger.events("planned") for point in row["points"]}
            if new := [p for p in dict.fromkeys(t.point for t in self.trials if t.phase == "search") if p not in known]:
                self._record("planned", points=new)
            self.planned = len(self.ledger.rows)
            if self.proposer:
                self.proposer.feed(self.ledger.rows, self._runs)
            self._halve()

    def _runs(self, labels: Labels) -> list[str]:
        seeds = self.sweep.seeds("search")
        return [trial.id for trial in self.sweep.trials(labels, seeds)] if self.sweep.has(labels) else []

    def _halve(self) -> None:
        """End the points that lose at a rung, and let those wait there that are to be compared with others."""
        settings = self.sweep.settings.stop_early
        if settings is None:
            return
        search = [trial for trial in self.trials if trial.phase == "search"]
        curves, total = {trial.id: self._curve(trial) for trial in search}, self.sweep.samples
        points: dict[str, dict[int, Curve]] = {}
        for trial in search:
            points.setdefault(trial.point, {})[trial.seed] = curves[trial.id]
        planned = [row["points"] for row in self.ledger.events("planned")]
        cohorts = [{point: points[point] for point in row if point in points} for row in planned]
        decisions = decide(cohorts, [rung * total for rung in settings.rungs], settings.keep)
        lost = {row["trial"] for row in self.ledger.events("ended") if row["outcome"] == "stopped"}
        stopped = {**decisions.stopped, **{trial.point: None for trial in search if trial.id in lost}}
        for trial in search:
            if trial.point in stopped and self.ledger.end(trial.id) is None:
                seen = [value for _, value in curves[trial.id] if not math.isnan(value)]
                reason = f"lost at {stopped[trial.point] or 0:,.0f} samples"
                self._record("ended", trial.id, outcome="stopped", value=seen[-1] if seen else None, reason=reason)
                print(f"{trial.id}  stopped   {reason}")
        self.held = {
            trial.id
            for trial in search
            if trial.point in decisions.waiting
            and decisions.waiting[trial.point] <= (curves[trial.id] or [(0, 0)])[-1][0] < total
        }
        for running in self.running:
            if running.trial.id in self.held or self.ledger.end(running.trial.id):
                running.runner.stop()

    def _curve(self, trial: Trial) -> list[tuple[float, float]]:
        """Return a trial's metric by samples, which becomes NaN when it diverges, fails or loses."""
        state, curve = self.ledger.state(trial.id), list(results.curve(trial, self.sweep.settings.metric))
        if state not in ("pending", "running"):
            end = max(self.sweep.samples, *(samples + 1 for samples, _ in curve), 1)
            curve.append((end, curve[-1][1] if state == "done" and curve else math.nan))
        return curve

    def _record(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Append to the ledger; where that fails, the sweep stops, and the next call looks at the trial again."""
        try:
            self.ledger.append(event, trial, **details)
        except OSError as error:
            self.full = describe(error)

    def _waiting(self) -> list[Trial]:
        """Return the trials that are to start, in their order; those that failed before come last."""
        busy = {running.trial.id for running in self.running} | self.held
        waiting = [trial for trial in self.trials if trial.id not in busy and not self.ledger.is_over(trial.id)]
        if not waiting and self.proposer and len(self.proposer.trials) < (self.sweep.settings.trials or 0):
            self._record("proposed", labels=self.proposer.propose())
            self._replan()
            return self._waiting()
        return sorted(waiting, key=lambda trial: len(self.ledger.failures(trial.id)))

    def _begin(self) -> None:
        """Start trials in the free slots, except those that another process runs."""
        for trial in self._waiting() if self.free else []:
            lock = ExitStack()
            if not self.free or time.time() < self.elsewhere.get(trial.id, 0):
                continue
            try:
                lock.enter_context(sole_editor(trial.directory))
            except InUse as error:
                if trial.id not in self.elsewhere:
                    print(f"{trial.id}  {error}")
                self.elsewhere[trial.id] = time.time() + ELSEWHERE
                continue
            self._record("started", trial.id, phase=trial.phase, settings=trial.describe())
            print(f"{trial.id}  started   {trial.describe()}", flush=True)
            environment = {**(slot := self.free.pop(0)), GROUP: self.sweep.name}
            runner = self.start(trial.commands, environment, trial.directory.with_suffix(".log"))
            self.running.append(Running(trial, slot, runner, lock))

    def _finish(self, running: Running, code: int) -> None:
        """Record how a trial ended, and free its slot."""
        self.running.remove(running)
        self.free.append(running.slot)
        running.lock.close()
        trial, reason, row = running.trial, running.runner.reason, dict[str, Any]()
        if self.ledger.end(trial.id):  # it was stopped early
            self._prune()
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
        elif code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED, -signal.SIGTERM):
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
        kept = leaders(self.trials, self.ledger, confirm.best if confirm else 1)
        for point in {trial.point for trial in self.trials} - {*kept}:
            runs = [trial for trial in self.trials if trial.point == point]
            if all(self.ledger.end(run.id) for run in runs):
                for trial in runs:
                    shutil.rmtree(trial.directory / checkpoint.DIRECTORY, ignore_errors=True)

    def _table(self) -> Table:
        """Return how far the trials are."""
        over, metric = [trial for trial in self.trials if self.ledger.is_over(trial.id)], self.sweep.settings.metric
        seconds = [row["seconds"] for row in self.ledger.events("ended") if "seconds" in row]
        left = (len(self.trials) - len(over)) * statistics.mean(seconds or [0]) / self.slots / 60
        value, name = max(((self.ledger.value(trial.id), trial.describe()) for trial in over), default=(0, ""))
        title = f"{self.sweep.name}: {len(over)} of {len(self.trials)} trials over, best {value:.4f} {name}"
        table = Table("trial", "settings", "samples", metric, box=SIMPLE, title=f"{title}, about {left:.0f} min left")
        for trial in (running.trial for running in self.running):
            samples, value = (self._curve(trial) or [(0, 0)])[-1]
            table.add_row(trial.id, trial.describe(), f"{samples:,}", f"{value:.4f}")
        return table

    def _report(self, code: int) -> None:
        """Raise ValueError, Stopped or Exit unless all is well."""
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

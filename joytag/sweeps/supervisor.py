"""Run the trials of a sweep to their end, however often it is killed: the run directories and the ledger hold all."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from joytag.core import child_process, cluster, devices, progress
from joytag.core.errors import Exit, ExitCode, Stopped, describe
from joytag.core.lock import InUse, sole_editor, sole_writer
from joytag.core.signals import CODES, Interrupts
from joytag.core.terminal import plural, print
from joytag.evaluation import predictions
from joytag.models import checkpoint
from joytag.sweeps import results, search
from joytag.sweeps.config import SAMPLERS, Labels, StopEarly, Sweep, Trial
from joytag.sweeps.early_stopping import Curve, decide
from joytag.sweeps.ledger import ENDS, Ledger

POLL = 0.1  # seconds between two looks at the processes
LOOK = 2.0  # seconds between two looks at the logs
ELSEWHERE = 10.0  # seconds until a trial that another process runs is tried again
DISK_FULL = re.compile(r"free some (space|of your quota)")  # in the last line of a command whose disk is full
INTERRUPTED = (ExitCode.REQUEUE, ExitCode.INTERRUPTED, -signal.SIGTERM)
GROUP = "WANDB_RUN_GROUP"
Slot = Mapping[str, str]  # the environment of a trial: its share of the machine
Start = Callable[[child_process.Commands, Slot, Path], Coroutine[Any, Any, tuple[int, str]]]


def slots(jobs: int | None, processes: int, on_cpu: bool) -> list[Slot]:
    """Return the environment of each trial that may run at once: its GPUs, and its share of the threads.

    There is one a GPU (or a group of `processes`), without GPUs one, or as many as `jobs`. Raises ValueError when
    there are too few GPUs.
    """
    gpus = [] if on_cpu else devices.visible_gpus()
    groups = [",".join(gpus[i : i + processes]) for i in range(0, len(gpus) - processes + 1, processes)]
    if gpus and not groups:
        raise ValueError(f"processes: {processes} GPUs a trial, but there are {len(gpus)}")
    count = jobs or max(1, len(groups))
    shared = {"OMP_NUM_THREADS": str(max(1, devices.cores() // count // processes))}
    return [shared | ({"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} if groups else {}) for i in range(count)]


def ray_slots(jobs: int | None, processes: int, on_cpu: bool) -> tuple[list[Slot], Start]:
    """Return one slot for each trial that the cluster can run at once, or `jobs`, and how to start one there."""
    total = cluster.connect()
    gpus, cores = 0 if on_cpu else int(total.get("GPU", 0)), int(total["CPU"])
    count = jobs or max(1, (gpus or cores) // processes)
    threads = max(1, cores // count)
    resources = {"num_gpus": processes} if gpus else {"num_cpus": threads}
    environment = {"OMP_NUM_THREADS": str(max(1, threads // processes))}
    return [environment] * count, partial(cluster.run, resources)


def run(sweep: Sweep, slots: list[Slot], start: Start) -> Exit | None:
    """Run all trials that are not over, as many at once as there are slots.

    Returns Stopped when a signal asked to stop, Exit when trials failed, None when all is well. Raises InUse when
    another process runs the sweep, and ValueError when the disk is full. All leave what the next call needs.
    """
    with sole_writer(sweep.output), Interrupts() as interrupts, progress.live() as show:
        return asyncio.run(Supervisor(sweep, slots, start, show).run(interrupts))


def run_one(trial: Trial, slot: Slot, group: str) -> None:
    """Run a single trial without the ledger; the sweep takes it for done later. Raises InUse, and Exit if it fails."""
    for number in CODES.keys() - {signal.SIGINT}:
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))  # at which asyncio cancels what it runs
    with sole_editor(trial.directory):
        log = trial.directory.with_suffix(".log")
        code, reason = asyncio.run(child_process.run(trial.commands, {**slot, GROUP: group}, log))
    if code:
        raise Exit(f"{trial.id}: {reason}", code if code > 0 else ExitCode.FAILED)


class Supervisor:
    """The process that starts trials and records what becomes of them; call it with the lock of the sweep."""

    def __init__(self, sweep: Sweep, slots: list[Slot], start: Start, show: Callable[[Table], None]) -> None:
        self.sweep, self.slots, self.start, self.show, self.ledger = sweep, slots, start, show, Ledger(sweep.output)
        self.free, self.tasks = asyncio.Queue[Slot](), dict[str, asyncio.Task[None]]()
        self.held, self.full = set[str](), ""
        for slot in slots:
            self.free.put_nowait(slot)
        if sweep.settings.search in SAMPLERS:
            search.distributions(sweep.axes)  # raises ModuleNotFoundError now rather than in the night
        points = search.plan(sweep, self.ledger)
        results.check_datasets(points, self.ledger)
        self.ledger.append("called")
        for trial in (trial for point in points for trial in point.trials):
            if self.ledger.state(trial.id) == "done" and not (trial.results / predictions.DIRECTORY).exists():
                self.ledger.append("lost", trial.id)
        self._look()

    async def run(self, interrupts: Interrupts) -> Exit | None:
        """Run until all is over, or something asks to stop; see `run`."""
        while True:
            is_ending = bool(interrupts.code or self.full)
            if not is_ending:
                self._begin()
            for name, task in [*self.tasks.items()]:
                if task.done():
                    del self.tasks[name]
                    with suppress(asyncio.CancelledError):
                        task.result()
                elif (is_ending or name in self.held or self.ledger.is_over(name)) and not task.cancelling():
                    task.cancel()
            is_up_to_date = self.seen == len(self.ledger.rows)
            if not is_up_to_date or time.time() - self.looked > LOOK:
                self._look()
            if is_up_to_date and not self.tasks and (is_ending or not self._waiting()):
                return self._ending(interrupts.code)
            await asyncio.sleep(POLL)

    def _begin(self) -> None:
        """Queue the trials that wait for slots; while that leaves some of them free, ask the sampler for more."""
        for trial in self._waiting():
            self.tasks[trial.id] = asyncio.create_task(self._run(trial))
        settings = self.sweep.settings
        is_open = settings.search in SAMPLERS and len(search.proposed(self.sweep, self.ledger)) < (settings.trials or 0)
        if is_open and len(self.tasks) < len(self.slots):
            axes, seed, rows = self.sweep.axes, self.sweep.base.seed, self.ledger.rows
            self._record("proposed", labels=search.propose(settings.search, axes, seed, rows, self._values))

    async def _run(self, trial: Trial) -> None:
        """Run a trial once a slot is free and no other process runs it, and record how it ended."""
        log = trial.directory.with_suffix(".log")
        for attempt in itertools.count():
            slot, begun = await self.free.get(), time.time()
            try:
                with sole_editor(trial.directory):
                    self._record("started", trial.id, settings=trial.name)
                    print(f"{trial.id}  started   {trial.name}", flush=True)
                    code, reason = await self.start(trial.commands, {**slot, GROUP: self.sweep.name}, log)
                break
            except InUse as error:
                if attempt == 0:
                    print(f"{trial.id}  {error}")
            finally:
                self.free.put_nowait(slot)
            await asyncio.sleep(ELSEWHERE)
        if not self.ledger.is_over(trial.id):  # else it was stopped early
            self._finish(trial, code, reason, seconds=round(time.time() - begun, 1))

    def _finish(self, trial: Trial, code: int, reason: str, **details: Any) -> None:
        """Record how a trial ended."""
        event = "diverged" if code == ExitCode.DIVERGED else "interrupted" if code in INTERRUPTED else "failed"
        if event == "failed" and DISK_FULL.search(reason):
            event, self.full = "interrupted", reason
        if code == ExitCode.DONE:
            try:
                value = results.score(self.sweep, trial)
                event, reason, details = "done", f"{value:.4f}", {**details, "value": value, "of": self.sweep.measure}
            except (OSError, ValueError) as error:
                reason = str(error)
        print(f"{trial.id}  {event:<9} {reason}", flush=True)
        self._record(event, trial.id, reason=reason, **details)

    def _look(self) -> None:
        """Bring up to date what follows from the ledger and the logs: the trials, who waits, what can be removed."""
        self.looked, self.seen, self.points = time.time(), len(self.ledger.rows), search.plan(self.sweep, self.ledger)
        self.trials = [trial for point in self.points for trial in point.trials]
        if self.sweep.settings.stop_early:
            self._halve(self.sweep.settings.stop_early)
        if self.sweep.settings.keep_checkpoints == "best":
            self._prune()
        self.show(self._table())

    def _halve(self, settings: StopEarly) -> None:
        """End the points that lose at a rung, and let those wait there that are to be compared with others."""
        total = sum(stage.samples for stage in self.sweep.base.plan())
        curves = {trial.id: self._curve(trial) for trial in self.trials}
        points = {point.id: {trial.seed: curves[trial.id] for trial in point.search} for point in self.points}
        came_alone = self.sweep.settings.search in SAMPLERS
        cohorts = [{point: seeds} for point, seeds in points.items()] if came_alone else [points]
        decisions, self.held = decide(cohorts, [rung * total for rung in settings.rungs], settings.keep), set()
        for point in self.points:
            has_lost = any(self.ledger.state(trial.id) == "stopped" for trial in point.search)
            for trial in point.search:
                at, value = (curves[trial.id] or [(0, 0.0)])[-1]
                if (has_lost or point.id in decisions.stopped) and self.ledger.state(trial.id) not in ENDS:
                    reason = f"lost at {decisions.stopped.get(point.id, 0):,.0f} samples"
                    self._record("stopped", trial.id, value=value, reason=reason)
                    print(f"{trial.id}  stopped   {reason}")
                elif decisions.waiting.get(point.id, np.inf) <= at < total:
                    self.held.add(trial.id)

    def _curve(self, trial: Trial) -> Curve:
        """Return a trial's metric by samples, which becomes NaN when it diverges, fails or loses."""
        curve = results.curve(self.sweep, trial)
        if not self.ledger.is_over(trial.id):
            return curve
        is_done = curve and self.ledger.state(trial.id) == "done"
        return [*curve, (np.inf, curve[-1][1] if is_done else np.nan)]

    def _prune(self) -> None:
        """Remove the checkpoints of points that are over and are not among the best."""
        best = results.best(self.sweep, self.points, self.ledger)
        for point in self.points:
            has_ended = all(self.ledger.state(t.id) in ENDS and t.id not in self.tasks for t in point.trials)
            for trial in point.trials if has_ended and point not in best else ():
                shutil.rmtree(trial.directory / checkpoint.DIRECTORY, ignore_errors=True)

    def _record(self, event: str, trial: str | None = None, **details: Any) -> None:
        """Append to the ledger; where that fails, the sweep stops, and the next call looks at the trial again."""
        try:
            self.ledger.append(event, trial, **details)
        except OSError as error:
            self.full = describe(error)

    def _waiting(self) -> list[Trial]:
        """Return the trials that are to start, in their order."""
        return [t for t in self.trials if not (t.id in self.tasks or t.id in self.held or self.ledger.is_over(t.id))]

    def _values(self, labels: Labels) -> Mapping[str, float]:
        """Return the values of a point's trials, {} when the point left the axes since."""
        trials = self.sweep.point(labels).search if self.sweep.has(labels) else []
        return {trial.id: results.value(self.sweep, trial, self.ledger) for trial in trials}

    def _table(self) -> Table:
        """Return how far the trials are."""
        values = {t.name: results.value(self.sweep, t, self.ledger) for t in self.trials if self.ledger.is_over(t.id)}
        seconds = [row["seconds"] for row in self.ledger.events(*ENDS) if "seconds" in row]
        left = (len(self.trials) - len(values)) * np.mean(seconds or [0]) / len(self.slots) / 60
        best = max(values, key=values.__getitem__, default="")
        title = f"{self.sweep.name}: {len(values)} of {len(self.trials)} trials over, about {left:.0f} min left"
        title += f", best {values[best]:.4f} {best}" if best else ""
        table = Table("trial", "settings", "samples", self.sweep.settings.metric, box=SIMPLE, title=title)
        for trial in self.trials:
            if self.ledger.state(trial.id) == "running":
                samples, value = (self._curve(trial) or [(0, 0)])[-1]
                table.add_row(trial.id, trial.name, f"{samples:,}", f"{value:.4f}")
        return table

    def _ending(self, code: int) -> Exit | None:
        """Return why not all is well. Raises ValueError when the disk is full."""
        if self.full:
            raise ValueError(f"{self.sweep.output}: stopped, nothing is lost: {self.full}")
        if code:
            over = sum(self.ledger.is_over(trial.id) for trial in self.trials)
            return Stopped(f"{self.sweep.output}: stopped with {over} of {len(self.trials)} trials over", code)
        failed = [trial for trial in self.trials if self.ledger.state(trial.id) == "failed"]
        reasons = "; ".join(f"{t.id} ({t.name}): {self.ledger.failures[t.id][-1]}" for t in failed)
        what = f"{len(failed)} {plural(len(failed), 'trial')} failed, the others are over: {reasons}"
        return Exit(what) if failed else None

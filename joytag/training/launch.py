"""Start or resume a run, on one process or several."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from joytag.core import devices, distributed
from joytag.core.errors import Exit, ExitCode
from joytag.core.lock import sole_writer
from joytag.core.spinning import sleeping_when_busy
from joytag.core.terminal import print
from joytag.data import decoders, loader
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.training import micro_batch, schedule, tracker
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import load_state
from joytag.training.trainer import train


class HasCheckpoints(ValueError):
    """Raised when a run would overwrite the checkpoints or the release in its directory."""


def start(config: RunSettings, resume: str | None) -> None:
    """Train from the start or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Only says so when the run is finished already.

    Raises ValueError, before anything is written, when dataset, device or checkpoint cannot be used, when disk or
    shared memory are too small, or when another process writes to the run's directory (InUse); Exit when the run ends
    before its last stage does.
    """
    dataset = Dataset.open(Path(config.data.directory))
    device = devices.pick_device(config.device)
    width = config.model.d_model if config.model.timm is None else 0
    run = Run(config, dataset, device, devices.pick_dtype(config.precision, device, width))
    if device.type == "cpu":
        devices.keep_memory()
    with distributed.process_group(device, config.timeout), decoders.worker_errors(), ExitStack() as stack:
        distributed.run_on_rank_zero(lambda: stack.enter_context(sole_writer(Path(config.output))))
        checkpoint_path = starting_point(run, resume)
        if run.is_finished:
            if checkpoint_path is not None:
                load_state(checkpoint_path, run)  # checks that it is the same run
            if distributed.rank() == 0:
                print(f"{run.release}: the run is finished; nothing to do")
            return
        distributed.run_on_rank_zero(lambda: check_disk(run, checkpoint_path))
        run = micro_batch.resolve(run)
        distributed.run_on_rank_zero(lambda: check_shared_memory(run))
        # A teacher knows what its tags look like without images.
        if distributed.rank() == 0 and not config.distill and (lacking := dataset.tags.describe_lacking()):
            print(f"{dataset.directory}: {lacking}")
        stack.enter_context(sleeping_when_busy())
        if distributed.rank() == 0:
            done = "" if checkpoint_path is None else f", {int(checkpoint_path.name):,} of them done"
            print(f"{config.output}: {schedule.total(run.stages):,} samples{done}, on {device}", flush=True)
        try:
            train(run, checkpoint_path)
        except Exit as end:
            if end.code != ExitCode.FAILED:  # all processes end; the launcher kills the others when the first is gone
                distributed.barrier()
            raise


def starting_point(run: Run, resume: str | None) -> Path | None:
    """Return the checkpoint to resume from, if any; a job that was restarted resumes from its own newest.

    Raises HasCheckpoints when the run's directory holds checkpoints, or newer ones than the one to resume from, and
    ValueError when another program's log is there.
    """
    tracker.check_logs(Path(run.config.output))
    checkpoints = checkpoint.checkpoints(run.root)
    if resume == "auto" or (checkpoints and distributed.was_restarted()):
        return checkpoint.newest(run.root)
    if resume is None:
        if checkpoints:
            raise HasCheckpoints(f"{run.root}: holds checkpoints")
        if run.is_finished:
            raise HasCheckpoints(f"{run.release}: holds a finished run")
        return None
    if checkpoints and checkpoints[-1].name > Path(resume).name:
        raise HasCheckpoints(f"{run.root}: holds newer checkpoints than {resume}")
    return Path(resume)


def check_disk(run: Run, resume: Path | None) -> None:
    """Raise ValueError when the checkpoints to come would not fit on the disk; quotas are not known.

    One is written before the oldest is removed.
    """
    config = run.config
    left = schedule.total(run.stages) - (0 if resume is None else int(resume.name))
    saves = max(1, -(-left // config.every.checkpoint))
    number = max(1, min(saves, config.keep_last + 1 - len(checkpoint.checkpoints(run.root))))
    need = number * config.checkpoint_bytes(len(run.dataset.tags))
    disk = shutil.disk_usage(config.output)
    if disk.total and disk.free < need:  # some network file systems report no sizes
        raise ValueError(
            f"{run.root}: needs {need / 1e6:,.1f} MB for {number} checkpoint{'s' if number > 1 else ''} more, but the "
            f"disk has {disk.free / 1e6:,.1f} MB free; free some space, choose another output, or lower keep_last"
        )


def check_shared_memory(run: Run) -> None:
    """Raise ValueError when batches of training and, beside them, of validation do not fit in the shared memory."""
    held = run.workers * loader.HELD * distributed.local_size()
    batches = held + min(held, -(-len(run.dataset.posts("validation")) // run.micro_batch))
    size = max(stage.image_size for stage in run.stages)
    decoders.check_shared_memory(batches, run.micro_batch, size, len(run.dataset.tags))

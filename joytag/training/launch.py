"""Start or resume a run, on one process or several."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from joytag.core import devices, distributed
from joytag.core.errors import Exit, ExitCode
from joytag.core.lock import sole_writer
from joytag.core.terminal import print
from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.training import micro_batch, tracker
from joytag.training.config import RunSettings
from joytag.training.run import Run
from joytag.training.state import load_state
from joytag.training.trainer import train


class HasCheckpoints(ValueError):
    """Raised when a run would overwrite the checkpoints or the release in its directory."""


def start(config: RunSettings, resume: str | None) -> None:
    """Train from the start or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Only says so when the run is finished already.

    Raises ValueError, before anything is written, when dataset, device or checkpoint cannot be used or when another
    process writes to the run's directory (InUse); Exit when the run ends before its last stage does.
    """
    dataset = Dataset.open(Path(config.data.directory))
    device = devices.pick_device(config.device)
    width = config.model.d_model if config.model.timm is None else 0
    run = Run(config, dataset, device, devices.pick_dtype(config.precision, device, width))
    if device.type == "cpu":
        devices.keep_memory()
    with distributed.process_group(device, config.timeout), loader.worker_errors(), ExitStack() as stack:
        distributed.run_on_rank_zero(lambda: stack.enter_context(sole_writer(Path(config.output))))
        checkpoint_path = starting_point(run, resume)
        if run.is_finished:
            if checkpoint_path is not None:
                load_state(checkpoint_path, run)  # checks that it is the same run
            if distributed.rank() == 0:
                print(f"{run.release}: the run is finished; nothing to do")
            return
        try:
            train(micro_batch.resolve(run), checkpoint_path)
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

"""Start or resume a run, alone or among several processes."""

from __future__ import annotations

from pathlib import Path

from joytag.core import devices, distributed
from joytag.core.errors import Exit
from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.training.config import RunSettings
from joytag.training.micro_batch import settled
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
)
from joytag.training.trainer import GO_ON, train


def start(config: RunSettings, resume: str | None) -> TrainState:
    """Train from the start, or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Raises ValueError before anything is written when the dataset, the device or the checkpoint is not fit.
    """
    dataset = Dataset.open(Path(config.data.directory))
    device = devices.pick_device(config.device)
    width = config.model.d_model if config.model.timm is None else 0
    run = Run(config, dataset, device, devices.pick_dtype(config.precision, device, width))
    if device.type == "cpu":
        devices.keep_memory()
    try:
        with distributed.process_group(device, config.timeout), loader.worker_errors():
            checkpoint_path = starting_point(run, resume)
            try:
                return train(settled(run), checkpoint_path)
            except Exit as end:
                if end.code != 1:  # all end; the first, which has the most to tidy up, is not left behind
                    distributed.barrier()
                raise
    except distributed.ProcessLost as error:
        raise Exit(f"{error}; {GO_ON}") from None


def starting_point(run: Run, resume: str | None) -> Path | None:
    """The checkpoint to go on from, if any; a job that was restarted goes on by itself.

    Raises ValueError when the run has checkpoints that would be overwritten.
    """
    if resume == "auto" or (resume is None and distributed.was_restarted()):
        return checkpoint.newest(run.root)
    found = checkpoint.checkpoints(run.root)
    if resume is None and found:
        raise ValueError(f"{run.root}: holds checkpoints; add --resume auto, or output=DIR for a new run")
    if resume is not None and found and found[-1].name > Path(resume).name:
        raise ValueError(f"{run.root}: holds newer checkpoints than {resume}; add output=DIR for a new run")
    return None if resume is None else Path(resume)

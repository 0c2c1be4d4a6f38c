"""The state of a run: created from settings, saved to a checkpoint, read from one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from joytag.core import devices, distributed
from joytag.core.errors import WeightsDiverged, first_line
from joytag.core.settings import flatten
from joytag.core.terminal import print
from joytag.models import checkpoint
from joytag.models.architectures import Model
from joytag.training import optimizers, transfer
from joytag.training.config import AS_NAMES, BRANCHING, RESUMING
from joytag.training.run import Run

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

# The first scale of fp16 gradients. At torch's 2**16 a quarter of the blocks' gradients underflow to 0 in B/16 at
# 448 px, and all of them behind the small layer scales that more than 18 blocks choose; LAMB then only decays these
# weights. A scale that is too large halves itself within a few steps.
FIRST_SCALE = 2.0**26


class RunChanged(ValueError):
    """Raised for a checkpoint of a run whose settings, images or labels were others; each is named."""


class NeedsBranch(RunChanged):
    """Raised when only settings differ that a run may change that branches off."""


@dataclass
class TrainState:
    """All that a run needs to resume."""

    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None = None  # of the weights
    samples: int = 0  # trained on so far, over all stages
    skipped: int = 0  # besides those: the samples of steps without finite gradients, over all stages
    validated: int = 0  # `samples` at the last validation
    matmul: str | None = None  # the library of float32 products so far

    @property
    def released(self) -> Model:
        """The model with the weights that are validated and published."""
        return self.model if self.average is None else self.average.module

    @property
    def drawn(self) -> int:
        """The samples drawn from the data so far, trained on or skipped; they number the checkpoints."""
        return self.samples + self.skipped

    def advance(self, samples: int, skipped: bool) -> None:
        """Count the samples of a step."""
        if skipped:
            self.skipped += samples
        else:
            self.samples += samples

    def set_image_size(self, size: int) -> None:
        """Continue at another image size, in pixels."""
        for model in {self.model, self.released}:
            model.set_image_size(size)


def fresh_optimizer(model: Model, run: Run) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    """Create an optimizer and a gradient scaler without history, as at the start of a stage that restarts."""
    settings = run.config.optimizer
    parameters: Any = [p for p in model.parameters() if p.requires_grad]
    if settings.layer_decay < 1:
        parameters = model.layer_groups(settings.layer_decay)
    scaler = torch.amp.GradScaler(run.device.type, FIRST_SCALE, enabled=run.dtype == torch.float16)
    return optimizers.build(parameters, **settings.model_dump(exclude={"clip_norm", "layer_decay"})), scaler


def new_model(run: Run) -> Model:
    """Create the model with its layers' own random weights, as in the original; the same for the same seed."""
    torch.manual_seed(run.config.seed)
    model = run.config.architecture(len(run.dataset.tags), run.stages[0].image_size).build()
    if run.config.model.freeze is not None:
        model.freeze(run.config.model.freeze)
    return model.to(run.device)


def new_state(model: Model, run: Run) -> TrainState:
    """Create the state of a run that begins with this model."""
    average = None
    if run.config.average is not None:
        from timm.utils import ModelEmaV3  # not at the top: importing timm takes longer than importing torch

        average = ModelEmaV3(model, decay=run.config.average)
    return TrainState(model, *fresh_optimizer(model, run), average)


def initial_state(run: Run) -> TrainState:
    """Create the state that a run starts from: random weights, or those of `init_from`.

    The head's biases give each new tag its frequency as score. Otherwise the loss of the many negatives drowns the
    rare positives in the first steps (Lin et al. 2017, section 4.1).
    """
    model = new_model(run)
    model.head.bias.data = run.frequencies.logit().to(model.head.bias)
    if run.config.init_from is not None:
        tags = transfer.carry_over(model, run.dataset.tags.names, *run.load_source())
        if distributed.rank() == 0:
            print(f"{run.config.init_from}: {tags.summary()}")
    return new_state(model, run)


def save_state(state: TrainState, run: Run, required: bool) -> None:
    """Write a checkpoint, on rank 0; call it on all ranks.

    Raises CheckpointError when it cannot be written and is `required`, or the run's first; otherwise only warns. Raises
    WeightsDiverged, on all ranks, when a weight is not finite.
    """
    if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
        raise WeightsDiverged(
            f"{run.root}: the weights are no longer finite after {state.samples} samples; earlier checkpoints are kept"
        )
    failure = ""
    if distributed.rank() == 0:
        tensors, optimizer = checkpoint.pack_optimizer(state.optimizer)
        if state.average is not None:  # which the release part of the checkpoint holds
            tensors |= {f"model.{name}": value for name, value in state.model.state_dict().items()}
        values = {
            "samples": state.samples,
            "skipped": state.skipped,
            "validated": state.validated,
            "matmul": state.matmul,
            "cpu": devices.cpu_name(),
            "scaler": state.scaler.state_dict(),
            "optimizer": optimizer,
            "resume_fingerprint": resume_fingerprint(run),
            "dataset": str(run.dataset.directory),
        }
        keep = run.config.keep_last, run.config.keep_every
        try:
            tags = run.dataset.tags.names
            checkpoint.save(run.root, state.drawn, state.released, tags, run.loss_type, tensors, values, *keep)
        except checkpoint.CheckpointError as error:
            failure = str(error)
            required |= not checkpoint.checkpoints(run.root)  # a run that could never save would train for nothing
    failed, required = distributed.broadcast((bool(failure), required))
    if failed:
        if required:
            raise checkpoint.CheckpointError(failure or "rank 0 could not save a checkpoint")
        if failure:
            warnings.warn(f"{failure}; the run goes on", stacklevel=2)


def resume_fingerprint(run: Run) -> dict[str, dict[str, Any]]:
    """Return what decides what a run learns, as JSON values: its settings, and hashes of what they name."""
    images = {"split": run.dataset.content_hash(run.images), **run.dataset.copies}
    return {
        "settings": flatten(run.config, {RESUMING, AS_NAMES}) | {"precision": str(run.dtype).removeprefix("torch.")},
        "content": {"data.directory": images, "init_from": run.source_hashes},
    }


def load_state(path: Path, run: Run) -> TrainState:
    """Read a checkpoint.

    Raises ValueError when it is damaged, of another vocabulary, architecture or recipe, or of an older version.
    """
    saved, tags, tensors, values = checkpoint.load(path)
    if tags != run.dataset.tags.names:
        raise ValueError(f"{path}: was trained on another vocabulary than {run.dataset.directory}; start a new run")
    _check_fingerprint(path, values, run)
    state = new_state(new_model(run), run)
    weights = {name.removeprefix("model."): tensors.pop(name) for name in [*tensors] if name.startswith("model.")}
    try:
        state.released.load_state_dict(saved.state_dict())
        if state.average is not None:
            state.model.load_state_dict(weights)
        checkpoint.unpack_optimizer(state.optimizer, tensors, values["optimizer"])
        state.scaler.load_state_dict(values["scaler"])
        state.samples, state.skipped, state.validated = (values[k] for k in ("samples", "skipped", "validated"))
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: does not fit the config's model and optimizer ({reason}); start a new run") from None
    state.set_image_size(saved.config.image_size)
    state.matmul, cpu = values.get("matmul"), values.get("cpu", devices.cpu_name())
    if run.device.type == "cpu" and distributed.rank() == 0 and cpu != devices.cpu_name():
        print(f"{path}: was computed on another CPU ({cpu}); from here on products are rounded differently")
    return state


def _check_fingerprint(path: Path, values: dict[str, Any], run: Run) -> None:
    """Raise RunChanged, naming all that differs, when a checkpoint is of another run than this one would resume."""
    now, before = resume_fingerprint(run), values.get("resume_fingerprint")
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise ValueError(
            f"{path}: written by an older version, whose runs cannot be resumed; start a new run with init_from: {path}"
        )
    old, new, absent = before["settings"], now["settings"], "absent"
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key, absent) != new.get(key, absent)]
    contents = [key for key, value in now["content"].items() if value != before["content"].get(key)]
    in_branch = flatten(run.config).keys() - flatten(run.config, {BRANCHING}).keys()
    if not contents and in_branch.issuperset(keys):
        if path.parent.resolve() != run.root.resolve():
            return
        kind: type[RunChanged] = NeedsBranch
    else:
        kind = RunChanged
    differences = [f"{key}: was {old.get(key, absent)} there, is {new.get(key, absent)} now" for key in keys]
    differences += [f"{key}: its content was another" for key in contents]
    if differences:
        raise kind(f"{path}: {', '.join(differences)}")

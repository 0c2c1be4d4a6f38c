"""A run and its state: worked out from settings, made from scratch, saved to and read from a checkpoint."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from joytag.core import distributed
from joytag.core.errors import Exit, ExitCode
from joytag.models import checkpoint, release
from joytag.models.architectures import Model
from joytag.training import optimizers, transfer
from joytag.training.run import Run

# Of fp16 gradients, at first. torch's 2**16 leaves those of the blocks 0, by a quarter in B/16 at 448 px and altogether
# behind the small layer scales of L/14, and LAMB then decays their weights; a scale that is too large halves itself.
FIRST_SCALE = 2.0**26


@dataclass
class TrainState:
    """Everything that a run needs to go on where it was."""

    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None = None  # of the weights
    samples: int = 0  # learned from so far, over all stages
    skipped: int = 0  # beyond those, over all stages: of steps whose gradients were not finite
    validated: int = 0  # the samples at the last validation

    @property
    def released(self) -> Model:
        """The model with the weights that are validated and published."""
        return self.model if self.average is None else self.average.module

    @property
    def drawn(self) -> int:
        """The samples taken from the data so far, learned from or skipped; they number the checkpoints."""
        return self.samples + self.skipped

    def advance(self, samples: int, taken: bool) -> None:
        """Count a step's samples: learned from, or skipped."""
        self.samples += samples * taken
        self.skipped += samples * (not taken)

    def set_image_size(self, size: int) -> None:
        """Go on at an image size."""
        for model in {self.model, self.released}:
            model.set_image_size(size)


def fresh_optimizer(model: Model, run: Run) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    """An optimizer and a gradient scaler without history, as at the start of a stage that restarts."""
    settings = run.config.optimizer
    parameters: Any = [p for p in model.parameters() if p.requires_grad]
    if settings.layer_decay < 1:
        parameters = transfer.layer_groups(model, settings.layer_decay)
    scaler = torch.amp.GradScaler(run.device.type, FIRST_SCALE, enabled=run.dtype == torch.float16)
    return optimizers.build(parameters, **settings.model_dump(exclude={"clip_norm", "layer_decay"})), scaler


def new_model(run: Run) -> Model:
    """The architecture with random weights, the same for the same seed."""
    torch.manual_seed(run.config.seed)
    model = run.config.architecture(len(run.dataset.tags), run.stages[0].image_size).build()
    if run.config.model.freeze is not None:
        model.freeze(run.config.model.freeze)
    return model.to(run.device)


def initial_state(run: Run) -> TrainState:
    """A model that starts by giving each tag its frequency as score, or with the weights of `init_from`.

    Otherwise the rare positives drown in the first steps (Lin et al. 2017, section 4.1).
    """
    model = new_model(run)
    model.head.bias.data = run.frequencies.logit().to(model.head.bias)
    if run.config.init_from is not None:
        fate = transfer.carry_over(model, run.dataset.tags.names, *source(run))
        if distributed.rank() == 0:
            print(f"{run.config.init_from}: " + ", ".join(f"{len(tags):,} tags {what}" for what, tags in fate.items()))
            for what in ("new", "dropped"):
                if fate[what]:
                    print(f"  {what}: {', '.join(fate[what][:10])}{' ...' if len(fate[what]) > 10 else ''}")
    return TrainState(model, *fresh_optimizer(model, run), averaged(model, run))


def averaged(model: Model, run: Run) -> ModelEmaV3 | None:
    """An exponential moving average of the weights, from what they are now on, if one is asked for."""
    return None if run.config.average is None else ModelEmaV3(model, decay=run.config.average)


def source(run: Run) -> tuple[Model, list[str]]:
    """The release that the run starts from, on its device, and its tag names."""
    assert run.config.init_from is not None
    model, tags = release.load(release.locate(run.config.init_from))
    return model.to(run.device), tags


def save_state(state: TrainState, run: Run, required: bool) -> None:
    """Write a checkpoint of the state (on rank 0 alone); if that is not `required`, failing is only warned of.

    Raises CheckpointError, and Exit when the weights have diverged.
    """
    if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
        raise Exit(
            f"{run.root}: the weights are no longer finite after {state.samples} samples; the checkpoints before stay; "
            "branch off one with --resume PATH output=DIR and a lower optimizer.lr",
            ExitCode.DIVERGED,
        )
    failure = ""
    if distributed.rank() == 0:
        tensors, optimizer = checkpoint.pack_optimizer(state.optimizer)
        if state.average is not None:  # which is what the release part of the checkpoint holds
            tensors |= {f"model.{name}": value for name, value in state.model.state_dict().items()}
        facts = {
            "samples": state.samples,
            "skipped": state.skipped,
            "validated": state.validated,
            "scaler": state.scaler.state_dict(),
            "optimizer": optimizer,
            "course": course(run),
        }
        keep = run.config.keep_last, run.config.keep_every
        try:
            tags = run.dataset.tags.names
            checkpoint.save(run.root, state.drawn, state.released, tags, run.loss_type, tensors, facts, *keep)
        except checkpoint.CheckpointError as error:
            failure = str(error)
    if distributed.sums([bool(failure)])[0]:
        if required:
            raise checkpoint.CheckpointError(failure or "rank 0 could not save a checkpoint")
        if failure:
            warnings.warn(f"{failure}; the run goes on", stacklevel=2)


def course(run: Run) -> dict[str, Any]:
    """What decides how a run goes on: it must not change between a checkpoint and its resuming.

    Only the peak rate may, in a run that branches off into a directory of its own.
    """
    chosen = {"seed", "batch_size", "stages", "loss", "average", "init_from"}
    return run.config.model_dump(mode="json", include=chosen) | {
        "optimizer": run.config.optimizer.model_dump(mode="json", exclude={"lr"}),
        "lr": run.config.optimizer.lr,
        "augment": run.config.data.augment,
        "mixup": run.config.data.mixup,
        "dtype": str(run.dtype),
        "freeze": run.config.model.freeze,
        "images": hashlib.sha256(run.images.hashes.tobytes()).hexdigest(),
    }


def load_state(path: Path, run: Run) -> TrainState:
    """Read a checkpoint. Raises ValueError when it is damaged or belongs to another vocabulary or architecture."""
    saved, tags, tensors, facts = checkpoint.load(path)
    if tags != run.dataset.tags.names:
        raise ValueError(f"{path}: was trained on another vocabulary than {run.dataset.directory}; start a new run")
    for key, value in course(run).items():
        before = facts.get("course", {}).get(key)
        if before != value and (key != "lr" or path.parent.resolve() == run.root.resolve()):
            remedy = "add output=DIR to branch off" if key == "lr" else "start a new run"
            raise ValueError(f"{path}: {key}: was {before} there, is {value} now; {remedy}")
    model = new_model(run)
    state = TrainState(model, *fresh_optimizer(model, run), averaged(model, run))
    weights = {name.removeprefix("model."): tensors.pop(name) for name in [*tensors] if name.startswith("model.")}
    try:
        state.released.load_state_dict(saved.state_dict())
        if state.average is not None:
            state.model.load_state_dict(weights)
        checkpoint.unpack_optimizer(state.optimizer, tensors, facts["optimizer"])
        state.scaler.load_state_dict(facts["scaler"])
        state.samples, state.skipped, state.validated = (facts[k] for k in ("samples", "skipped", "validated"))
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: does not fit the config's model and optimizer ({reason}); start a new run") from None
    state.set_image_size(saved.config.image_size)
    return state

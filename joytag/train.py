"""The training loop: `TrainState`, `train_step`, `train`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from joytag import checkpoint, data, distributed, finetune, image, loss, optim, records, release, schedule
from joytag.config import RunSettings
from joytag.evaluate import autocast, evaluate
from joytag.metrics import summarize
from joytag.model import ViT
from joytag.tracker import Tracker


@dataclass
class TrainState:
    """Everything that a run needs to go on where it was."""

    model: ViT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    samples: int = 0  # seen so far, over all stages


@dataclass(frozen=True)
class Run:
    """What stays the same during a run, worked out from its settings."""

    config: RunSettings
    dataset: records.Dataset
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def stages(self) -> list[schedule.Stage]:
        return self.config.plan()

    @property
    def root(self) -> Path:
        return Path(self.config.output) / "checkpoints"

    @property
    def workers(self) -> int:
        workers = self.config.data.workers
        return data.default_workers(self.device, distributed.world_size()) if workers is None else workers

    @property
    def micro_batch(self) -> int:
        share, uneven = divmod(self.config.batch_size, distributed.world_size())
        micro = min(self.config.micro_batch or share, share)
        if uneven or share % micro:
            raise ValueError(
                f"batch_size: {self.config.batch_size} does not divide into micro-batches of {micro} "
                f"on {distributed.world_size()} processes"
            )
        return micro


def fresh_optimizer(model: ViT, run: Run) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    """An optimizer and a gradient scaler without history, as at the start of a stage that restarts."""
    settings = run.config.optimizer
    parameters: Any = [p for p in model.parameters() if p.requires_grad]
    if settings.layer_decay < 1:
        parameters = finetune.layer_groups(model, settings.layer_decay)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    return optim.build(parameters, **settings.model_dump(exclude={"clip_norm", "layer_decay"})), scaler


def new_model(run: Run) -> ViT:
    """The architecture with random weights, the same for the same seed."""
    torch.manual_seed(run.config.seed)
    model = ViT(run.config.vit(len(run.dataset.tags), run.stages[0].image_size))
    if run.config.model.freeze is not None:
        model.freeze(run.config.model.freeze)
    return model.to(run.device)


def initial_state(run: Run) -> TrainState:
    """A model that starts by giving each tag its frequency as score, or with the weights of `init_from`.

    Otherwise the rare positives drown in the first steps (Lin et al. 2017, section 4.1).
    """
    model, tags = new_model(run), run.dataset.tags
    frequency = (tags.counts + 1) / (len(run.dataset.posts("train")) + 2)
    model.head.bias.data = torch.from_numpy(frequency).float().logit().to(run.device)
    if run.config.init_from is not None:
        fate = finetune.carry_over(model, tags.names, *source(run))
        if distributed.rank() == 0:
            print(f"{run.config.init_from}: " + ", ".join(f"{len(tags):,} tags {what}" for what, tags in fate.items()))
    return TrainState(model, *fresh_optimizer(model, run))


def source(run: Run) -> tuple[ViT, list[str]]:
    """The release that the run starts from, on its device, and its tag names."""
    assert run.config.init_from is not None
    model, tags = release.load(release.locate(run.config.init_from))
    return model.to(run.device), tags


def save_state(state: TrainState, run: Run) -> None:
    """Write a checkpoint of the state (on rank 0 alone). Raises ValueError when the weights have diverged."""
    if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
        raise ValueError(
            f"{run.root}: the weights are no longer finite after {state.samples} samples; the checkpoints before "
            "stay; lower optimizer.lr"
        )
    if distributed.rank() == 0:
        tensors, facts = checkpoint.pack_optimizer(state.optimizer)
        facts = {
            "samples": state.samples,
            "scaler": state.scaler.state_dict(),
            "optimizer": facts,
            "course": course(run),
        }
        loss_type = release.LOSS_TYPES[run.config.loss.name]
        tags, keep = run.dataset.tags.names, run.config.keep_last
        checkpoint.save(run.root, state.samples, state.model, tags, loss_type, tensors, facts, keep)
    distributed.barrier()


def course(run: Run) -> dict[str, Any]:
    """What decides how a run goes on: it must not change between a checkpoint and its resuming."""
    config = run.config.model_dump(mode="json", include={"seed", "batch_size", "stages", "optimizer", "loss"})
    return config | {
        "augment": run.config.data.augment,
        "dtype": str(run.dtype),
        "freeze": run.config.model.freeze,
    }


def load_state(path: Path, run: Run) -> TrainState:
    """Read a checkpoint. Raises ValueError when it is damaged or belongs to another vocabulary or architecture."""
    saved, tags, tensors, facts = checkpoint.load(path)
    if tags != run.dataset.tags.names:
        raise ValueError(f"{path}: was trained on another vocabulary than {run.dataset.directory}; start a new run")
    for key, value in course(run).items():
        before = facts.get("course", {}).get(key)
        if before != value:
            raise ValueError(f"{path}: {key}: was {before} there, is {value} now; start a new run")
    model = new_model(run)
    state = TrainState(model, *fresh_optimizer(model, run))
    try:
        state.model.load_state_dict(saved.state_dict())
        checkpoint.unpack_optimizer(state.optimizer, tensors, facts["optimizer"])
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: does not fit the config's model and optimizer ({reason}); start a new run") from None
    state.scaler.load_state_dict(facts["scaler"])
    state.samples = facts["samples"]
    state.model.set_image_size(saved.config.image_size)
    return state


def train_step(state: TrainState, model: nn.Module, batches: Iterator[data.Batch], run: Run) -> tuple[Tensor, Tensor]:
    """One optimizer step over a global batch; returns the mean loss and the gradient norm, on the device."""
    config = run.config
    # Stochastic depth depends on the position alone, so that resuming changes nothing.
    torch.manual_seed(distributed.seed_of(config.seed, state.samples, distributed.rank()))
    for group in state.optimizer.param_groups:
        rate = schedule.learning_rate(state.samples, run.stages, config.optimizer.lr)
        group["lr"] = rate * group.get("lr_scale", 1.0)
    criterion = loss.LOSSES[config.loss.name]
    if config.loss.name == "focal":
        criterion = partial(loss.focal, gamma=config.loss.gamma)
    steps = config.batch_size // distributed.world_size() // run.micro_batch
    total = torch.zeros((), device=run.device)
    for batch in islice(batches, steps):
        labels = batch.labels.to(run.device, non_blocking=True)
        with autocast(run.device, run.dtype):
            logits = model(image.normalize(batch.images.to(run.device, non_blocking=True)))
        value = criterion(logits, labels) * config.loss.multiplier / steps
        state.scaler.scale(value).backward()
        total += value.detach()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.samples += config.batch_size
    return total, norm


def stage_batches(state: TrainState, run: Run, index: int, done: int) -> Iterator[data.Batch]:
    """The rest of a stage's micro-batches for this process."""
    stage = run.stages[index]
    augmentation = (run.config.seed, index) if run.config.data.augment == "trivial" else None
    pictures = data.Pictures(run.dataset, "train", stage.image_size, augmentation)
    keys = data.training_keys(
        run.config.seed,
        index,
        len(pictures),
        done,
        stage.samples,
        run.config.batch_size,
        run.micro_batch,
        distributed.rank(),
        distributed.world_size(),
    )
    return data.batches(pictures, keys, run.workers, pin=run.device.type == "cuda")


def validate(state: TrainState, run: Run, size: int) -> dict[str, float]:
    """Macro and micro averages on the validation split at an image size."""
    pictures = data.Pictures(run.dataset, "validation", size)
    threshold = run.config.threshold
    counts = evaluate(state.model, pictures, run.micro_batch, run.workers, threshold, run.device, run.dtype)
    averages = summarize(counts, run.dataset.sources)["all"]
    return {f"val_{name}": averages[name] for name in ("micro_f1", "macro_f1", "macro_precision", "macro_recall")}


def start_tracker(run: Run, samples: int) -> Tracker:
    """A tracker of the run, from the samples seen so far; it is mute on all ranks but 0."""
    config = run.config
    directory, facts, tracking = Path(config.output), config.model_dump(mode="json"), config.tracking
    total, enabled = schedule.total(run.stages), distributed.rank() == 0
    return Tracker(directory, samples, total, facts, tracking.wandb, tracking.project, enabled)


def train(run: Run, resume: Path | None) -> TrainState:
    """Train to the end of the last stage, from a checkpoint or from scratch; leaves a release directory."""
    config, total = run.config, schedule.total(run.stages)
    state = load_state(resume, run) if resume else initial_state(run)
    model: nn.Module = DistributedDataParallel(state.model) if distributed.world_size() > 1 else state.model
    with start_tracker(run, state.samples) as tracker:
        while state.samples < total:
            index, done = schedule.locate(state.samples, run.stages)
            stage = run.stages[index]
            if done == 0 and stage.restart:
                state.optimizer, state.scaler = fresh_optimizer(state.model, run)
            state.model.set_image_size(stage.image_size)
            model.train()
            batches = stage_batches(state, run, index, done)
            clock, since = time.perf_counter(), state.samples
            while done < stage.samples:
                before = state.samples
                value, norm = train_step(state, model, batches, run)
                done += config.batch_size
                last = done == stage.samples
                tracker.advance(state.samples)
                if last or schedule.due(config.every.log, before, state.samples):
                    rate = (state.samples - since) / (time.perf_counter() - clock)
                    lr = max(group["lr"] for group in state.optimizer.param_groups)
                    figures = {"loss": value, "grad_norm": norm, "lr": lr, "samples_per_s": rate}
                    tracker.log(state.samples, {name: float(figure) for name, figure in figures.items()})
                    clock, since = time.perf_counter(), state.samples
                if last or schedule.due(config.every.evaluate, before, state.samples):
                    tracker.log(state.samples, validate(state, run, stage.image_size))
                if last or schedule.due(config.every.checkpoint, before, state.samples):
                    save_state(state, run)
        if config.retain:
            finetune.retain(state.model, run.dataset.tags.names, *source(run), config.retain)
            tracker.log(state.samples, validate(state, run, state.model.config.image_size))
    if distributed.rank() == 0:
        loss_type = release.LOSS_TYPES[config.loss.name]
        release.save(Path(config.output) / "release", state.model, run.dataset.tags.names, loss_type)
    return state


def start(config: RunSettings, resume: str | None) -> TrainState:
    """Train from the start, or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Raises ValueError before anything is written when the dataset, the device or the checkpoint is not fit.
    """
    dataset = records.Dataset.open(Path(config.data.directory))
    device = distributed.pick_device(config.device)
    with distributed.process_group(device):
        run = Run(config, dataset, device, distributed.pick_dtype(config.precision, device))
        if resume is None and checkpoint.checkpoints(run.root):
            raise ValueError(f"{run.root}: holds checkpoints; add --resume auto, or output=DIR for a new run")
        return train(run, checkpoint.newest(run.root) if resume == "auto" else Path(resume) if resume else None)

"""The training loop: `TrainState`, `train_step`, `train`."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from joytag import checkpoint, data, distributed, finetune, image, loss, optim, records, release, schedule
from joytag.cli import Exit
from joytag.config import RunSettings
from joytag.distributed import Purpose, generator
from joytag.evaluate import Interrupted, autocast, evaluate
from joytag.health import Meter, Spikes
from joytag.interrupts import INTERRUPTED, REQUEUE, Interrupts
from joytag.metrics import summarize
from joytag.model import ViT, training_flop
from joytag.tracker import Quarantine, Tracker

DIVERGED = 3  # exit code


@dataclass
class TrainState:
    """Everything that a run needs to go on where it was."""

    model: ViT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None = None  # of the weights
    samples: int = 0  # learned from so far, over all stages
    skipped: int = 0  # in this stage, beyond those: of steps whose gradients were not finite
    validated: int = 0  # the samples at the last validation

    @property
    def released(self) -> ViT:
        """The model with the weights that are validated and published."""
        return self.model if self.average is None else self.average.module


@dataclass(frozen=True)
class Step:
    """What a step came to, over all processes: the mean loss, the gradient's norm, whether it was taken."""

    begun: int  # the samples before it
    loss: float
    norm: float
    taken: bool
    bad: list[tuple[int, str]]  # rows that cannot be decoded, and why


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

    @cached_property
    def pictures(self) -> records.Posts:
        """The training split."""
        return self.dataset.posts("train")

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
    frequency = (tags.counts + 1) / (len(run.pictures) + 2)
    model.head.bias.data = torch.from_numpy(frequency).float().logit().to(run.device)
    if run.config.init_from is not None:
        fate = finetune.carry_over(model, tags.names, *source(run))
        if distributed.rank() == 0:
            print(f"{run.config.init_from}: " + ", ".join(f"{len(tags):,} tags {what}" for what, tags in fate.items()))
    return TrainState(model, *fresh_optimizer(model, run), averaged(model, run))


def averaged(model: ViT, run: Run) -> ModelEmaV3 | None:
    """An exponential moving average of the weights, from what they are now on, if one is asked for."""
    return None if run.config.average is None else ModelEmaV3(model, decay=run.config.average)


def source(run: Run) -> tuple[ViT, list[str]]:
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
            f"{run.root}: the weights are no longer finite after {state.samples} samples; the checkpoints before "
            "stay; lower optimizer.lr",
            DIVERGED,
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
        loss_type, tags = release.LOSS_TYPES[run.config.loss.name], run.dataset.tags.names
        keep = run.config.keep_last, run.config.keep_every
        try:
            checkpoint.save(run.root, state.samples, state.released, tags, loss_type, tensors, facts, *keep)
        except checkpoint.CheckpointError as error:
            failure = str(error)
    if distributed.total([bool(failure)])[0]:
        if required:
            raise checkpoint.CheckpointError(failure or "rank 0 could not save a checkpoint")
        if failure:
            warnings.warn(f"{failure}; the run goes on", stacklevel=2)


def course(run: Run) -> dict[str, Any]:
    """What decides how a run goes on: it must not change between a checkpoint and its resuming."""
    chosen = {"seed", "batch_size", "stages", "optimizer", "loss", "average", "init_from"}
    return run.config.model_dump(mode="json", include=chosen) | {
        "augment": run.config.data.augment,
        "dtype": str(run.dtype),
        "freeze": run.config.model.freeze,
        "pictures": hashlib.sha256(run.pictures.hashes.tobytes()).hexdigest(),
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
    set_image_size(state, saved.config.image_size)
    return state


def set_image_size(state: TrainState, size: int) -> None:
    """Go on at an image size."""
    for model in {state.model, state.released}:
        model.set_image_size(size)


def batch_loss(model: nn.Module, batch: data.Batch, noise: Tensor, run: Run) -> Tensor:
    """The mean loss of a micro-batch, times the multiplier; on the device."""
    settings = run.config.loss
    criterion = partial(loss.focal, gamma=settings.gamma) if settings.name == "focal" else loss.LOSSES[settings.name]
    labels = batch.labels.to(run.device, non_blocking=True)
    with autocast(run.device, run.dtype):
        logits = model(image.normalize(batch.images.to(run.device, non_blocking=True)), noise)
    return criterion(logits, labels) * settings.multiplier


def train_step(state: TrainState, model: nn.Module, batches: Iterator[data.Batch], run: Run) -> Step:
    """One optimizer step over a global batch; if its gradients are not finite, all processes skip it."""
    config, micro = run.config, run.micro_batch
    set_rate(state, run)
    share = config.batch_size // distributed.world_size()
    noise = step_noise(state, run)[distributed.rank() * share :]
    loss_sum, bad = torch.zeros((), device=run.device), []
    for first, batch in zip(range(0, share, micro), batches, strict=False):
        # What the model draws otherwise depends on the position alone, too.
        torch.manual_seed(config.seed + state.samples + state.skipped + distributed.rank() * share + first)
        with distributed.synchronized(model, now=first + micro == share):
            value = batch_loss(model, batch, noise[first : first + micro].to(run.device), run) * micro / share
            state.scaler.scale(value).backward()
        loss_sum += value.detach()
        bad += batch.bad
    state.scaler.unscale_(state.optimizer)
    norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm))
    mean, wrong, n_bad = distributed.total([float(loss_sum), not math.isfinite(norm), len(bad)])
    step = Step(state.samples, mean / distributed.world_size(), norm, wrong == 0 and math.isfinite(mean),
                distributed.gathered(bad) if n_bad else [])  # fmt: skip
    if step.taken:
        state.scaler.step(state.optimizer)
        if state.average is not None:
            state.average.update(state.model)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.samples += config.batch_size * step.taken
    state.skipped += config.batch_size * (not step.taken)
    return step


def set_rate(state: TrainState, run: Run) -> None:
    """Give the optimizer its learning rate for the next step."""
    rate = schedule.learning_rate(state.samples, run.stages, run.config.optimizer.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def step_noise(state: TrainState, run: Run) -> Tensor:
    """The random numbers of stochastic depth for a global batch, float32 [batch, sites], by the position alone."""
    place = generator(Purpose.DEPTH, run.config.seed, state.samples, state.skipped)
    return torch.from_numpy(place.random((run.config.batch_size, state.model.noise_sites), dtype=np.float32))


def begin_stage(state: TrainState, run: Run) -> tuple[Iterator[data.Batch], Meter]:
    """Make the state ready for the stage that it is in; returns the rest of this process's micro-batches, metered."""
    index, done = schedule.locate(state.samples, run.stages)
    stage, config = run.stages[index], run.config
    if done == 0:
        state.skipped = 0
        if stage.restart:
            state.optimizer, state.scaler = fresh_optimizer(state.model, run)
    set_image_size(state, stage.image_size)
    state.model.train()
    pictures = data.Pictures(run.dataset, "train", stage.image_size, (config.seed, index), config.data.augment)
    where = distributed.rank(), distributed.world_size()
    keys = data.training_keys(
        config.seed, index, len(pictures), done + state.skipped, config.batch_size, run.micro_batch, *where
    )
    batches = data.batches(pictures, keys, run.workers, run.device.type == "cuda", config.data.timeout)
    meter = Meter(run.device, training_flop(state.model.config, stage.image_size), distributed.world_size())
    return meter.timed(batches), meter


def ids_of_step(samples: int, skipped: int, run: Run) -> list[int]:
    """The ids of the pictures of the global batch that begins there."""
    index, done = schedule.locate(samples, run.stages)
    keys = data.training_keys(
        run.config.seed, index, len(run.pictures), done + skipped, run.config.batch_size, run.config.batch_size, 0, 1
    )
    return run.pictures.ids[[row for _, row in next(keys)]].tolist()


def validate(state: TrainState, run: Run, interrupts: Interrupts) -> dict[str, float] | None:
    """Macro and micro averages on the validation split at the stage's image size; None when interrupted."""
    model, config = state.released, run.config
    pictures = data.Pictures(run.dataset, "validation", model.config.image_size)
    where = run.device, run.dtype
    try:
        counts = evaluate(
            model, pictures, run.micro_batch, run.workers, config.threshold, *where, config.data.timeout,
            stopping=lambda: agreed(interrupts.code) > 0,
        )  # fmt: skip
    except Interrupted:
        return None
    averages = summarize(counts, run.dataset.sources)["all"]
    return {f"val_{name}": averages[name] for name in ("micro_f1", "macro_f1", "macro_precision", "macro_recall")}


def agreed(code: int) -> int:
    """The exit code that is due when any process is asked to stop, 0 if none is."""
    interrupted, requeued = distributed.total([code == INTERRUPTED, code == REQUEUE])
    return INTERRUPTED if interrupted else REQUEUE if requeued else 0


def start_tracker(run: Run, samples: int) -> Tracker:
    """A tracker of the run, from the samples seen so far; it is mute on all ranks but 0."""
    config = run.config
    directory, facts, tracking = Path(config.output), config.model_dump(mode="json"), config.tracking
    total, enabled = schedule.total(run.stages), distributed.rank() == 0
    return Tracker(directory, samples, total, facts, tracking.wandb, tracking.project, enabled)


@dataclass
class Watch:
    """Records what is out of the ordinary in a run, and ends the run when it is too much."""

    run: Run
    tracker: Tracker
    quarantine: Quarantine
    spikes: Spikes
    skips: int = 0  # in a row

    def heed(self, step: Step, state: TrainState) -> None:
        """Note a step that has just been done. Raises Exit after the last skip allowed, ValueError for bad pictures."""
        config = self.run.config
        if step.bad:
            share = self.quarantine.add(state.samples, step.bad) / len(self.run.pictures)
            if share > config.data.max_bad:
                raise ValueError(
                    f"data.max_bad: {share:.1%} of the pictures cannot be decoded, see {self.quarantine.path}; "
                    "build the dataset again, or raise it"
                )
        score = self.spikes.score(step.loss) if step.taken else None
        if score is not None:
            self.tell(state, step, "loss spike", score=score)
        # While the scaler is looking for a scale, overflows are its business.
        harmless = step.taken or (state.scaler.is_enabled() and state.scaler.get_scale() >= 1)
        self.skips = 0 if harmless else self.skips + 1
        if not step.taken:
            self.tell(state, step, "skipped step", scale=state.scaler.get_scale())
        if self.skips == config.max_skips:
            save_state(state, self.run, required=True)
            raise Exit(
                f"{self.run.root}: {self.skips} steps in a row had no finite gradients; the last good state is saved, "
                f"the pictures' ids are in {self.tracker.events}; lower optimizer.lr or look at them",
                DIVERGED,
            )

    def tell(self, state: TrainState, step: Step, what: str, **figures: float) -> None:
        """Record an event with the ids of the step's pictures."""
        ids = ids_of_step(step.begun, state.skipped - self.run.config.batch_size * (not step.taken), self.run)
        facts = {"loss": step.loss, "grad_norm": step.norm, **figures, "ids": ids}
        self.tracker.event(state.samples, what, facts)


def train(run: Run, resume: Path | None) -> TrainState:
    """Train to the end of the last stage, from a checkpoint or from scratch; leaves a release directory.

    Raises Exit, after saving a checkpoint, when a signal asks to stop or the loss has diverged.
    """
    config = run.config
    state = load_state(resume, run) if resume else initial_state(run)
    with Interrupts() as interrupts, start_tracker(run, state.samples) as tracker:
        learn(state, run, tracker, interrupts)
        if config.retain:
            finetune.retain(state.released, run.dataset.tags.names, *source(run), config.retain)
            tracker.log(state.samples, validate(state, run, interrupts) or {})
    if distributed.rank() == 0:
        loss_type = release.LOSS_TYPES[config.loss.name]
        release.save(Path(config.output) / "release", state.released, run.dataset.tags.names, loss_type)
    return state


def learn(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts) -> None:
    """Take all the steps that are left, with what is due between them."""
    ends, quarantine = schedule.ends(run.stages), Quarantine(run.dataset, run.pictures, tracker)
    watch, model = Watch(run, tracker, quarantine, Spikes()), distributed.parallel(state.model)
    saved, batches, meter = state.samples, None, None
    while True:
        saved = between_steps(state, run, tracker, interrupts, saved)
        if state.samples == max(ends):
            return
        if batches is None or meter is None:
            batches, meter = begin_stage(state, run)
        with meter.step(run.config.batch_size):
            step = train_step(state, model, batches, run)
        watch.heed(step, state)
        tracker.advance(state.samples)
        ended = step.taken and state.samples in ends
        if ended or schedule.due(run.config.every.log, step.begun, state.samples):
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            figures = {"loss": step.loss, "grad_norm": step.norm, "lr": lr, **meter.figures()}
            tracker.log(state.samples, figures)
        if ended:
            batches = None


def between_steps(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts, saved: int) -> int:
    """Validate, save and stop if that is due; returns the samples at the last checkpoint, before which it was `saved`.

    Raises Exit when asked to stop.
    """
    every, ends, samples = run.config.every, schedule.ends(run.stages), state.samples
    ended = samples in ends
    if state.validated < samples and (ended or schedule.due(every.evaluate, state.validated, samples)):
        figures = validate(state, run, interrupts)
        if figures is not None:  # else it comes first when the run goes on
            tracker.log(samples, figures)
            state.validated = samples
    code = agreed(interrupts.code)
    if saved < samples and (ended or code or schedule.due(every.checkpoint, saved, samples)):
        save_state(state, run, required=code > 0 or samples == max(ends))
        saved = samples
    if code:
        raise Exit(f"stopped after {samples:,} samples, as asked; go on with --resume auto", code)
    return saved


def start(config: RunSettings, resume: str | None) -> TrainState:
    """Train from the start, or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Raises ValueError before anything is written when the dataset, the device or the checkpoint is not fit.
    """
    dataset = records.Dataset.open(Path(config.data.directory))
    device = distributed.pick_device(config.device)
    run = Run(config, dataset, device, distributed.pick_dtype(config.precision, device))
    try:
        with distributed.process_group(device, config.timeout), data.worker_errors():
            return train(run, starting_point(run, resume))
    except (distributed.ProcessLost, data.WorkerLost) as error:
        raise Exit(str(error)) from None


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

"""The training loop: `train_step`, `train`, and what happens between the steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from joytag.core import distributed
from joytag.core.distributed import Purpose, generator
from joytag.core.errors import Exit
from joytag.core.signals import Interrupts
from joytag.data import augment, loader
from joytag.data.dataset import Dataset, write_text
from joytag.data.images import normalize
from joytag.evaluation.metrics import validation_figures
from joytag.evaluation.runner import Interrupted, agreed, autocast, histogram, predict
from joytag.models import checkpoint, release
from joytag.models.vit import Model, ViT, training_flop
from joytag.training import optimizers, schedule, transfer
from joytag.training.config import RunSettings
from joytag.training.losses import smooth
from joytag.training.monitor import Meter, Spikes
from joytag.training.state import (
    DIVERGED,
    Run,
    TrainState,
    averaged,
    fresh_optimizer,
    initial_state,
    load_state,
    new_model,
    save_state,
    source,
)
from joytag.training.tracker import Quarantine, Tracker, read_log

SHOWN = 8  # validation pictures that go to wandb with their predictions
GO_ON = "go on with --resume auto"
CPU_MICRO_BATCH = 32  # of `auto`; there, larger ones are not faster


@dataclass(frozen=True)
class Step:
    """What a step came to, over all processes: the mean loss, the gradient's norm, whether it was taken."""

    begun: int  # the samples before it
    loss: float
    norm: float
    taken: bool
    bad: list[tuple[int, str]]  # rows that cannot be decoded, and why


def batch_loss(model: nn.Module, batch: loader.Batch, chance: Chance, run: Run) -> Tensor:
    """The mean loss of a micro-batch, times the multiplier; on the device."""
    settings = run.config.loss
    images = batch.images.to(run.device, non_blocking=True)
    for draws in batch.draws:
        images = augment.apply(images, draws)
    images = normalize(images)
    labels = batch.labels.to(run.device, non_blocking=True)
    if settings.label_smoothing:
        labels = smooth(labels.float(), settings.label_smoothing)
    if chance.shares is not None:
        images, labels = augment.mixup(images, labels.float(), chance.shares)
    with autocast(run.device, run.dtype):
        logits = model(images, chance.noise)
    return run.criterion(logits, labels) * settings.multiplier


def train_step(state: TrainState, model: nn.Module, batches: Iterator[loader.Batch], run: Run) -> Step:
    """One optimizer step over a global batch; if its gradients are not finite, all processes skip it."""
    config, micro = run.config, run.micro_batch
    set_rate(state, run)
    loss_sum, bad = torch.zeros((), device=run.device), []
    statistics = [(buffer, buffer.clone()) for buffer in state.model.buffers()]
    for chance, batch in zip(chances(state, run), batches, strict=False):
        torch.manual_seed(chance.seed)
        with distributed.synchronized(model, now=chance.last):
            value = batch_loss(model, batch, chance, run) * micro / run.share
            state.scaler.scale(value).backward()
        loss_sum += value.detach()
        bad += batch.bad
    norm = clip_gradients(state, config.optimizer.clip_norm)
    mean, wrong, n_bad = distributed.total([float(loss_sum), not math.isfinite(norm), len(bad)])
    step = Step(state.samples, mean / distributed.world_size(), norm, wrong == 0 and math.isfinite(mean),
                distributed.gathered(bad) if n_bad else [])  # fmt: skip
    if step.taken:
        state.scaler.step(state.optimizer)
        if state.average is not None:
            state.average.update(state.model)
    else:
        for buffer, before in statistics:
            buffer.copy_(before)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.advance(config.batch_size, step.taken)
    return step


def clip_gradients(state: TrainState, limit: float) -> float:
    """Unscale the gradients and shrink them to a norm of at most `limit`; returns the norm that they had."""
    distributed.barrier()  # a process that was lost is noticed here, and not waited for by a GPU
    state.scaler.unscale_(state.optimizer)
    return float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))


def set_rate(state: TrainState, run: Run) -> None:
    """Give the optimizer its learning rate for the next step."""
    rate = schedule.learning_rate(state.samples, run.stages, run.config.optimizer.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


@dataclass(frozen=True)
class Chance:
    """What is random in a micro-batch besides its augmentation: a function of its position, not of history.

    On the device: `noise` float32 [B, sites] of stochastic depth, `shares` float32 [B] of mixup. `seed` is for
    whatever else a model draws. `last` says whether it is the last micro-batch of its step.
    """

    noise: Tensor
    shares: Tensor | None
    seed: int
    last: bool


def chances(state: TrainState, run: Run) -> Iterator[Chance]:
    """The chance of each of this process's micro-batches of the next step."""
    config, micro = run.config, run.micro_batch
    place = config.seed, state.samples, state.skipped
    shape, alpha = (config.batch_size, state.model.noise_sites), config.data.mixup
    noise = torch.from_numpy(generator(Purpose.DEPTH, *place).random(shape, dtype=np.float32))
    shares = (
        torch.from_numpy(generator(Purpose.MIXUP, *place).beta(alpha, alpha, len(noise))).float() if alpha else None
    )
    first = distributed.rank() * run.share
    for start in range(first, first + run.share, micro):
        yield Chance(
            noise[start : start + micro].to(run.device, non_blocking=True),
            None if shares is None else shares[start : start + micro].to(run.device, non_blocking=True),
            sum(place) + start,
            start + micro == first + run.share,
        )


def begin_stage(state: TrainState, run: Run) -> tuple[Iterator[loader.Batch], Meter]:
    """Make the state ready for the stage that it is in; returns the rest of this process's micro-batches, metered."""
    index, done = schedule.locate(state.samples, run.stages)
    stage, config = run.stages[index], run.config
    if done == 0 and stage.restart:
        state.optimizer, state.scaler = fresh_optimizer(state.model, run)
    state.set_image_size(stage.image_size)
    state.model.train()
    draw, deferred = (config.seed, index), run.device.type != "cpu"
    pictures = loader.Pictures(run.dataset, "train", stage.image_size, draw, config.data.augment, deferred)
    where = distributed.rank(), distributed.world_size()
    keys = loader.training_keys(
        config.seed, index, len(pictures), done + state.skipped, config.batch_size, run.micro_batch, *where
    )
    batches = loader.batches(pictures, keys, run.workers, run.device.type == "cuda", config.data.timeout)
    meter = Meter(run.device, training_flop(state.model.config, stage.image_size), distributed.world_size())
    return meter.timed(batches), meter


def ids_of_step(samples: int, skipped: int, run: Run) -> list[int]:
    """The ids of the pictures of the global batch that begins there."""
    index, done = schedule.locate(samples, run.stages)
    keys = loader.training_keys(
        run.config.seed, index, len(run.pictures), done + skipped, run.config.batch_size, run.config.batch_size, 0, 1
    )
    return run.pictures.ids[[row for _, row in next(keys)]].tolist()


def validate(state: TrainState, run: Run, interrupts: Interrupts) -> dict[str, float] | None:
    """Loss, averages and mAP on the validation split at the stage's image size, where defined; None if interrupted."""
    model, config = state.released, run.config
    distributed.equalize(model.buffers())
    pictures = loader.Pictures(run.dataset, "validation", model.config.image_size)
    where, losses = (run.device, run.dtype), []
    try:
        scores = histogram(
            model, pictures, run.micro_batch, run.workers, *where, config.data.timeout,
            stopping=lambda: agreed(interrupts.code) > 0,
            seen=lambda logits, labels: losses.append(run.criterion(logits, labels).double() * len(labels)),
        )  # fmt: skip
    except Interrupted:
        return None
    (loss_sum,) = distributed.total([float(sum(losses)) * config.loss.multiplier])
    seen = int(scores.table[:, 0].sum())
    figures = {"loss": loss_sum / seen if seen else math.nan} | validation_figures(scores, config.threshold)
    return {f"val_{name}": value for name, value in figures.items() if name == "loss" or not math.isnan(value)}


def show_samples(state: TrainState, run: Run, tracker: Tracker) -> None:
    """Send some validation pictures to the tracker, if it shows them, with the tags that the model sees in them."""
    if not tracker.shows:
        return
    model, tags = state.released, run.dataset.tags.names
    pictures = loader.Pictures(run.dataset, "validation", model.config.image_size)
    batch = pictures.__getitems__([(0, row) for row in range(min(SHOWN, len(pictures)))])
    if isinstance(batch, loader.Batch) and len(batch):
        was_training = model.training
        scores = predict(model.eval(), batch.images, run.device, run.dtype).sigmoid().cpu()
        model.train(was_training)
        captions = []
        for row, labels in zip(scores, batch.labels, strict=True):
            best = row.topk(min(10, len(tags))).indices.tolist()
            captions.append(", ".join(f"{tags[i]} {row[i]:.2f}{' (right)' if labels[i] else ''}" for i in best))
        tracker.pictures(state.samples, batch.images.permute(0, 2, 3, 1).numpy(), captions)


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
                f"the pictures' ids are in {self.tracker.events}; --resume auto goes on after them, --resume PATH "
                "output=DIR branches off an older checkpoint, perhaps with a lower optimizer.lr",
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
    with Interrupts(distributed.failed) as interrupts, start_tracker(run, state.samples) as tracker:
        learn(state, run, tracker, interrupts)
        if config.retain:
            transfer.retain(state.released, run.dataset.tags.names, *source(run), config.retain)
            tracker.log(state.samples, {"retain": config.retain} | (validate(state, run, interrupts) or {}))
    if distributed.rank() == 0:
        loss_type = release.LOSS_TYPES[config.loss.name]
        release.save(Path(config.output) / "release", state.released, run.dataset.tags.names, loss_type)
    return state


def learn(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts) -> None:
    """Take all the steps that are left, with what is due between them."""
    ends, quarantine = schedule.ends(run.stages), Quarantine(run.dataset, run.pictures, tracker)
    watch, size = Watch(run, tracker, quarantine, Spikes()), state.model.config.image_size
    model = distributed.parallel(state.model, state.model.head.weight.new_zeros(1, 3, size, size))
    compile_parts(state.model, run)
    saved, batches, meter = state.samples, None, None
    while True:
        saved = between_steps(state, run, tracker, interrupts, saved)
        if state.samples == max(ends):
            return
        if batches is None or meter is None:
            batches, meter = begin_stage(state, run)
            watch.spikes = Spikes()  # a restart's losses are not those from before it
        with meter.step(run.config.batch_size):
            step = train_step(state, model, batches, run)
        watch.heed(step, state)
        tracker.advance(state.samples)
        ended = step.taken and state.samples in ends
        if ended or schedule.due(run.config.every.log, step.begun, state.samples):
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            figures = {"loss": step.loss, "grad_norm": step.norm, "lr": lr, **meter.figures()}
            tracker.log(state.samples, figures, optimizer_figures(state))
        if ended:
            batches = None


def compile_parts(model: Model, run: Run) -> None:
    """Have torch.compile make kernels for stem and blocks, one set for all of these, or for a backbone, if wanted.

    Once for each shape: of two stages in training and validation, and what is left of an epoch there. On a CPU shapes
    vary more, with the branches that are dropped.
    """
    if run.config.compile:
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.optimize_ddp = False  # it would cut the blocks at its buckets, of which they are parts
        for part in [model.patch_embeddings, *model.blocks] if isinstance(model, ViT) else [model.backbone]:
            part.compile(dynamic=None if run.device.type == "cpu" else False)


def optimizer_figures(state: TrainState) -> dict[str, float]:
    """The gradient scaler's scale, and quantiles over the tensors of each part of the model of LAMB's trust ratio."""
    names: dict[Tensor, str] = {value: name.partition(".")[0] for name, value in state.model.named_parameters()}
    ratios: dict[str, list[Tensor]] = {}
    for parameter, ratio in optimizers.trust_ratios(state.optimizer):
        ratios.setdefault(names[parameter], []).append(ratio)
    figures = {"scale": state.scaler.get_scale()} if state.scaler.is_enabled() else {}
    for part, found in ratios.items():
        levels = torch.tensor([0.1, 0.5, 0.9], device=found[0].device)
        quantiles = torch.stack(found).float().quantile(levels).tolist()
        figures |= {f"trust_{part}_{name}": value for name, value in zip(("p10", "p50", "p90"), quantiles, strict=True)}
    return figures


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
            show_samples(state, run, tracker)
            state.validated = samples
    code = agreed(interrupts.code)
    if saved < samples and (ended or code or schedule.due(every.checkpoint, saved, samples)):
        save_state(state, run, required=code > 0 or samples == max(ends))
        saved, code = samples, agreed(interrupts.code)  # a signal may have come meanwhile
    if code:
        raise Exit(f"stopped after {samples:,} samples, as asked; {GO_ON}", code)
    return saved


def start(config: RunSettings, resume: str | None) -> TrainState:
    """Train from the start, or, with `resume`, from a checkpoint: `auto` for the run's newest, or a path.

    Raises ValueError before anything is written when the dataset, the device or the checkpoint is not fit.
    """
    dataset = Dataset.open(Path(config.data.directory))
    device = distributed.pick_device(config.device)
    width = config.model.d_model if config.model.timm is None else 0
    run = Run(config, dataset, device, distributed.pick_dtype(config.precision, device, width))
    if device.type == "cpu":
        distributed.keep_memory()
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


def settled(run: Run) -> Run:
    """The run with a number for `micro_batch: auto`, recorded in its directory while device and processes stay.

    On a GPU it is the largest one whose step, at the largest image size, takes at most nine tenths of the memory.
    """
    if run.config.micro_batch != "auto":
        return run
    path = Path(run.config.output) / "micro_batch.json"
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type
    facts = {"device": name, "processes": distributed.world_size()}
    lines = [line for line in read_log(path) if facts.items() <= line.items()]
    micro = int(lines[0]["micro_batch"]) if lines else largest_micro_batch(run)
    if not lines and distributed.rank() == 0:
        print(f"micro_batch: {micro} samples at once on {name}")
        write_text(path, json.dumps(facts | {"micro_batch": micro}) + "\n")
    return replace(run, config=run.config.model_copy(update={"micro_batch": micro}))


def largest_micro_batch(run: Run) -> int:
    """The largest divisor of a process's share whose step fits, on all of them; found by halving the divisors."""
    step = 2 if run.config.data.mixup else 1
    divisors = [n for n in range(step, run.share + 1, step) if run.share % n == 0]
    if run.device.type != "cuda":
        return max((n for n in divisors if n <= CPU_MICRO_BATCH), default=divisors[0])
    torch.cuda.set_per_process_memory_fraction(0.9, run.device)
    low, high = 0, len(divisors)  # all before `low` fit, none from `high` on
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(run, divisors[middle]) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    if low == 0:
        raise ValueError(f"micro_batch: not even {divisors[0]} fits into {run.device}'s memory; take a smaller model")
    return distributed.least(divisors[low - 1])


def fits(run: Run, micro_batch: int) -> bool:
    """Whether a step with so many samples at once fits into the memory, beside optimizer and average."""
    size = max(stage.image_size for stage in run.stages)
    try:
        model = new_model(run)
        state = TrainState(model, *fresh_optimizer(model, run), averaged(model, run))
        labels = torch.zeros(micro_batch, len(run.dataset.tags), dtype=torch.bool)
        images = torch.zeros(micro_batch, 3, size, size, dtype=torch.uint8)
        state.set_image_size(size)
        model.train()
        chance = next(chances(state, replace(run, config=run.config.model_copy(update={"micro_batch": micro_batch}))))
        empty = torch.zeros(micro_batch, dtype=torch.int64)
        for _ in range(2):  # the second beside the first one's gradients and moments
            state.scaler.scale(
                batch_loss(model, loader.Batch(images, labels, empty, empty, []), chance, run)
            ).backward()
            state.optimizer.step()
    except torch.OutOfMemoryError:
        return False
    finally:
        model = state = chance = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return True


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

"""The training loop: `train_step`, `train`, and what happens between the steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from joytag.core import distributed
from joytag.core.errors import Exit
from joytag.core.signals import Interrupts
from joytag.data import loader
from joytag.evaluation.runner import agreed_exit_code
from joytag.models import release
from joytag.models.architectures import Model, training_flop
from joytag.models.vit import ViT
from joytag.training import optimizers, schedule, transfer
from joytag.training.anomalies import Quarantine, Spikes, Watch
from joytag.training.monitor import Meter
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
    fresh_optimizer,
    initial_state,
    load_state,
    save_state,
    source,
)
from joytag.training.step import train_step
from joytag.training.tracker import Tracker
from joytag.training.validation import show_samples, validate

GO_ON = "go on with --resume auto"


def begin_stage(state: TrainState, run: Run) -> tuple[Iterator[loader.Batch], Meter]:
    """Make the state ready for the stage that it is in; returns the rest of this process's micro-batches, metered."""
    index, done = schedule.locate(state.samples, run.stages)
    stage, config = run.stages[index], run.config
    if done == 0 and stage.restart:
        state.optimizer, state.scaler = fresh_optimizer(state.model, run)
    state.set_image_size(stage.image_size)
    state.model.train()
    draw, deferred = (config.seed, index), run.device.type != "cpu"
    images = loader.ImageDataset(run.dataset, "train", stage.image_size, draw, config.data.augment, deferred)
    where = distributed.rank(), distributed.world_size()
    keys = loader.training_keys(
        config.seed, index, len(images), done + state.skipped, config.batch_size, run.micro_batch, *where
    )
    batches = loader.batches(images, keys, run.workers, run.device.type == "cuda", config.data.timeout)
    meter = Meter(run.device, training_flop(state.model.config, stage.image_size), distributed.world_size())
    return meter.timed(batches), meter


def start_tracker(run: Run, samples: int) -> Tracker:
    """A tracker of the run, from the samples seen so far; it is mute on all ranks but 0."""
    config = run.config
    directory, facts, tracking = Path(config.output), config.model_dump(mode="json"), config.tracking
    total, enabled = schedule.total(run.stages), distributed.rank() == 0
    return Tracker(directory, samples, total, facts, tracking.wandb, tracking.project, enabled)


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
        release.save(Path(config.output) / "release", state.released, run.dataset.tags.names, run.loss_type)
    return state


def learn(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts) -> None:
    """Take all the steps that are left, with what is due between them."""
    ends, quarantine = schedule.ends(run.stages), Quarantine(run.dataset, run.images, tracker)
    watch, size = Watch(run, tracker, quarantine, Spikes()), state.model.config.image_size
    model = distributed.data_parallel(state.model, state.model.head.weight.new_zeros(1, 3, size, size))
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
    code = agreed_exit_code(interrupts.code)
    if saved < samples and (ended or code or schedule.due(every.checkpoint, saved, samples)):
        save_state(state, run, required=code > 0 or samples == max(ends))
        saved, code = samples, agreed_exit_code(interrupts.code)  # a signal may have come meanwhile
    if code:
        raise Exit(f"stopped after {samples:,} samples, as asked; {GO_ON}", code)
    return saved

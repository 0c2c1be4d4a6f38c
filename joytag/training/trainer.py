"""The training loop, and the logging, validation and saving between its steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from joytag.core import distributed
from joytag.core.errors import Stopped
from joytag.core.signals import Interrupts
from joytag.core.terminal import print
from joytag.data import loader, order
from joytag.evaluation.runner import agreed_exit_code
from joytag.models import matmul, release
from joytag.models.architectures import Model, training_flop
from joytag.training import optimizers, schedule, transfer
from joytag.training.anomalies import AnomalyMonitor, Quarantine, SpikeDetector
from joytag.training.monitor import Meter
from joytag.training.run import Run
from joytag.training.state import TrainState, fresh_optimizer, initial_state, load_state, save_state
from joytag.training.step import train_step
from joytag.training.tracker import Tracker, services
from joytag.training.validation import show_samples, validate


def train(run: Run, resume: Path | None) -> TrainState:
    """Train to the end of the last stage, from a checkpoint or from the start, and write a release directory.

    Raises Stopped when a signal asks to stop, after saving a checkpoint; KeyboardInterrupt at Ctrl-C before the first
    step, which may compile for minutes; Diverged when gradients or weights do.
    """
    config, tags = run.config, run.dataset.tags.names
    state = load_state(resume, run) if resume else initial_state(run)
    start, alone = state.drawn, distributed.world_size() == 1
    interrupts = Interrupts(distributed.failed, lambda: alone and state.drawn == start)
    with interrupts, start_tracker(run, state.samples) as tracker:
        take_steps(state, run, tracker, interrupts)
        if config.retain:
            transfer.retain(state.released, tags, *run.load_source(), config.retain)
            tracker.log(state.samples, {"retain": config.retain} | (validate(state, run, interrupts) or {}))
    if distributed.rank() == 0:
        release.save(run.release, state.released, tags, run.loss_type)
    return state


def take_steps(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts) -> None:
    """Take all remaining steps; log, validate and save when due."""
    ends, quarantine = schedule.ends(run.stages), Quarantine(run, tracker)
    anomalies, size = AnomalyMonitor(run, tracker, quarantine, SpikeDetector()), state.model.config.image_size
    model = distributed.data_parallel(state.model, state.model.head.weight.new_zeros(1, 3, size, size))
    choose_matmul(state, run)
    compile_parts(state.model, run)
    saved, batches, meter = state.samples, None, None
    while True:
        saved = between_steps(state, run, tracker, interrupts, saved)
        if state.samples == max(ends):
            return
        if batches is None or meter is None:
            batches, meter = begin_stage(state, run)
            anomalies.spikes = SpikeDetector()  # the losses before a restart are no reference for those after it
        with meter.step(run.config.batch_size):
            step = train_step(state, model, batches, run)
        anomalies.check(step, state)
        tracker.advance(state.samples)
        ended = not step.skipped and state.samples in ends
        if ended or schedule.due(run.config.every.log, step.start, state.samples):
            lr = max(group["lr"] for group in state.optimizer.param_groups)
            metrics = {"loss": step.loss, "grad_norm": step.norm, "lr": lr, **meter.metrics()}
            tracker.log(state.samples, metrics, optimizer_metrics(state))
        if ended:
            batches = None


def begin_stage(state: TrainState, run: Run) -> tuple[Iterator[loader.Batch], Meter]:
    """Prepare the state for its current stage; returns the stage's remaining micro-batches of this process, metered."""
    index, done = schedule.locate(state.samples, run.stages)
    stage, config = run.stages[index], run.config
    if done == 0 and stage.restart:
        state.optimizer, state.scaler = fresh_optimizer(state.model, run)
    state.set_image_size(stage.image_size)
    state.model.train()
    draw, deferred = (config.seed, index), run.device.type != "cpu"
    augmentation = config.data.augment, deferred
    images = loader.ImageDataset(
        run.dataset, "train", stage.image_size, draw, *augmentation, signed=run.has_signed_labels
    )
    ranks = distributed.rank(), distributed.world_size()
    keys = order.training_keys(
        config.seed, index, len(images), done + state.skipped, config.batch_size, run.micro_batch, *ranks
    )
    batches = loader.batches(images, keys, run.workers, run.device.type == "cuda", config.data.timeout)
    flop = partial(training_flop, state.model.config, stage.image_size)  # which takes a second to import what it needs
    meter = Meter(run.device, flop, distributed.world_size())
    return meter.timed(batches), meter


def choose_matmul(state: TrainState, run: Run) -> None:
    """Compute with the library of float32 products of the settings, of the run so far, or the faster one."""
    wanted = state.matmul if run.config.matmul == "auto" else run.config.matmul
    state.matmul = distributed.run_on_rank_zero(lambda: matmul.pick(state.model, run.device, run.dtype, wanted))
    if state.matmul != (wanted or matmul.DEFAULT) and distributed.rank() == 0:
        print(f"float32 products by {state.matmul}")
    matmul.use(state.matmul, state.model, state.released)


def between_steps(state: TrainState, run: Run, tracker: Tracker, interrupts: Interrupts, saved: int) -> int:
    """Validate, save and stop if due; `saved` and the result are the samples at the last checkpoint.

    Raises Stopped when a signal asked to stop.
    """
    every, ends, samples = run.config.every, schedule.ends(run.stages), state.samples
    ended = samples in ends
    if state.validated < samples and (ended or schedule.due(every.evaluate, state.validated, samples)):
        metrics = validate(state, run, interrupts)
        if metrics is not None:  # an interrupted validation is repeated when the run resumes
            tracker.log(samples, metrics)
            show_samples(state, run, tracker)
            state.validated = samples
    code = agreed_exit_code(interrupts.code)
    if saved < samples and (ended or code or schedule.due(every.checkpoint, saved, samples)):
        save_state(state, run, required=code > 0 or samples == max(ends))
        saved, code = samples, agreed_exit_code(interrupts.code)  # a signal may have come while saving
    if code:
        raise Stopped(f"stopped after {samples:,} samples, as requested", code)
    return saved


def start_tracker(run: Run, samples: int) -> Tracker:
    """Create the run's tracker, from the samples so far; it is silent on all ranks but 0."""
    directory, settings = Path(run.config.output), run.config.model_dump(mode="json")
    chosen = services(directory, samples, settings)
    return Tracker(directory, samples, schedule.total(run.stages), chosen, distributed.rank() == 0)


def compile_parts(model: Model, run: Run) -> None:
    """Compile the stem and the blocks, or a timm backbone, by torch.compile, if the settings enable it.

    On a GPU each shape is compiled once: those of the stages in training and validation, and of the last batch of a
    validation. On a CPU shapes are dynamic, since stochastic depth removes rows of a batch there.
    """
    if run.config.compile:
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.optimize_ddp = False  # it would split the compiled parts at DDP's buckets
        for part in model.parts:
            part.compile(dynamic=None if run.device.type == "cpu" else False)


def optimizer_metrics(state: TrainState) -> dict[str, float]:
    """Return the gradient scale, and quantiles of LAMB's trust ratios over the tensors of each part of the model."""
    parts: dict[Tensor, str] = {value: name.partition(".")[0] for name, value in state.model.named_parameters()}
    ratios: dict[str, list[Tensor]] = {}
    for parameter, ratio in optimizers.trust_ratios(state.optimizer):
        ratios.setdefault(parts[parameter], []).append(ratio)
    metrics = {"scale": state.scaler.get_scale()} if state.scaler.is_enabled() else {}
    for part, values in ratios.items():
        levels = torch.tensor([0.1, 0.5, 0.9], device=values[0].device)
        quantiles = torch.stack(values).float().quantile(levels).tolist()
        metrics |= {f"trust_{part}_{name}": value for name, value in zip(("p10", "p50", "p90"), quantiles, strict=True)}
    return metrics

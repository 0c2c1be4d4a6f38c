"""One optimizer step: micro-batches, loss, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from joytag.core import distributed
from joytag.core.rng import Purpose, generator
from joytag.data import augment, loader
from joytag.data.preprocessing import normalize
from joytag.models.inference import autocast
from joytag.training import schedule
from joytag.training.losses import smooth, without_unknown
from joytag.training.run import Run
from joytag.training.state import TrainState


@dataclass(frozen=True)
class Step:
    """The result of an optimizer step, over all processes."""

    start: int  # samples trained on before it
    loss: float  # the mean
    norm: float  # of the gradients, before clipping
    skipped: bool
    bad: list[tuple[int, str]]  # rows of images that cannot be decoded, and why


def batch_loss(model: nn.Module, batch: loader.Batch, noise: MicroBatchNoise, run: Run) -> Tensor:
    """Return the mean loss of a micro-batch, times the multiplier; on the device."""
    settings = run.config.loss
    images = batch.images.to(run.device, non_blocking=True)
    for draws in batch.draws:
        images = augment.apply(images, draws)
    images = normalize(images)
    labels, rejected = read_labels(batch, run)
    if settings.label_smoothing:
        labels = smooth(labels.float(), settings.label_smoothing)
    if noise.mixup is not None:
        images, labels = augment.mixup(images, labels.float(), noise.mixup)
        if rejected is not None:
            rejected = augment.mixup(rejected.float(), rejected.float(), noise.mixup)[1] > 0.5
    with autocast(run.device, run.dtype):
        if run.teacher is not None:
            labels = run.teacher.targets(images, labels, rejected)
        logits = model(images, noise.depth)
    if run.partial is not None:
        logits, labels = without_unknown(logits, labels)
    return run.criterion(logits, labels) * settings.multiplier


def read_labels(batch: loader.Batch, run: Run) -> tuple[Tensor, Tensor | None]:
    """Return the labels of a micro-batch, bool or float32 [B, N], and which tags were rejected, bool [B, N] or None.

    Unknown labels that the settings ignore are NaN, which smoothing keeps; mixed with others they are unknown, too.
    """
    labels = batch.labels.to(run.device, non_blocking=True)
    if not run.has_signed_labels:
        return labels, None
    targets = (labels > 0).float()
    if run.partial is not None:
        is_partial = run.partial[batch.sources].to(run.device, non_blocking=True)
        targets = targets.masked_fill((labels == 0) & is_partial[:, None], math.nan)
    return targets, labels < 0


def train_step(state: TrainState, model: nn.Module, batches: Iterator[loader.Batch], run: Run) -> Step:
    """Take one optimizer step over a global batch; all processes skip it when gradients are not finite."""
    config, micro = run.config, run.micro_batch
    set_rate(state, run)
    loss_sum, bad = torch.zeros((), device=run.device), []
    statistics = [(buffer, buffer.clone()) for buffer in state.model.buffers()]
    for noise, batch in zip(micro_batch_noise(state, run), batches, strict=False):
        torch.manual_seed(noise.seed)
        with distributed.gradient_sync(model, now=noise.last):
            loss = batch_loss(model, batch, noise, run) * micro / run.share
            state.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        bad += batch.bad
    norm = clip_gradients(state, config.optimizer.clip_norm)
    total, failures, n_bad = distributed.sums([float(loss_sum), not math.isfinite(norm), len(bad)])
    bad = distributed.gather(bad) if n_bad else []
    skipped = failures > 0 or not math.isfinite(total)
    step = Step(state.samples, total / distributed.world_size(), norm, skipped, bad)
    if skipped:
        for buffer, before in statistics:
            buffer.copy_(before)
    else:
        update_weights(state)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.advance(config.batch_size, skipped)
    return step


def update_weights(state: TrainState) -> None:
    """Apply the gradients, then update the average of the weights."""
    state.scaler.step(state.optimizer)
    if state.average is not None:
        state.average.update(state.model)


def clip_gradients(state: TrainState, limit: float) -> float:
    """Unscale the gradients and scale them down to a norm of at most `limit`; returns the norm before."""
    distributed.barrier()  # a lost process is noticed here; on a GPU the wait for it would end with the process
    state.scaler.unscale_(state.optimizer)
    return float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))


def set_rate(state: TrainState, run: Run) -> None:
    """Set the optimizer's learning rate for the next step."""
    rate = schedule.learning_rate(state.samples, run.stages, run.config.optimizer.lr)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


@dataclass(frozen=True)
class MicroBatchNoise:
    """The random numbers of a micro-batch, besides augmentation: a function of its position, not of history.

    On the device: `depth` float32 [B, sites] for stochastic depth, `mixup` float32 [B] for mixup's shares. `seed` is
    for all else that a model draws. `last` marks the last micro-batch of its step.
    """

    depth: Tensor
    mixup: Tensor | None
    seed: int
    last: bool


def micro_batch_noise(state: TrainState, run: Run) -> Iterator[MicroBatchNoise]:
    """Yield the noise of each of this process's micro-batches of the next step."""
    config, micro = run.config, run.micro_batch
    position = config.seed, state.samples, state.skipped
    shape, alpha = (config.batch_size, state.model.noise_sites), config.data.mixup
    depth = torch.from_numpy(generator(Purpose.DEPTH, *position).random(shape, dtype=np.float32))
    mixup = None
    if alpha:
        mixup = torch.from_numpy(generator(Purpose.MIXUP, *position).beta(alpha, alpha, len(depth))).float()
    first = distributed.rank() * run.share
    for start in range(first, first + run.share, micro):
        rows = slice(start, start + micro)
        yield MicroBatchNoise(
            depth=depth[rows].to(run.device, non_blocking=True),
            mixup=None if mixup is None else mixup[rows].to(run.device, non_blocking=True),
            seed=sum(position) + start,
            last=start + micro == first + run.share,
        )

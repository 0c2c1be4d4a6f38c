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
from joytag.data.images import normalize
from joytag.models.inference import autocast
from joytag.training import schedule
from joytag.training.losses import smooth
from joytag.training.run import Run
from joytag.training.state import (
    TrainState,
)


@dataclass(frozen=True)
class Step:
    """What a step came to, over all processes: the mean loss, the gradient's norm, whether it was taken."""

    begun: int  # the samples before it
    loss: float
    norm: float
    taken: bool
    bad: list[tuple[int, str]]  # rows that cannot be decoded, and why


def batch_loss(model: nn.Module, batch: loader.Batch, chance: MicroBatchNoise, run: Run) -> Tensor:
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
    for chance, batch in zip(micro_batch_noise(state, run), batches, strict=False):
        torch.manual_seed(chance.seed)
        with distributed.gradient_sync(model, now=chance.last):
            value = batch_loss(model, batch, chance, run) * micro / run.share
            state.scaler.scale(value).backward()
        loss_sum += value.detach()
        bad += batch.bad
    norm = clip_gradients(state, config.optimizer.clip_norm)
    mean, wrong, n_bad = distributed.sums([float(loss_sum), not math.isfinite(norm), len(bad)])
    step = Step(state.samples, mean / distributed.world_size(), norm, wrong == 0 and math.isfinite(mean),
                distributed.gather(bad) if n_bad else [])  # fmt: skip
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
class MicroBatchNoise:
    """What is random in a micro-batch besides its augmentation: a function of its position, not of history.

    On the device: `noise` float32 [B, sites] of stochastic depth, `shares` float32 [B] of mixup. `seed` is for
    whatever else a model draws. `last` says whether it is the last micro-batch of its step.
    """

    noise: Tensor
    shares: Tensor | None
    seed: int
    last: bool


def micro_batch_noise(state: TrainState, run: Run) -> Iterator[MicroBatchNoise]:
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
        yield MicroBatchNoise(
            noise[start : start + micro].to(run.device, non_blocking=True),
            None if shares is None else shares[start : start + micro].to(run.device, non_blocking=True),
            sum(place) + start,
            start + micro == first + run.share,
        )

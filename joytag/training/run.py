"""The constants of a run, derived from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from joytag.core import distributed
from joytag.data import decoders
from joytag.data.dataset import Dataset, Posts
from joytag.models import checkpoint, release
from joytag.models.architectures import Model
from joytag.training import losses, schedule
from joytag.training.config import RunSettings
from joytag.training.transfer import Teacher


@dataclass(frozen=True)
class Run:
    """The constants of a run: settings, dataset, device, number format, and values derived from them."""

    config: RunSettings
    dataset: Dataset
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def stages(self) -> list[schedule.Stage]:
        """The stages in whole global batches."""
        return self.config.plan()

    @cached_property
    def images(self) -> Posts:
        """The training split."""
        return self.dataset.posts("train")

    @cached_property
    def partial(self) -> Tensor | None:
        """Which sources have labels that leave the other tags unknown, bool [sources]; None if unknown ones count."""
        is_partial = ~torch.tensor(self.dataset.exhaustive, dtype=torch.bool)
        return is_partial if self.config.data.unlabelled == "ignore" and is_partial.any() else None

    @cached_property
    def has_signed_labels(self) -> bool:
        """Whether training tells tags that were rejected from those that nobody looked at."""
        return self.partial is not None or (self.config.distill and self.images.negatives is not None)

    @cached_property
    def originals(self) -> pa.ChunkedArray | None:
        """The original file of each training image, None if unknown; read when the first image must be named."""
        return self.dataset.originals("train")

    @property
    def root(self) -> Path:
        """The directory of the checkpoints."""
        return Path(self.config.output) / checkpoint.DIRECTORY

    @property
    def release(self) -> Path:
        """The directory of the release that the run ends with."""
        return Path(self.config.output) / release.DIRECTORY

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its release."""
        return release.is_complete(self.release)

    @property
    def workers(self) -> int:
        """Number of decoding processes."""
        workers = self.config.data.workers
        return decoders.default_workers(self.device) if workers is None else workers

    @property
    def share(self) -> int:
        """The samples of a global batch that fall to this process. Raises ValueError when shares are unequal."""
        share, rest = divmod(self.config.batch_size, distributed.world_size())
        if rest:
            raise ValueError(
                f"batch_size: {self.config.batch_size} is not a multiple of {distributed.world_size()} processes"
            )
        return share

    @property
    def micro_batch(self) -> int:
        """The samples that this process computes at once. Raises ValueError unless they divide its share."""
        assert self.config.micro_batch != "auto", "call micro_batch.resolve first"
        micro = min(self.config.micro_batch or self.share, self.share)
        if self.share % micro:
            raise ValueError(
                f"micro_batch: {micro} does not divide {self.share}, the share of batch_size {self.config.batch_size} "
                f"of each of {distributed.world_size()} processes"
            )
        if self.config.data.mixup and micro % 2:
            raise ValueError(f"micro_batch: {micro} is odd, but data.mixup mixes pairs")
        return micro

    @cached_property
    def frequencies(self) -> Tensor:
        """Each tag's share of the training images, smoothed so that it is never 0 or 1; float64 [N].

        Unknown tags count as absent, as they mostly are.
        """
        return torch.from_numpy((self.dataset.tags.counts + 1) / (len(self.images) + 2))

    @cached_property
    def criterion(self) -> losses.Criterion:
        """The loss of logits and targets, without the multiplier."""
        settings = self.config.loss
        loss = losses.LOSSES[settings.name]
        options = {name: getattr(settings, name) for name in loss.options}
        return loss.build(self.frequencies, self.device, **options)

    def load_source(self) -> tuple[Model, list[str]]:
        """Read the release that the run starts from, on the run's device, and its tag names."""
        assert self.config.init_from is not None
        model, tags = release.load(release.locate(self.config.init_from))
        return model.to(self.device), tags

    @cached_property
    def source_hashes(self) -> dict[str, str] | None:
        """The hashes of the files of the release that the run starts from; None without one."""
        return None if self.config.init_from is None else release.hashes(release.locate(self.config.init_from))

    @cached_property
    def teacher(self) -> Teacher | None:
        """The release that the run starts from, if the settings distill it and it knows tags of the dataset."""
        if not self.config.distill:
            return None
        teacher = Teacher.of(*self.load_source(), self.dataset.tags.names)
        return teacher if len(teacher.rows) else None

    @property
    def loss_type(self) -> str:
        """The loss's name in a release."""
        return losses.LOSSES[self.config.loss.name].loss_type

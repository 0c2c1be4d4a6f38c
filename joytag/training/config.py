"""The settings of a training run; the defaults are the recipe's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, Strict, model_validator

from joytag.core import settings
from joytag.core.settings import Choice, PathText, Settings
from joytag.data.augment import SPACES
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.models import release
from joytag.models.architectures import Config
from joytag.models.matmul import LIBRARIES
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViTConfig, ViTOptions
from joytag.training import schedule
from joytag.training.losses import LOSSES
from joytag.training.optimizers import OPTIMIZERS

PositiveInt = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# All other settings must stay as they were when a run resumes: they decide what it learns.
RESUMING = settings.MayChange("when the run resumes")
AS_NAMES = settings.MayChange("when the run resumes, as long as it stands for the same")
BRANCHING = settings.MayChange("in a run that branches off into another output")


class Data(Settings):
    """The images, how they are loaded and how they are augmented."""

    directory: Annotated[PathText, AS_NAMES]
    """A dataset directory, built by `joytag build`."""
    tags: Annotated[PositiveInt | None, RESUMING] = None
    """Number of tags, for a dry run without the dataset; null reads it from the dataset."""
    workers: Annotated[int | None, RESUMING] = Field(default=None, ge=0)
    """Decoding processes per training process; 0 decodes in the training process, null chooses by device."""
    augment: Annotated[str, Choice(["none", *SPACES])] = "trivial"
    """Augmentation: trivial is TrivialAugment, rand is RandAugment."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of the beta distribution of mixup's shares; 0 turns mixup off."""
    unlabelled: Literal["absent", "ignore"] = Field(default="absent", exclude_if=lambda value: value == "absent")
    """Tags that a label neither names nor rejects, in sources whose labels are not exhaustive: `absent` learns that the
    image has none of them, `ignore` leaves them out of the loss. In exhaustive sources they are always absent."""
    max_bad: Annotated[float, RESUMING] = Field(default=0.05, ge=0, le=1)
    """The run ends when more than this share of the images cannot be decoded; until then they are replaced."""
    timeout: Annotated[PositiveInt, RESUMING] = 600
    """Seconds to wait for a decoding process before the run ends."""


class Model(Settings, ViTOptions):
    """The architecture, without what data and stages determine.

    With `init_from` its defaults are the release's. With `timm` the model is that backbone, and only
    `stochdepth_rate` can be chosen.
    """

    timm: str | None = None
    """A backbone from timm.list_models() instead of our vision transformer; null: none."""
    freeze: int | None = Field(default=None, ge=0)
    """Keep the weights of the stem and of this many blocks; null trains everything, 0 freezes the stem alone."""


ARCHITECTURE = [name for name in Model.model_fields if name != "freeze"]
TIMM = {"timm", "stochdepth_rate", "freeze"}  # the settings that apply to a timm backbone


class Stage(Settings):
    """A stretch of training at one image size."""

    image_size: PositiveInt | None = None
    """Side of the images, pixels; null, only with init_from: the release's."""
    samples: PositiveInt
    """Length in samples, rounded down to whole batches."""
    restart: bool = True
    """Begin with a fresh optimizer, gradient scaler and learning-rate curve."""


class Optimizer(Settings):
    """The optimizer and its peak learning rate, which decays to 0 on a cosine in each stage that restarts."""

    name: Annotated[str, Choice(OPTIMIZERS)] = "lamb"
    """The algorithm; torch_optimizer_lamb is LAMB as in the paper, without bias correction."""
    lr: Annotated[float, BRANCHING] = Field(default=0.004, gt=0)
    """Peak learning rate."""
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    """Decay rates of the two moments, per step."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay, of all parameters."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to at most this norm."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each block to the one before it; 1 gives all the same rate."""


class Loss(Settings):
    """The loss and its targets."""

    name: Annotated[str, Choice(LOSSES)] = "focal"
    """The loss function."""
    gamma: float = Field(default=2.0, ge=0)
    """Focal loss only: how strongly well-classified labels are discounted; 0 is plain cross-entropy."""
    gamma_positive: float = Field(default=1.0, ge=0)
    """asymmetric only: how strongly well-classified positives are discounted; the loss's paper trains with 0."""
    frequency_power: float = Field(default=0.0, ge=0, le=1)
    """bce only: positives of a tag weigh its odds to the power of minus this; 0 weighs all alike, 1 balances fully."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Move targets towards 1/2 by this share."""
    multiplier: float = Field(default=128.0, gt=0)
    """Factor of the loss; it keeps the mean over thousands of rare tags in the range of fp16 gradients."""

    @model_validator(mode="after")
    def _check_unused_options(self) -> Self:
        for option in sorted({option for loss in LOSSES.values() for option in loss.options}):
            users = [name for name, loss in LOSSES.items() if option in loss.options]
            if self.name not in users and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: only for name: {' or '.join(users)}, not {self.name}")
        return self


class Every(Settings):
    """How often the run logs, validates and saves; it also does all three at the end of a stage."""

    log: PositiveInt = 409_600
    """Samples between two lines of the log."""
    evaluate: PositiveInt = 10_000_000
    """Samples between two validations."""
    checkpoint: PositiveInt = 2_000_000
    """Samples between two checkpoints."""


class Tracking(Settings):
    """Where metrics go besides the terminal and log.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto follows WANDB_MODE or, without it, is online with an account, else offline."""
    project: str | None = None
    """Project at Weights & Biases. Null: WANDB_PROJECT, else joytag."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, to tensorboard/ in the run's directory; needs joytag[tensorboard]."""


class RunSettings(Settings):
    """A training run: a file in configs/."""

    output: Annotated[PathText, RESUMING]
    """The run's directory."""
    init_from: Annotated[PathText | None, AS_NAMES] = None
    """A release to take weights from, a directory or a hub id; tags are matched by name. Null: random weights."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, order, augmentation, mixup and stochastic depth."""
    retain: float = Field(default=0.0, ge=0, lt=1)
    """Share of init_from's weights that is mixed into the finished model."""
    distill: bool = False
    """Learn the tags that init_from knows from its scores; labels correct them on images with any of these tags."""
    data: Data
    """The images."""
    model: Model = Model()
    """The architecture."""
    stages: list[Stage] = Field(min_length=1)
    """The stages, in order."""
    batch_size: PositiveInt = 4096
    """Samples of an optimizer step, over all processes."""
    micro_batch: Annotated[PositiveInt | Literal["auto"] | None, RESUMING] = None
    """Samples that a process computes at once; null: its whole share of a batch, auto: as many as fit in memory."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    average: float | None = Field(default=None, gt=0, lt=1)
    """Publish an exponential moving average of the weights with this decay per step; null: the weights themselves."""
    loss: Loss = Loss()
    """The loss."""
    device: Annotated[str, RESUMING] = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """cpu, mps, cuda or cuda:N; auto takes the fastest present."""
    precision: Annotated[Literal["auto", "fp16", "bf16", "fp32"], AS_NAMES] = "auto"
    """Number format of forward and backward passes; auto chooses by device and model width."""
    matmul: Annotated[str, Choice(["auto", *LIBRARIES]), RESUMING] = "auto"
    """A CPU's library of float32 products: torch's BLAS, or oneDNN; auto measures once which is faster."""
    compile: Annotated[bool, RESUMING] = False
    """Compile stem and blocks by torch.compile: a minute for each image size, and no gain on a CPU."""
    threshold: Annotated[float, RESUMING] = Field(default=DEFAULT_THRESHOLD, gt=0, lt=1)
    """Score above which a tag counts as predicted in validation."""
    every: Annotated[Every, RESUMING] = Every()
    """How often the run logs, validates and saves."""
    keep_last: Annotated[PositiveInt, RESUMING] = 3
    """Number of newest checkpoints to keep."""
    keep_every: Annotated[PositiveInt, RESUMING] = 50_000_000
    """Samples; the first checkpoint after each such stretch is kept, too."""
    max_skips: Annotated[PositiveInt, RESUMING] = 3
    """The run ends after this many steps in a row without finite gradients."""
    timeout: Annotated[PositiveInt, RESUMING] = 600
    """Seconds that processes wait for each other before the run ends."""
    tracking: Annotated[Tracking, RESUMING] = Tracking()
    """Where metrics go besides the terminal and log.jsonl."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if isinstance(self.micro_batch, int) and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.retain and self.init_from is None:
            raise ValueError("retain: needs init_from, whose weights it retains")
        if self.distill and self.init_from is None:
            raise ValueError("distill: needs init_from, whose scores it learns")
        for number, stage in enumerate(self.stages):
            if stage.samples < self.batch_size:
                raise ValueError(
                    f"stages.{number}.samples: {stage.samples} is less than one batch_size {self.batch_size}"
                )
            if stage.image_size is None:
                if self.init_from is None:
                    raise ValueError(f"stages.{number}.image_size: missing; only init_from provides a default")
                continue
            if self.init_from is not None and not self.model.model_fields_set >= set(ARCHITECTURE):
                continue  # the release's architecture is not known yet
            try:
                self.architecture(1, stage.image_size)
            except ValueError as error:
                key = f"stages.{number}" if str(error).startswith("image_size") else "model"
                raise ValueError(f"{key}.{error}") from None
        if self.model.timm is not None:
            self._check_timm()
        if not self.model.use_sine and len({stage.image_size for stage in self.stages}) > 1:
            raise ValueError("model.use_sine: learned positions fit one image size, the stages have several")
        return self

    def _check_timm(self) -> None:
        for name in sorted(self.model.model_fields_set - TIMM):
            if getattr(self.model, name) != type(self.model).model_fields[name].default:
                raise ValueError(f"model.{name}: not for a timm backbone, which has its own")
        sizes = [stage.image_size for stage in self.stages if stage.image_size is not None]
        try:
            with torch.device("meta"):
                model = self.architecture(1, sizes[0]).build().eval() if sizes else None
            for size in sizes[1:]:
                assert model is not None
                model(torch.empty(1, 3, size, size, device="meta"))
        except (ValueError, AssertionError, RuntimeError) as error:  # whatever a backbone raises for a size
            raise ValueError(f"stages: {self.model.timm} does not take these image sizes ({error})") from None

    def architecture(self, n_tags: int, image_size: int) -> Config:
        """Return the architecture at an image size. Raises ValueError, naming the field, when it cannot be built."""
        if self.model.timm is not None:
            return TimmConfig(n_tags, self.model.timm, image_size, self.model.stochdepth_rate)
        return ViTConfig(n_tags=n_tags, image_size=image_size, **self.model.model_dump(exclude={"timm", "freeze"}))

    def checkpoint_bytes(self, n_tags: int) -> int:
        """Return the size of a checkpoint, float32: weights, their average, and two moments of those that train.

        Numbers beside the parameters, such as the statistics of BatchNorm, are left out.
        """
        with torch.device("meta"):
            model = self.architecture(n_tags, self.plan()[0].image_size).build()
        if self.model.freeze is not None:
            model.freeze(self.model.freeze)
        copies = 1 if self.average is None else 2
        return 4 * sum(p.numel() * (copies + 2 * p.requires_grad) for p in model.parameters())

    def fitted_to(self, released: Config) -> RunSettings:
        """Fill in the architecture and the image sizes that these settings leave to `init_from`'s release.

        Raises SettingsError when the two are incompatible.
        """
        values = self.model_dump()
        chosen = self.model.model_dump(exclude_unset=True)
        values["model"] |= {name: getattr(released, name) for name in ARCHITECTURE if hasattr(released, name)} | chosen
        for stage in values["stages"]:
            stage["image_size"] = stage["image_size"] or released.image_size
        return settings.validate(RunSettings, values, f"init_from {self.init_from}")

    def plan(self) -> list[schedule.Stage]:
        """Return the stages in whole global batches."""
        stages = []
        for stage in self.stages:
            assert stage.image_size is not None, "call fitted_to first"
            samples = schedule.whole_batches(stage.samples, self.batch_size)
            stages.append(schedule.Stage(stage.image_size, samples, stage.restart))
        return stages


def load(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run's settings; those that it leaves to the release of `init_from` are filled in.

    Raises SettingsError when they are wrong or do not fit the release.
    """
    config = settings.load(RunSettings, path, overrides)
    if config.init_from is None:
        return config
    return config.fitted_to(release.read_config(release.locate(config.init_from)))

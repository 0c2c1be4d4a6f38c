"""The settings of a training run, with the recipe's values as defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, Strict, model_validator

from joytag.core import settings
from joytag.core.settings import Settings
from joytag.models.architectures import Config
from joytag.models.stem import RELEASE_STEM
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViTConfig
from joytag.training import schedule

PositiveInt = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Data(Settings):
    """Where the images come from."""

    directory: str  # a dataset directory, built by data_prep.build
    tags: PositiveInt | None = None  # size of the vocabulary, for a dry run without data
    workers: int | None = Field(default=None, ge=0)  # decoding processes; null chooses by device
    augment: Literal["trivial", "rand", "none"] = "trivial"
    mixup: float = Field(default=0.0, ge=0)  # alpha, of the beta distribution of shares; 0 for none
    max_bad: float = Field(default=0.05, ge=0, le=1)  # the share of images that may be replaced, being undecodable
    timeout: PositiveInt = 600  # seconds to wait for the decoding processes


class Model(Settings):
    """The architecture; see `joytag.models.vit.ViTConfig`. The vocabulary and the image size come from elsewhere.

    With `init_from` the defaults are those of its release. With `timm` it is that backbone, of which only
    `stochdepth_rate` can be chosen.
    """

    timm: str | None = None  # a name in timm.list_models()
    num_blocks: int = 12
    patch_size: int = 16
    d_model: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    stochdepth_rate: float = 0.05
    use_sine: bool = True
    layerscale_init: float | None = None
    head_mean_after: bool = False
    cnn_stem: str | None = RELEASE_STEM
    patch_dropout: float = 0.0
    freeze: int | None = Field(default=None, ge=0)  # the stem and this many blocks keep their weights


ARCHITECTURE = [name for name in Model.model_fields if name != "freeze"]
TIMM = {"timm", "stochdepth_rate", "freeze"}  # the settings that mean something for a backbone of timm


class Stage(Settings):
    """A stretch of training at one image size; `restart` begins it with a fresh optimizer, scaler and rate."""

    image_size: PositiveInt | None = None  # null, with init_from: its release's
    samples: PositiveInt
    restart: bool = True


class Optimizer(Settings):
    """The optimizer and its peak learning rate, which decays to 0 on a cosine in each stage."""

    name: Literal["lamb", "torch_optimizer_lamb", "adamw"] = "lamb"
    lr: float = Field(default=0.004, gt=0)
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # of the rate, from each block to the one before it


class Loss(Settings):
    """The loss; `multiplier` keeps it, averaged over thousands of rare tags, in the range of fp16 gradients."""

    name: Literal["focal", "bce", "asymmetric"] = "focal"
    gamma: float = Field(default=2.0, ge=0)  # of the focal loss
    frequency_power: float = Field(
        default=0.0, ge=0, le=1
    )  # of bce, weighted by tags' odds; see joytag.training.losses
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    multiplier: float = Field(default=128.0, gt=0)

    @model_validator(mode="after")
    def _not_in_vain(self) -> Self:
        for field, name in {"gamma": "focal", "frequency_power": "bce"}.items():
            if self.name != name and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field}: only for name: {name}, not {self.name}")
        return self


class Every(Settings):
    """How often things happen, in samples; each also happens at the end."""

    log: PositiveInt = 409_600
    evaluate: PositiveInt = 10_000_000
    checkpoint: PositiveInt = 2_000_000


class Tracking(Settings):
    """Where figures go besides the terminal and log.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with an account
    project: str = "joytag"


class RunSettings(Settings):
    """Settings of a training run: a file in configs/."""

    output: str  # the run's directory
    init_from: str | None = None  # a release whose weights to start with, its head's rows by tag name
    seed: int = Field(default=0, ge=0)
    retain: float = Field(default=0.0, ge=0, lt=1)  # the share of init_from's weights in the finished model
    data: Data
    model: Model = Model()
    stages: list[Stage] = Field(min_length=1)
    batch_size: PositiveInt = 4096  # global: the samples of an optimizer step
    # The samples a process works on at once; null for all its share, auto for the most that the GPU's memory takes.
    micro_batch: PositiveInt | Literal["auto"] | None = None
    optimizer: Optimizer = Optimizer()
    average: float | None = Field(default=None, gt=0, lt=1)  # of the weights over steps: the share that is kept
    loss: Loss = Loss()
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    compile: bool = False  # stem and blocks by torch.compile; takes a minute at each image size; no gain on a CPU
    threshold: float = Field(default=0.4, gt=0, lt=1)  # of a tag's score, in validation
    every: Every = Every()
    keep_last: PositiveInt = 3  # checkpoints
    keep_every: PositiveInt = 50_000_000  # samples: the first checkpoint after each such stretch stays, too
    max_skips: PositiveInt = 3  # steps in a row with gradients that are not finite, after which the run ends
    timeout: PositiveInt = 600  # seconds that processes wait for each other
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if isinstance(self.micro_batch, int) and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.retain and self.init_from is None:
            raise ValueError("retain: there is nothing to retain without init_from")
        for number, stage in enumerate(self.stages):
            if stage.samples < self.batch_size:
                raise ValueError(
                    f"stages.{number}.samples: {stage.samples} is less than one batch_size {self.batch_size}"
                )
            if stage.image_size is None:
                if self.init_from is None:
                    raise ValueError(f"stages.{number}.image_size: give one; only with init_from is there a default")
                continue
            if self.init_from is not None and not self.model.model_fields_set >= set(ARCHITECTURE):
                continue  # the release's architecture is not known yet
            try:
                self.architecture(1, stage.image_size)
            except ValueError as error:
                key = f"stages.{number}" if str(error).startswith("image_size") else "model"
                raise ValueError(f"{key}.{error}") from None
        if self.model.timm is not None:
            self._possible_timm()
        if not self.model.use_sine and len({stage.image_size for stage in self.stages}) > 1:
            raise ValueError("model.use_sine: learned positions fit one image size, the stages have several")
        return self

    def _possible_timm(self) -> None:
        for name in sorted(self.model.model_fields_set - TIMM):
            if getattr(self.model, name) != type(self.model).model_fields[name].default:
                raise ValueError(f"model.{name}: not for a backbone of timm, which has its own")
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
        """The architecture at an image size. Raises ValueError, naming the field, when it cannot be built."""
        if self.model.timm is not None:
            return TimmConfig(n_tags, self.model.timm, image_size, self.model.stochdepth_rate)
        return ViTConfig(n_tags=n_tags, image_size=image_size, **self.model.model_dump(exclude={"freeze", "timm"}))

    def fitted_to(self, released: Config) -> RunSettings:
        """These settings with the architecture and the image size of `init_from`, where they have none of their own.

        Raises SettingsError when the two cannot go together.
        """
        values = self.model_dump()
        own = self.model.model_dump(exclude_unset=True)
        values["model"] |= {name: getattr(released, name) for name in ARCHITECTURE if hasattr(released, name)} | own
        for stage in values["stages"]:
            stage["image_size"] = stage["image_size"] or released.image_size
        return settings.validate(RunSettings, values, f"init_from {self.init_from}")

    def plan(self) -> list[schedule.Stage]:
        """The stages in whole global batches."""
        stages = []
        for stage in self.stages:
            assert stage.image_size is not None, "fitted_to comes first"
            samples = schedule.whole_batches(stage.samples, self.batch_size)
            stages.append(schedule.Stage(stage.image_size, samples, stage.restart))
        return stages

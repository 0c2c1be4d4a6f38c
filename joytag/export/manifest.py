"""The manifest of an export: what a program must know to use the model, as JSON and in the model's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from joytag.core.settings import Settings, SettingsError, validate
from joytag.data import images, preprocessing

FILE = "manifest.json"
Holds = Literal["logits", "scores", "embedding"]


class Input(Settings):
    """The model's input: a batch of square images."""

    name: str
    axes: Literal["NCHW", "NHWC"]
    """N is the batch, of any size; C the channels, H and W the image's side."""
    side: int
    """Pixels."""
    channels: Literal["RGB", "BGR"]
    range: Literal["0 to 255", "standardized"]
    """standardized: divided by 255, less `mean`, divided by `std`."""
    mean: list[float] = list(preprocessing.MEAN)
    """In the order R, G, B; where the range is 0 to 255 the model itself uses it."""
    std: list[float] = list(preprocessing.STD)
    padding: list[int] = list(images.WHITE)
    """Colour, R, G, B, of the centred square around the image, and beneath transparent pixels."""
    resampling: Literal["bicubic"] = "bicubic"
    """How the padded square is resized."""


class Output(Settings):
    """An output of the model, [batch, size]."""

    name: str
    holds: Holds
    activation: Literal["none", "sigmoid"]
    """The last function of the model; the sigmoid of a logit is a score."""
    size: int


class Thresholds(Settings):
    """A tag is predicted when its score is above its threshold."""

    default: float
    suggested: dict[str, float]
    """By tag, from the evaluation of the release; empty without one."""


class Interval(Settings):
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float


class Evaluation(Settings):
    """What the release reached on held-out images, at one threshold for all tags."""

    dataset: str
    """The name of its directory."""
    split: str
    images: int
    tags: int
    threshold: float
    metrics: dict[str, Interval]


class Verification(Settings):
    """The exported model beside the release: a decision is whether an image has a tag, at the default threshold."""

    origin: str
    """Where the images are from."""
    images: int
    decisions: int
    agreement: float
    """Share of equal decisions."""
    common_tags: float
    """Tags that both predict, as a share of those that either predicts; 1 without any."""
    largest_difference: float
    """Between two scores."""


class Manifest(Settings):
    """All that describes an export."""

    version: Literal[1] = 1
    joytag: str
    """The version that wrote the export."""
    layout: str
    precision: str
    model: str
    """The file of the model."""
    opset: int
    ir_version: int
    input: Input
    outputs: list[Output]
    tags: int
    """The size of the scores, with what the layout adds to the model's tags, and without what it leaves out."""
    model_tags: int
    thresholds: Thresholds
    notes: list[str]
    """What the layout cannot hold and what became of it, and which of its programs cannot use the model."""
    release: dict[str, str]
    """The sha256 of each file of the release, by name."""
    verification: Verification | None
    evaluation: Evaluation | None

    def properties(self) -> dict[str, str]:
        """Return the fields as the model's metadata holds them: texts as they are, all else as JSON."""
        values = self.model_dump(mode="json")
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}

    def text(self) -> str:
        """Return the content of manifest.json."""
        return self.model_dump_json(indent=2) + "\n"


def read(directory: Path) -> Manifest:
    """Read the manifest of an export. Raises SettingsError naming the file and the field."""
    path = directory / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); export the model again") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: not the manifest of an export; export the model again")
    return validate(Manifest, values, str(path))

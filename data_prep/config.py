"""The settings of a dataset, typed, with their defaults: what a file in configs/data/ may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.scan import Format
from data_prep.sources.danbooru2021 import Images
from joytag.core.settings import Settings


class Source(Settings):
    """A place that images come from; the name stays with every record."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    kind: Literal["danbooru2021", "sidecar", "jsonl", "parquet"]
    path: str  # a folder; of jsonl the file
    images: Images = "original"  # of a danbooru2021 mirror
    min_tags: int = Field(default=0, ge=0)  # that people gave an image, before any are added or dropped


class Copies(Settings):
    """When two images are copies of each other, and when they look too much alike to be parted by the split."""

    radius: int = Field(default=0, ge=0, le=8)  # bits in which pHashes may differ
    max_difference: int = Field(default=4, ge=0, le=255)  # of copies' colour thumbnails, levels


class TagPolicy(Settings):
    """Which tags and images are worth learning from."""

    min_count: int = Field(default=1200, ge=1)  # images that a tag of the vocabulary needs
    min_tags: int = Field(default=5, ge=1)  # tags that an image needs
    blacklist: list[str] = []  # names, and patterns such as bad_*_id
    blacklist_files: list[str] = []  # text files of them
    keep: str | None = None  # a release's top_tags.txt, whose tags stay in the vocabulary however rare here


class Validation(Settings):
    """The held-out images."""

    images: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 32_768  # or their share of all
    min_per_tag: int = Field(default=5, ge=0)
    min_per_source: int = Field(default=100, ge=0)  # or a tenth of a source that has less than ten times as many
    seed: int = Field(default=0, ge=0)


class BuildSettings(Settings):
    """Settings of a dataset: a file in configs/data/."""

    output: str
    sources: list[Source] = Field(min_length=1)
    images: bool = True  # whether they are looked at; without, one learns what tags there would be
    longest_side: int = Field(default=512, ge=32)  # of the stored copies, pixels
    format: Format = "jpeg"
    copies: Copies = Copies()
    tags: TagPolicy = TagPolicy()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _source_names_are_distinct(self) -> BuildSettings:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("sources: two have the same name")
        if "all" in names:
            raise ValueError("sources: none may be called all, which stands for all of them in metrics")
        return self

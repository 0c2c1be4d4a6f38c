"""The settings of a dataset, which files in configs/data/ hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from data_prep.families import TIES
from data_prep.scan import Format
from data_prep.sources.danbooru2021 import Images
from data_prep.sources.registry import KINDS, Transparent
from data_prep.sources.sidecar_style import AUTO
from joytag.core.settings import Choice, PathText, Settings

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


class Source(Settings):
    """The sources of images and tags, in the order of their numbers in the dataset."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Lower-case letters, digits, `_` and `-`; metrics are also reported by this name."""
    kind: Annotated[str, Choice(KINDS)]
    """The format of the source; docs/datasets.md describes each format."""
    path: PathText
    """The source's folder or file; docs/datasets.md says which."""
    images: Images = "original"
    """The folder of a `danbooru2021` mirror to read images from; other kinds ignore it."""
    separator: str = Field(default=AUTO, min_length=1)
    """What separates tags in sidecars and in texts of `jsonl`: `comma`, `semicolon`, `bar`, `newline`, `space`, or the
    text between two tags. `auto` recognizes it: in each folder of sidecars, in each line of `jsonl`."""
    transparent: Transparent | None = None
    """Transparent images: `white` puts them on white, as tagging does; `refuse` leaves them out. null is `refuse` for
    `danbooru2021`, as in the original build, and `white` for the other kinds."""
    family: str | None = Field(default=None, min_length=1)
    """What names an image's family, which stays on one side of the split: in `jsonl` and `parquet` a column of texts or
    whole numbers, in `sidecar` a regular expression over paths such as `(\\d+)_p\\d+`, of which the groups, or without
    any the whole match, are the name. An image without a name has no such family. `danbooru2021` ignores it."""
    negatives: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether a hyphen before a tag of a sidecar, or of a text of `jsonl`, rejects it: `-cat` means that no cat shows.
    Off by default, since some tags begin with a hyphen. Lists `negatives` of `jsonl` and `parquet` are always read."""
    exhaustive: bool = Field(default=True, exclude_if=lambda value: value)
    """Whether an image has none of the tags that its labels do not name. If `false`, those are unknown, and
    `data.unlabelled` of a run says what it makes of them."""
    min_tags: int = Field(default=0, ge=0)
    """Fewest tags of a post in the source, before aliases, implications and the blacklist; 0 accepts every post."""


class Copies(Settings):
    """When two images count as copies.

    Of several copies the largest is kept, with the tags of all.
    """

    radius: int = Field(default=0, ge=0, le=8)
    """Largest distance of two look-alikes' 64-bit pHashes, bits; 0 requires equal hashes."""
    max_difference: int = Field(default=4, ge=0, le=255)
    """Largest difference of two copies' 16x16 colour thumbnails in any value, levels of 0 to 255."""


class TagPolicy(Settings):
    """Which tags are learned, and which images have enough tags."""

    min_count: int = Field(default=1200, ge=1)
    """Images, in training and validation together, that a tag needs to be in the vocabulary."""
    min_tags: int = Field(default=5, ge=1)
    """Tags that an image needs, after aliases, implications and the blacklist, before rare tags are dropped. Images
    without any tag of the vocabulary are always left out."""
    blacklist: list[str] = []
    """Tags to drop: names, or patterns such as `bad_*_id`."""
    blacklist_files: list[PathText] = []
    """Text files of tags to drop, one name or pattern a line, `#` before a comment."""
    keep: PathText | None = None
    """The `top_tags.txt` of a release; its tags stay in the vocabulary even if they are rare here."""


class Validation(Settings):
    """Which images are held out, and which stay together."""

    images: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 32_768
    """Number of images to hold out, or a fraction of all images. More are held out only for `min_per_tag` and
    `min_per_source`, up to a fifth."""
    min_per_tag: int = Field(default=5, ge=0)
    """Fewest held-out images of each tag, but at most a fifth of its images, or the fraction that `images` is. Training
    keeps at least half of what a random choice would leave there. A tag that cannot have both is dropped and named."""
    min_per_source: int = Field(default=100, ge=0)
    """Fewest held-out images of each source, but at most a tenth of its images, or the fraction that `images` is."""
    families: list[Annotated[str, Choice(TIES)]] = [*TIES]
    """What ties images into families, which are never divided between training and validation: `parent_id` and
    `pixiv_id` of a mirror's posts, the setting `family` of a source, and `look_alikes`. Ties add up, also over posts
    that are not in the dataset. Copies always belong together."""
    radius: int = Field(default=0, ge=0, le=8)
    """Largest distance of the pHashes of `look_alikes`, bits; at least `copies.radius` counts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random choice."""

    def wanted(self, n_images: int) -> int:
        """Return how many of a number of images should be held out."""
        return max(1, round(self.images * n_images)) if isinstance(self.images, float) else self.images


class BuildSettings(Settings):
    """Settings of a dataset: a file in configs/data/."""

    output: PathText
    """The dataset directory to write."""
    sources: list[Source] = Field(min_length=1)
    images: bool = True
    """Whether to scan and store images. `false` only computes the tags, from metadata alone."""
    longest_side: int = Field(default=512, ge=32)
    """Longest side of the stored images, pixels; smaller images keep their size."""
    format: Format = "jpeg"
    """Format of the stored images; `mixed` is the original build's mixture of WebP qualities."""
    copies: Copies = Copies()
    tags: TagPolicy = TagPolicy()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _check_source_names(self) -> BuildSettings:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("sources: two have the same name")
        if reserved := RESERVED.intersection(names):  # each has a folder of its name
            raise ValueError(f"sources: none may be called {min(reserved)}, a name that Windows reserves")
        if "all" in names:
            raise ValueError("sources: none may be called all, the name that metrics use for all sources together")
        return self

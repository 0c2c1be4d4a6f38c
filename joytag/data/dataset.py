"""The dataset directory: its files, their parquet schemas, and checked reading and writing.

dataset.json           version, sources in order, settings and counts of the build; written last
config.yaml            the settings that build it again
tags.parquet           one row for each output of the model, in order
top_tags.txt           the tags' names, as in a release
train.parquet          one row for each image
validation.parquet
rejected.parquet       one row for each post that is in neither split, with the reason
work/                  intermediate results, from which an interrupted build continues; nothing else reads them
images/ab/cd/HASH.jpg  resized images, named by the hex sha256 of the original file
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from joytag.core.files import write_text
from joytag.data.tables import TableError, read_table

VERSION = 1
CONFIG = "config.yaml"
COPIES = ("longest_side", "format")  # keys of the build's settings that decide the stored images
SPLITS = ("train", "validation")
CATEGORIES = {0: "general", 1: "artist", 3: "copyright", 4: "character", 5: "meta"}  # Danbooru's numbers

# The first three columns are those of the original JoyTag build.
POSTS_SCHEMA = pa.schema(
    [
        pa.field("post_id", pa.int64(), nullable=False),
        pa.field("tags", pa.list_(pa.field("element", pa.int16(), nullable=False)), nullable=False),
        pa.field("hash", pa.binary(32), nullable=False),
        pa.field("source", pa.int16(), nullable=False),  # index into dataset.json's sources
        pa.field("phash", pa.uint64(), nullable=False),
    ]
)
# Datasets of older builds lack these columns.
NEGATIVES = pa.field(  # tags that somebody rejected; never one of `tags`
    "negatives", pa.list_(pa.field("element", pa.int16(), nullable=False)), nullable=False
)
FAMILY = pa.field("family", pa.int64(), nullable=False)  # the same for images that one split must hold together
# Only read to name images to people.
PATH = pa.field("path", pa.string(), nullable=False)  # of the original file, relative to its source's folder
TAGS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int16(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("category", pa.int8(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("count_train", pa.int64(), nullable=False),
        pa.field("count_validation", pa.int64(), nullable=False),
        pa.field("count_by_source", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
    ]
)


class DatasetError(ValueError):
    """A dataset directory that is missing or damaged; one line with the file, the field and the remedy."""


class DatasetMissing(DatasetError):
    """A directory, `directory`, without a dataset of this version: it must be built."""

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(message)
        self.directory = directory


@dataclass(frozen=True)
class TagTable:
    """The vocabulary; row i describes output i of the model.

    `names` are unique, with underscores; `categories` are keys of CATEGORIES; `counts` are the tag's images in the
    training split, `totals` those in both splits.
    """

    names: list[str]
    categories: NDArray[np.int8]
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def describe_lacking(self) -> str:
        """Name some tags that training or validation has no images of, in one line; "" without any."""
        held = self.totals - self.counts
        lacking = {
            "any image": self.totals == 0,
            "a training image": (self.counts == 0) & (held > 0),
            "a validation image": (held == 0) & (self.counts > 0),
        }
        parts = []
        for lack, is_lacking in lacking.items():
            rows = np.flatnonzero(is_lacking).tolist()
            if rows:
                names = ", ".join(self.names[row] for row in rows[:3])
                parts.append(f"{len(rows):,} without {lack} ({names}{', ...' if len(rows) > 3 else ''})")
        return f"of {len(self):,} tags: {', '.join(parts)}" if parts else ""

    @classmethod
    def read(cls, path: Path, schema: pa.Schema = TAGS_SCHEMA) -> TagTable:
        """Read a `tags.parquet`, which has the columns of a schema. Raises TableError."""
        table = read_table(path, schema)
        names = table.column("name").to_pylist()
        if table.column("index").to_pylist() != list(range(len(names))):
            raise TableError(f"{path}: index: must count up from 0")
        if len(set(names)) != len(names):
            raise TableError(f"{path}: name: a tag occurs twice")
        return cls(names, *(table.column(name).to_numpy() for name in ("category", "count_train", "count")))


@dataclass(frozen=True)
class Lists:
    """Lists of tags, one a row: those of row i are `tags[offsets[i]:offsets[i + 1]]`."""

    offsets: NDArray[np.integer]
    tags: NDArray[np.int16]


@dataclass(frozen=True)
class Posts:
    """The images of one split, as columns; row i is image i.

    The tags of row i are `tags[offsets[i]:offsets[i + 1]]`. `hashes` [rows, 32] are the sha256 of the original files.
    `sources` are indexes of `Dataset.sources`. `negatives` are the tags that somebody rejected, None if there are none.
    `families` are numbers, the same for images that vary one another; None in datasets of older builds.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.integer]
    tags: NDArray[np.int16]
    hashes: NDArray[np.uint8]
    sources: NDArray[np.integer]
    negatives: Lists | None = None
    families: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, rows: NDArray[np.int64], n_tags: int) -> NDArray[np.bool_]:
        """Return the labels of some images, [len(rows), n_tags]."""
        labels = np.zeros((len(rows), n_tags), dtype=bool)
        for i, row in enumerate(rows):
            labels[i, self.tags[self.offsets[row] : self.offsets[row + 1]]] = True
        return labels

    def signed_labels(self, rows: NDArray[np.int64], n_tags: int) -> NDArray[np.int8]:
        """Return 1 for tags of the images, -1 for rejected ones and 0 for all others, [len(rows), n_tags]."""
        labels = self.labels(rows, n_tags).view(np.int8)
        if self.negatives is not None:
            for i, row in enumerate(rows):
                labels[i, self.negatives.tags[self.negatives.offsets[row] : self.negatives.offsets[row + 1]]] = -1
        return labels


@dataclass(frozen=True)
class Dataset:
    """A dataset directory, opened and checked; its splits are read on demand.

    `copies` are the settings of the stored images, by name: their longest side and their format. `exhaustive` says of
    each source whether images have none of the tags that their labels do not name; otherwise these are unknown.
    """

    directory: Path
    sources: list[str]
    extension: str
    tags: TagTable
    copies: dict[str, Any]
    exhaustive: list[bool]

    @classmethod
    def open(cls, directory: Path) -> Dataset:
        """Read the description and the tag table. Raises DatasetMissing, or DatasetError when one is damaged."""
        description = read_description(directory)
        try:
            tags = TagTable.read(directory / "tags.parquet")
        except TableError as error:
            raise DatasetError(f"{error}; build the dataset again") from None
        config = description.get("config")
        copies = {name: config.get(name) for name in COPIES} if isinstance(config, dict) else {}
        sources = description["sources"]
        exhaustive = description.get("exhaustive", [True] * len(sources))  # older builds have no others
        return cls(directory, sources, description["extension"], tags, copies, exhaustive)

    def posts(self, split: str) -> Posts:
        """Read `train` or `validation`. Raises DatasetError when the file is damaged or contradicts the tag table."""
        path = self.directory / f"{split}.parquet"
        try:
            table = read_table(path, POSTS_SCHEMA, optional=[NEGATIVES, FAMILY])
        except TableError as error:
            raise DatasetError(f"{error}; build the dataset again") from None
        column, negatives = table.column("tags").combine_chunks(), None
        if NEGATIVES.name in table.column_names:
            lists = table.column(NEGATIVES.name).combine_chunks()
            negatives = Lists(lists.offsets.to_numpy(), lists.values.to_numpy()) if len(lists.values) else None
        posts = Posts(
            ids=table.column("post_id").to_numpy(),
            offsets=column.offsets.to_numpy(),
            tags=column.values.to_numpy(),
            hashes=np.frombuffer(b"".join(table.column("hash").to_pylist()), dtype=np.uint8).reshape(-1, 32),
            sources=table.column("source").to_numpy(),
            negatives=negatives,
            families=table.column(FAMILY.name).to_numpy() if FAMILY.name in table.column_names else None,
        )
        if len(posts) == 0:
            raise DatasetError(f"{path}: holds no images; build the dataset again")
        numbers = [("tags", posts.tags, len(self.tags)), ("source", posts.sources, len(self.sources))]
        if negatives is not None:
            numbers.append((NEGATIVES.name, negatives.tags, len(self.tags)))
        for name, values, limit in numbers:
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise DatasetError(f"{path}: {name}: values outside 0 to {limit - 1}; build the dataset again")
        return posts

    def tags_without_negatives(self, posts: Posts) -> NDArray[np.bool_]:
        """Return which tags none of the images lacks or rejects, [N]: nothing says where they are not."""
        is_exhaustive = np.array(self.exhaustive)[posts.sources]
        of_exhaustive = posts.tags[np.repeat(is_exhaustive, np.diff(posts.offsets))]
        negatives = is_exhaustive.sum() - np.bincount(of_exhaustive, minlength=len(self.tags))
        if posts.negatives is not None:
            negatives += np.bincount(posts.negatives.tags, minlength=len(self.tags))
        return negatives == 0

    def content_hash(self, posts: Posts) -> str:
        """Hash what a split holds: the vocabulary, the images in their order, and their labels (sha256, hex).

        Without rejected tags and with exhaustive sources alone it is the same as in versions that knew no others.
        """
        content = hashlib.sha256("\n".join(self.tags.names).encode())
        columns = [posts.ids, posts.offsets, posts.tags, posts.hashes, posts.sources]
        if posts.negatives is not None:
            columns += [posts.negatives.offsets, posts.negatives.tags]
        if not all(self.exhaustive):
            columns.append(np.array(self.exhaustive))
        for column in columns:
            content.update(np.ascontiguousarray(column).data)
        return content.hexdigest()

    def original_paths(self, split: str, hashes: NDArray[np.uint8]) -> list[str]:
        """Return the original files of images of a split by hashes, uint8 [N, 32]: paths in their sources' folders.

        "" if a path is unknown: an image that is not in the split, or a dataset of an older build.
        """
        path, wanted = self.directory / f"{split}.parquet", [row.tobytes() for row in hashes]
        try:
            found = pq.read_table(
                path, columns=["hash", PATH.name], filters=pc.field("hash").isin(pa.array(wanted, pa.binary(32)))
            )
        except (OSError, pa.ArrowException):
            return [""] * len(wanted)
        paths = dict(zip(found["hash"].to_pylist(), found[PATH.name].to_pylist(), strict=True))
        return [paths.get(sha256, "") for sha256 in wanted]

    def originals(self, split: str) -> pa.ChunkedArray | None:
        """Return the original file of each image of a split, [rows]: paths in their sources' folders.

        None if they are unknown, in a dataset of an older build.
        """
        try:
            return pq.read_table(self.directory / f"{split}.parquet", columns=[PATH.name])[PATH.name]
        except (OSError, pa.ArrowException, KeyError):
            return None

    def image_path(self, sha256: bytes) -> Path:
        """Return the path of the resized copy of the image with this sha256 (32 bytes).

        Raises DatasetError for a dataset without images.
        """
        if self.extension == "none":
            raise DatasetError(f"{self.directory}: built with `images: false`; build it with images")
        return image_path(self.directory, sha256, self.extension)


def image_path(directory: Path, sha256: bytes, extension: str) -> Path:
    """Return `images/ab/cd/abcd....jpg` below a dataset directory."""
    name = sha256.hex()
    return directory / "images" / name[:2] / name[2:4] / f"{name}.{extension}"


def read_description(directory: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises DatasetMissing when there is none or when another version wrote it, DatasetError when it is damaged.
    """
    path = directory / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{directory}: no dataset here (dataset.json is missing)"
        inner = directory / "dataset"  # of a run that fine-tunes
        if (inner / "dataset.json").is_file():
            raise DatasetError(f"{message}; use {inner}") from None
        raise DatasetMissing(f"{message}; build it", directory) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); build the dataset again") from None
    if not isinstance(description, dict) or description.get("version") != VERSION:
        raise DatasetMissing(
            f"{path}: version: not {VERSION}, which this release reads; remove the file and build the dataset again",
            directory,
        )
    sources, extension = description.get("sources"), description.get("extension")
    if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
        raise DatasetError(f"{path}: sources: not a list of names; build the dataset again")
    if extension not in ("jpg", "webp", "png", "none"):
        raise DatasetError(f"{path}: extension: {extension!r} is not jpg, webp, png or none; build the dataset again")
    exhaustive = description.get("exhaustive", [True] * len(sources))
    if not isinstance(exhaustive, list) or [type(value) for value in exhaustive] != [bool] * len(sources):
        raise DatasetError(f"{path}: exhaustive: not true or false for each source; build the dataset again")
    return description


def write_description(directory: Path, description: dict[str, Any]) -> None:
    """Write `dataset.json`, last of all files: its presence means that the dataset is complete."""
    write_text(directory / "dataset.json", json.dumps({"version": VERSION, **description}, indent=2) + "\n")

"""The dataset directory: what lies where, the parquet schemas, and checked reading and writing.

dataset.json           version, sources in order, what it was built from and with; written last
config.yaml            the settings that build it again
tags.parquet           one row an output of the model, in order
top_tags.txt           their names, as in a release
train.parquet          one row an image
validation.parquet
rejected.parquet       one row a post that is in neither, and why
work/                  what the build found, so that it can go on; nothing else reads it
images/ab/cd/HASH.jpg  resized images, by the hex sha256 of the original file
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from joytag.core.files import write_text

VERSION = 1
CONFIG = "config.yaml"
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
    """A dataset directory that is missing or damaged: one line with the file, the field and the remedy."""


@dataclass(frozen=True)
class TagTable:
    """The vocabulary; position i describes output i of the model.

    `names` are unique, with underscores; `categories` (int8) hold Danbooru's numbers; `counts`
    (int64) are images in the training split; `totals` those in both splits.
    """

    names: list[str]
    categories: np.ndarray
    counts: np.ndarray
    totals: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Posts:
    """The images of one split, as columns; row i is image i.

    `tags` is a flat int16 array, of which row i owns `tags[offsets[i]:offsets[i + 1]]`; `hashes` is
    uint8 [rows, 32]; `sources` indexes `Dataset.sources`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    tags: np.ndarray
    hashes: np.ndarray
    sources: np.ndarray
    phashes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, rows: np.ndarray, n_tags: int) -> np.ndarray:
        """bool [len(rows), n_tags]: which tags the images carry."""
        labels = np.zeros((len(rows), n_tags), dtype=bool)
        for i, row in enumerate(rows):
            labels[i, self.tags[self.offsets[row] : self.offsets[row + 1]]] = True
        return labels


@dataclass(frozen=True)
class Dataset:
    """A dataset directory, opened and checked; its splits are read on demand."""

    directory: Path
    sources: list[str]
    extension: str
    tags: TagTable

    @classmethod
    def open(cls, directory: Path) -> Dataset:
        """Read the description and the tag table. Raises DatasetError when they are missing or wrong."""
        description = read_description(directory)
        return cls(directory, description["sources"], description["extension"], _read_tags(directory))

    def posts(self, split: str) -> Posts:
        """Read `train` or `validation`. Raises DatasetError when a row is inconsistent with the tag table."""
        path = self.directory / f"{split}.parquet"
        table = _read_table(path, POSTS_SCHEMA)
        column = table.column("tags").combine_chunks()
        posts = Posts(
            ids=table.column("post_id").to_numpy(),
            offsets=column.offsets.to_numpy(),
            tags=column.values.to_numpy(),
            hashes=np.frombuffer(b"".join(table.column("hash").to_pylist()), dtype=np.uint8).reshape(-1, 32),
            sources=table.column("source").to_numpy(),
            phashes=table.column("phash").to_numpy(),
        )
        if len(posts) == 0:
            raise DatasetError(f"{path}: holds no images; build it with .venv/bin/joytag build")
        for name, values, limit in (("tags", posts.tags, len(self.tags)), ("source", posts.sources, len(self.sources))):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise DatasetError(f"{path}: {name}: values outside 0 to {limit - 1}; build the dataset again")
        return posts

    def image_path(self, sha256: bytes) -> Path:
        """Where the resized copy of the image with this sha256 (32 bytes) lies.

        Raises DatasetError for a dataset without images.
        """
        if self.extension == "none":
            raise DatasetError(f"{self.directory}: built with `images: false`; build it with images")
        return image_path(self.directory, sha256, self.extension)


def image_path(directory: Path, sha256: bytes, extension: str) -> Path:
    """`images/ab/cd/abcd....jpg` below a dataset directory."""
    name = sha256.hex()
    return directory / "images" / name[:2] / name[2:4] / f"{name}.{extension}"


def read_description(directory: Path) -> dict[str, Any]:
    """`dataset.json`, checked. Raises DatasetError."""
    path = directory / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inner = directory / "dataset"  # of a run that fine-tunes
        remedy = f"take {inner}" if (inner / "dataset.json").is_file() else f"build it with: {_command(directory)}"
        raise DatasetError(f"{directory}: no dataset here (dataset.json is missing); {remedy}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); build the dataset again") from None
    if not isinstance(description, dict) or description.get("version") != VERSION:
        raise DatasetError(
            f"{path}: version: not {VERSION}, which this release reads; "
            f"remove the file and build the dataset again with: {_command(directory)}"
        )
    sources, extension = description.get("sources"), description.get("extension")
    if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
        raise DatasetError(f"{path}: sources: not a list of names; build the dataset again")
    if extension not in ("jpg", "webp", "png", "none"):
        raise DatasetError(f"{path}: extension: {extension!r} is not jpg, webp, png or none; build the dataset again")
    return description


def _command(directory: Path) -> str:
    """The command that builds a dataset directory (again)."""
    usual = Path("configs/data", directory.name).with_suffix(".yaml")
    config = next((path for path in (directory / CONFIG, usual) if path.exists()), "CONFIG")
    return f".venv/bin/joytag build --config {config}"


def write_description(directory: Path, description: dict[str, Any]) -> None:
    """Write `dataset.json`, last of all files, since its presence says that the dataset is whole."""
    write_text(directory / "dataset.json", json.dumps({"version": VERSION, **description}, indent=2) + "\n")


def _read_tags(directory: Path) -> TagTable:
    path = directory / "tags.parquet"
    table = _read_table(path, TAGS_SCHEMA)
    names = table.column("name").to_pylist()
    if table.column("index").to_pylist() != list(range(len(names))):
        raise DatasetError(f"{path}: index: must count up from 0; build the dataset again")
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: name: a tag occurs twice; build the dataset again")
    return TagTable(
        names,
        table.column("category").to_numpy(),
        table.column("count_train").to_numpy(),
        table.column("count").to_numpy(),
    )


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); build the dataset again") from None
    for field in schema:
        if field.name not in table.column_names:
            raise DatasetError(f"{path}: {field.name}: column missing; build the dataset again")
        if table.column(field.name).null_count:
            raise DatasetError(f"{path}: {field.name}: holds nulls; build the dataset again")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(f"{path}: {error}; build the dataset again") from None

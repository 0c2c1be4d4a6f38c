"""A dataset directory, ours or that of the original JoyTag build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources import posts
from data_prep.sources.posts import Post
from joytag.data import tag_names

FILES = ("train.parquet", "validation.parquet")
TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "post_id": pa.types.is_integer,
    "tags": lambda type_: pa.types.is_list(type_) and pa.types.is_integer(type_.value_type),
    "hash": lambda type_: pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_),
}


class Part(NamedTuple):
    """A row group of one split's file."""

    folder: Path
    file: str
    group: int


def parts(folder: Path, images: str) -> list[Part]:
    """Return the row groups of both splits. Raises ValueError when a file or a column is missing."""
    _layout(folder)
    found = []
    for name in FILES:
        try:
            file = pq.ParquetFile(folder / name)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{folder / name}: cannot be read ({error}); every dataset directory has it") from None
        types = {field.name: field.type for field in file.schema_arrow}
        for column, is_right in TYPES.items():
            if column not in types:
                raise ValueError(f"{folder / name}: {column}: column missing")
            if not is_right(types[column]):
                raise ValueError(f"{folder / name}: {column}: this column of a dataset is never {types[column]}")
        found += [Part(folder, name, group) for group in range(file.num_row_groups)]
    _tag_names(folder)
    return found


def inputs(folder: Path) -> list[Path]:
    """Return the files of the two splits and of the tags."""
    return [folder / name for name in (*FILES, "tags.parquet", tag_names.FILE) if (folder / name).exists()]


def read(part: Part) -> pa.Table:
    """Read the posts of a part.

    Their ids are the dataset's own. If it has several sources these are not unique: ids are derived from the hashes.
    """
    images, extension, many = _layout(part.folder)
    names = np.array(_tag_names(part.folder), dtype=object)
    group = pq.ParquetFile(part.folder / part.file).read_row_group(part.group)
    ids, tags, hashes = (group.column(name).to_pylist() for name in ("post_id", "tags", "hash"))
    rows = zip(ids, tags, hashes, strict=True)
    return posts.table(_post(*row, names=names, images=images, extension=extension, many=many) for row in rows)


def _post(
    post_id: int | None,
    tags: list[int] | None,
    sha256: bytes | None,
    *,
    names: np.ndarray,
    images: str,
    extension: str,
    many: bool,
) -> Post:
    if post_id is None or post_id < 0 or not isinstance(sha256, bytes) or len(sha256) != 32:
        return Post(reason="bad row", detail=f"post_id {post_id}: not an id, or the hash does not have 32 bytes")
    if tags is None or not all(tag is not None and 0 <= tag < len(names) for tag in tags):
        return Post(post_id, reason="bad row", detail=f"tags: not all from 0 to {len(names) - 1}")
    name = sha256.hex()
    path = f"{images}{name[:2]}/{name[2:4]}/{name}.{extension}"
    return Post(posts.path_id(name) if many else post_id, path, tags=" ".join(names[tags]))


def _layout(folder: Path) -> tuple[str, str, bool]:
    """Return the images' folder (with a slash), their extension, and whether they have several sources."""
    description = folder / "dataset.json"
    if not description.exists():  # the original build
        return "", "webp", False
    try:
        values = json.loads(description.read_text(encoding="utf-8"))
        extension, sources = values["extension"], values["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description}: cannot be read ({error!r})") from None
    if extension not in ("jpg", "webp"):
        raise ValueError(f"{description}: extension: {extension!r}: a dataset without images cannot be a source")
    return "images/", extension, len(sources) > 1


def _tag_names(folder: Path) -> list[str]:
    """Return the tags in the order of their numbers. Raises ValueError when neither list of tags can be read."""
    table = folder / "tags.parquet"
    try:
        if table.exists():
            return pq.read_table(table, columns=["name"]).column("name").to_pylist()
        return tag_names.read(folder / tag_names.FILE)
    except tag_names.TagListError as error:
        raise ValueError(f"{error}; it names the tags by their numbers") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{table}: cannot be read ({error}); it names the tags by their numbers") from None

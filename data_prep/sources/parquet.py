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
from data_prep.sources.posts import Post, Relations
from joytag.data import dataset, tag_names

FILES = ("train.parquet", "validation.parquet")
TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "post_id": pa.types.is_integer,
    "tags": lambda type_: pa.types.is_list(type_) and pa.types.is_integer(type_.value_type),
    "hash": lambda type_: pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_),
}
NEGATIVES = dataset.NEGATIVES.name  # a column that datasets of older builds lack


def _is_name(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_)


class Part(NamedTuple):
    """A row group of one split's file, and the column that names families."""

    folder: Path
    file: str
    group: int
    family: str | None


def parts(folder: Path, family: str | None) -> list[Part]:
    """Return the row groups of both splits; `family` is a column of both that names families.

    Raises ValueError when a file or a column is missing.
    """
    required = TYPES if family is None else TYPES | {family: _is_name}
    row_groups: list[Part] = []
    for name in FILES:
        try:
            file = pq.ParquetFile(folder / name)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{folder / name}: cannot be read ({error}); every dataset directory has it") from None
        types = {field.name: field.type for field in file.schema_arrow}
        columns = required | ({NEGATIVES: TYPES["tags"]} if NEGATIVES in types else {})
        for column, is_right in columns.items():
            if column not in types:
                raise ValueError(f"{folder / name}: {column}: column missing")
            if not is_right(types[column]):
                raise ValueError(f"{folder / name}: {column}: this column of a dataset is never {types[column]}")
        row_groups += [Part(folder, name, group, family) for group in range(file.num_row_groups)]
    _read_layout(folder)
    return row_groups


def inputs(folder: Path) -> list[Path]:
    """Return the files of the two splits and of the tags, and the description."""
    names = (*FILES, "tags.parquet", tag_names.FILE, "dataset.json")
    return [folder / name for name in names if (folder / name).exists()]


def read(part: Part) -> pa.Table:
    """Read the posts of a part.

    Their ids are the dataset's own. If it has several sources these are not unique: ids are derived from the hashes.
    """
    layout = _read_layout(part.folder)
    group = pq.ParquetFile(part.folder / part.file).read_row_group(part.group)
    columns = (group.column(name).to_pylist() for name in TYPES)
    families = [None] * len(group) if part.family is None else group.column(part.family).to_pylist()
    negatives = group.column(NEGATIVES).to_pylist() if NEGATIVES in group.column_names else [[]] * len(group)
    return posts.table(
        _post(layout, *row)._replace(family=posts.family_id(family))
        for family, row in zip(families, zip(*columns, negatives, strict=True), strict=True)
    )


def read_relations(folder: Path) -> Relations:
    """Read the categories of a dataset's tags; the original build has none. Raises ValueError when they are damaged."""
    path = folder / "tags.parquet"
    if not path.exists():
        return Relations()
    try:
        table = pq.read_table(path, columns=["name", "category"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    return Relations(dict(zip(*(column.to_pylist() for column in table.columns), strict=True)))


class _Layout(NamedTuple):
    """The images' folder (with a slash) and extension, whether they have several sources, and the tags by number."""

    images: str
    extension: str
    has_several_sources: bool
    tags: np.ndarray


def _post(
    layout: _Layout, post_id: int | None, tags: list[int] | None, sha256: bytes | None, negatives: list[int] | None
) -> Post:
    if post_id is None or post_id < 0 or not isinstance(sha256, bytes) or len(sha256) != 32:
        return Post(reason="bad row", detail=f"post_id {post_id}: not an id, or the hash does not have 32 bytes")
    names, rejected = _names(layout, tags), _names(layout, negatives)
    if names is None or rejected is None:
        column = "tags" if names is None else NEGATIVES
        return Post(post_id, reason="bad row", detail=f"{column}: not all from 0 to {len(layout.tags) - 1}")
    name = sha256.hex()
    path = f"{layout.images}{name[:2]}/{name[2:4]}/{name}.{layout.extension}"
    post_id = posts.path_id(name) if layout.has_several_sources else post_id
    return Post(post_id, path, tags=names, negatives=rejected)


def _names(layout: _Layout, tags: list[int] | None) -> str | None:
    """Return the names of tags by number, or None if not all are in the dataset."""
    if tags is None or not all(tag is not None and 0 <= tag < len(layout.tags) for tag in tags):
        return None
    return " ".join(layout.tags[tags])


def _read_layout(folder: Path) -> _Layout:
    """Read a dataset's description and tags. Raises ValueError when they cannot be used."""
    tags = np.array(_tag_names(folder), dtype=object)
    description = folder / "dataset.json"
    if not description.exists():  # the original build
        return _Layout("", "webp", False, tags)
    try:
        values = json.loads(description.read_text(encoding="utf-8"))
        extension, sources = values["extension"], values["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description}: cannot be read ({error!r})") from None
    if extension not in ("jpg", "webp"):
        raise ValueError(f"{description}: extension: {extension!r}: a dataset without images cannot be a source")
    return _Layout("images/", extension, len(sources) > 1, tags)


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

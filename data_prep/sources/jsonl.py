"""A file of JSON lines such as `{"path": "a/b.jpg", "tags": ["1girl", "long hair"]}`.

Tables of captions are read, too: `{"file_name": "a/b.jpg", "text": "1girl, long hair"}`, also those of
`joytag.tagging`, whose `tags` map names to scores. `negatives` lists tags that the image has not.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from data_prep.sources import json_reader, posts
from data_prep.sources.posts import Post
from data_prep.sources.sidecar_style import AUTO, Style


class _Row(msgspec.Struct, gc=False):
    path: str = ""
    file_name: str = ""  # the name of `path` in tables of captions
    tags: list[str] | dict[str, float] | str | None = None
    text: str | None = None  # the name of `tags` in tables of captions
    negatives: list[str] | None = None


class Part(NamedTuple):
    """A byte range of the file, the folder of its paths, and how its texts and families are read.

    `style` says how a text separates tags, `family` is the key of families, and with `negatives` `-tag` in a text
    rejects a tag.
    """

    lines: json_reader.Part
    root: Path
    style: Style
    family: str | None
    negatives: bool


def parts(file: Path, separator: str, family: str | None, negatives: bool) -> list[Part]:
    """Divide the file; its paths are relative to its own folder. A text separates tags as set, or as it shows.

    `family` is the key of the column that names families; `negatives` says whether `-tag` in a text rejects a tag.
    Raises ValueError when `family` is another column's key.
    """
    if family in _Row.__struct_fields__:
        raise ValueError(f"{file}: family: the column {family} has another meaning; name the families in their own")
    style = Style(None if separator == AUTO else separator)
    return [Part(lines, file.parent.resolve(), style, family, negatives) for lines in json_reader.parts(file)]


def inputs(file: Path) -> list[Path]:
    """Return the file."""
    return [file]


def read(part: Part) -> pa.Table:
    """Read the posts of a part; a post's id is derived from its path."""
    row = _Row if part.family is None else _row_with(part.family)
    return posts.table_of_lines(json_reader.read(part.lines, row), partial(_post, part=part))


def _row_with(column: str) -> Any:
    """Return _Row with `family`, of any type, which is read from a column."""
    return msgspec.defstruct("_Row", [("family", Any, None)], bases=(_Row,), rename={"family": column}, gc=False)


def _post(row: _Row, offset: int, part: Part) -> Post:
    path = row.path or row.file_name
    if not posts.is_inside(path) or not posts.is_storable(path):
        return Post(offset=offset, reason="bad row", detail=f"path: {path[:80]!a} is not below the file's folder")
    family = posts.family_id(getattr(row, "family", None))
    post = Post(posts.path_id(path), path, offset=offset, family=family)
    if not (part.root / path).resolve().is_relative_to(part.root):
        return post._replace(reason="link out of the folder")
    tags = row.text if row.tags is None else row.tags
    if tags is None and row.negatives is None:
        return Post(offset=offset, reason="bad row", detail="neither tags nor text")
    if isinstance(tags, str):
        post = posts.with_text(post, tags, part.style, part.negatives)
    else:
        post = post._replace(tags=" ".join(posts.unique(tags or ())))
    if row.negatives is None:
        return post
    return post._replace(negatives=" ".join([post.negatives or "", *posts.unique(row.negatives)]))

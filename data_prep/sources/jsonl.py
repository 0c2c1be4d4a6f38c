"""A file of JSON lines such as `{"path": "a/b.jpg", "tags": ["1girl", "long hair"]}`.

The lines that `joytag.tagging` writes are read, too: `{"file_name": "a/b.jpg", "tags": {"1girl": 0.98}}`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from data_prep.sources import json_reader, posts
from data_prep.sources.posts import Post


class _Row(msgspec.Struct, gc=False):
    tags: list[str] | dict[str, float] | str
    path: str = ""
    file_name: str = ""  # the older name of `path` in tables of captions


class Part(NamedTuple):
    """A byte range of the file, and the folder that its paths start from."""

    lines: json_reader.Part
    root: Path


def parts(file: Path, setting: None) -> list[Part]:
    """Divide the file; its paths are relative to its own folder."""
    return [Part(lines, file.parent.resolve()) for lines in json_reader.parts(file)]


def inputs(file: Path) -> list[Path]:
    """Return the file."""
    return [file]


def read(part: Part) -> pa.Table:
    """Read the posts of a part; a post's id is derived from its path."""
    return posts.table_of_lines(json_reader.read(part.lines, _Row), partial(_post, root=part.root))


def _post(row: _Row, offset: int, root: Path) -> Post:
    path = row.path or row.file_name
    if not posts.is_inside(path) or not posts.is_storable(path):
        return Post(offset=offset, reason="bad row", detail=f"path: {path[:80]!a} is not below the file's folder")
    post = Post(posts.path_id(path), path, offset=offset)
    if not (root / path).resolve().is_relative_to(root):
        return post._replace(reason="link out of the folder")
    names = posts.split(row.tags) if isinstance(row.tags, str) else posts.unique(row.tags)
    return post._replace(tags=" ".join(names))

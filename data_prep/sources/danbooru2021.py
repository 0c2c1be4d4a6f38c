"""A Danbooru mirror of 2021's layout (`original/` or `512px/`, `metadata/*.json`) to posts and tag relations.

The dumps of 2017 to 2020 (a list `tags` in place of `tag_string`) and of 2023 (integers that are integers) are
told apart row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from data_prep.sources import json_reader, posts
from data_prep.sources.posts import Post
from joytag.data.images import SUFFIXES

Images = Literal["original", "512px"]

_MD5 = re.compile(r"[0-9a-f]{32}")
_EXTENSION = re.compile(r"[a-z0-9]{1,8}")


class _Tag(msgspec.Struct, gc=False):
    name: str | None = None
    category: int | None = None
    is_deprecated: bool = False


class _Post(msgspec.Struct, gc=False):
    id: int | None = None
    md5: str | None = None
    file_ext: str | None = None
    tag_string: str | None = None
    tags: list[_Tag] | None = None


class _Relation(msgspec.Struct, gc=False):
    antecedent_name: str | None = None
    consequent_name: str | None = None
    status: str | None = None


class Part(NamedTuple):
    """A part of a file of posts, and the folder where the images lie."""

    lines: json_reader.Part
    images: Images


def parts(mirror: Path, images: Images) -> list[Part]:
    """The files of posts, cut up. Raises ValueError when there is none."""
    found = _files(mirror, "posts")
    if not found:
        pattern = mirror / "metadata" / "posts*.json"
        raise ValueError(f"{pattern}: no such file; a Danbooru 2021 mirror keeps its metadata there")
    return [Part(lines, images) for path in found for lines in json_reader.parts(path)]


def inputs(mirror: Path) -> list[Path]:
    """The files that posts and relations are read from."""
    return [path for kind in ("posts", "tags", "tag_aliases", "tag_implications") for path in _files(mirror, kind)]


def read(part: Part) -> pa.Table:
    """The posts of a part."""
    return posts.table(_post(line, part.images) for line in json_reader.read(part.lines, _Post))


def _post(line: json_reader.Line[_Post], images: Images) -> Post:
    row, offset = line.row, line.offset
    if row is None:
        return Post(offset=offset, reason="bad row", detail=line.reason)
    if row.id is None or row.md5 is None:
        return Post(row.id if _is_id(row.id) else None, offset=offset, reason="without id or md5")
    if not _is_id(row.id):
        return Post(offset=offset, reason="bad row", detail=f"id: {str(row.id)[:40]} is no post's")
    md5, extension = row.md5.lower(), (row.file_ext or "").lower()
    if not _MD5.fullmatch(md5):
        return Post(row.id, offset=offset, reason="bad row", detail=f"md5: {row.md5[:40]!r} is none")
    if not _EXTENSION.fullmatch(extension):
        return Post(row.id, offset=offset, reason="bad row", detail=f"file_ext: {row.file_ext!r:.40} is none")
    if f".{extension}" not in SUFFIXES:
        return Post(row.id, offset=offset, reason="not an image", detail=extension)
    text = row.tag_string
    if text is None:
        text = " ".join([tag.name for tag in row.tags or [] if tag.name])
    resized = images == "512px"  # always JPEG, and the metadata's md5 is the original's
    path = f"{images}/{row.id % 1000:04d}/{row.id}.{'jpg' if resized else extension}"
    return Post(row.id, path, None if resized else md5, text, offset)


def _is_id(number: int | None) -> bool:
    return number is not None and 0 <= number < 1 << 63


@dataclass
class Relations:
    """What a mirror says of its tags: category, use, and how they stand to each other; and rows that it can't mean."""

    categories: dict[str, int] = field(default_factory=dict)
    deprecated: set[str] = field(default_factory=set)
    aliases: list[tuple[str, str]] = field(default_factory=list)
    implications: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[Path, int, str]] = field(default_factory=list)  # file, offset, reason


def read_relations(mirror: Path) -> Relations:
    """A mirror's categories and active aliases and implications. Dumps up to 2020 name categories in their posts."""
    found = Relations()
    for tag in _rows(mirror, "tags", _Tag, found):
        _remember(tag, found)
    if not found.categories:
        for post in _rows(mirror, "posts", _Post, Relations()):  # what is wrong with them, `read` says
            for tag in post.tags or []:
                _remember(tag, found)
    for kind, pairs in (("tag_aliases", found.aliases), ("tag_implications", found.implications)):
        for row in _rows(mirror, kind, _Relation, found):
            if row.status == "active" and row.antecedent_name and row.consequent_name:
                pairs.append((row.antecedent_name, row.consequent_name))
    return found


def _remember(tag: _Tag, found: Relations) -> None:
    if tag.name and tag.category is not None and -128 <= tag.category < 128:
        found.categories[tag.name] = min(tag.category, found.categories.get(tag.name, tag.category))
    if tag.name and tag.is_deprecated:
        found.deprecated.add(tag.name)


RowT = TypeVar("RowT", bound=msgspec.Struct)


def _rows(mirror: Path, kind: str, row: type[RowT], found: Relations) -> Iterator[RowT]:
    for path in _files(mirror, kind):
        for part in json_reader.parts(path):
            for line in json_reader.read(part, row):
                if line.row is None:
                    found.refused.append((path, line.offset, line.reason))
                else:
                    yield line.row


def _files(mirror: Path, kind: str) -> list[Path]:
    """`tags000000000000.json` and `tags.json` are tags, `tag_aliases.json` is not."""
    return sorted(p for p in (mirror / "metadata").glob(f"{kind}*.json") if re.fullmatch(rf"{kind}\d*\.json", p.name))

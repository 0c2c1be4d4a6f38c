"""A Danbooru mirror: `original/` or `512px/`, and `metadata/` of any year.

Rows of the dumps of 2017 to 2020 (a list `tags` instead of `tag_string`) and of 2023 (integers instead of strings)
are recognized one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from data_prep.sources import json_reader, posts
from data_prep.sources.posts import Post, Relations, Unreadable
from joytag.data.images import SUFFIXES

Images = Literal["original", "512px"]

_MD5 = re.compile(r"[0-9a-f]{32}")
_YEAR = re.compile(r"(?<!\d)20\d\d(?=\d{12}|/)")  # of a dump, in the name of its folder or file
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
    parent_id: Any = None  # of any type, since a post whose ties cannot be read is as good as others
    pixiv_id: Any = None


class _Relation(msgspec.Struct, gc=False):
    antecedent_name: str | None = None
    consequent_name: str | None = None
    status: str | None = None


class Part(NamedTuple):
    """A byte range of a file of posts, and the folder of the images."""

    lines: json_reader.Part
    images: Images


def parts(mirror: Path, images: Images) -> list[Part]:
    """Divide the files of posts. Raises ValueError when the mirror has none."""
    files = _files(mirror, "posts")
    if not files:
        pattern = mirror / "metadata" / "posts*.json"
        raise ValueError(f"{pattern}: no such file, nor one of an older dump, such as 2017/2017000000000000.json")
    return [Part(lines, images) for path in files for lines in json_reader.parts(path)]


def inputs(mirror: Path) -> list[Path]:
    """Return the files that posts and relations are read from."""
    return [path for kind in ("posts", "tags", "tag_aliases", "tag_implications") for path in _files(mirror, kind)]


def read(part: Part) -> pa.Table:
    """Read the posts of a part, with their ties to others, which refused posts have, too."""

    def convert(row: _Post, offset: int) -> Post:
        return _post(row, offset, part.images)._replace(
            parent_id=_tied_to(row.parent_id), pixiv_id=_tied_to(row.pixiv_id)
        )

    return posts.table_of_lines(json_reader.read(part.lines, _Post), convert)


def _tied_to(number: Any) -> int | None:
    """Return the number of a parent or a work, or None if it is 0, empty or not a number."""
    try:
        tied_to = int(number) if isinstance(number, str | int) and not isinstance(number, bool) else 0
    except ValueError:
        return None
    return tied_to if 0 < tied_to < 1 << 63 else None


def _post(row: _Post, offset: int, images: Images) -> Post:
    if row.id is None or row.md5 is None:
        return Post(row.id if _is_id(row.id) else None, offset=offset, reason="without id or md5")
    if not _is_id(row.id):
        return Post(offset=offset, reason="bad row", detail=f"id: {str(row.id)[:40]} is not a post id")
    md5, extension = row.md5.lower(), (row.file_ext or "").lower()
    if not _MD5.fullmatch(md5):
        return Post(row.id, offset=offset, reason="bad row", detail=f"md5: {row.md5[:40]!r} is not an MD5 in hex")
    if not _EXTENSION.fullmatch(extension):
        detail = f"file_ext: {row.file_ext!r:.40} is not an extension"
        return Post(row.id, offset=offset, reason="bad row", detail=detail)
    if f".{extension}" not in SUFFIXES:
        return Post(row.id, offset=offset, reason="not an image", detail=extension)
    text = row.tag_string
    if text is None:
        text = " ".join([tag.name for tag in row.tags or [] if tag.name])
    is_resized = images == "512px"  # always JPEG, while the md5 in the metadata is that of the original
    path = f"{images}/{row.id % 1000:04d}/{row.id}.{'jpg' if is_resized else extension}"
    return Post(row.id, path, None if is_resized else md5, text, offset)


def _is_id(number: int | None) -> bool:
    return number is not None and 0 <= number < 1 << 63


def read_relations(mirror: Path) -> Relations:
    """Read a mirror's tag categories, deprecated tags, and active aliases and implications.

    Dumps of 2017 to 2020 have no table of tags: their posts name the categories.
    """
    relations = Relations()
    for path in _files(mirror, "tags"):
        for tag in _rows(path, _Tag, relations.unreadable):
            _add_tag(tag, relations)
    if not relations.categories:
        for path in _files(mirror, "posts"):
            for post in _rows(path, _Post, unreadable=[]):  # `read` reports unreadable posts
                for tag in post.tags or []:
                    _add_tag(tag, relations)
    for path in _files(mirror, "tag_aliases"):
        relations.aliases += read_pairs(path, relations.unreadable)
    for path in _files(mirror, "tag_implications"):
        relations.implications += read_pairs(path, relations.unreadable)
    return relations


def read_categories(path: Path) -> dict[str, int]:
    """Return the category of each tag in a mirror's file of tags. Raises ValueError when it names none."""
    relations = Relations()
    for tag in _rows(path, _Tag, relations.unreadable):
        _add_tag(tag, relations)
    if not relations.categories:
        raise ValueError(f"{path}: names no tags with categories; use a mirror's metadata/tags000000000000.json")
    return relations.categories


def read_pairs(path: Path, unreadable: list[Unreadable]) -> list[tuple[str, str]]:
    """Read the active rows of a table of aliases or implications; add rows that cannot be read to `unreadable`."""
    return [
        (row.antecedent_name, row.consequent_name)
        for row in _rows(path, _Relation, unreadable)
        if row.status == "active" and row.antecedent_name and row.consequent_name
    ]


def _add_tag(tag: _Tag, relations: Relations) -> None:
    if tag.name and tag.category is not None and -128 <= tag.category < 128:
        relations.categories[tag.name] = min(tag.category, relations.categories.get(tag.name, tag.category))
    if tag.name and tag.is_deprecated:
        relations.deprecated.add(tag.name)


RowT = TypeVar("RowT", bound=msgspec.Struct)


def _rows(path: Path, row: type[RowT], unreadable: list[Unreadable]) -> Iterator[RowT]:
    for part in json_reader.parts(path):
        for line in json_reader.read(part, row):
            if line.row is None:
                unreadable.append(Unreadable(path, line.offset, line.reason))
            else:
                yield line.row


def _files(mirror: Path, kind: str) -> list[Path]:
    """Return the files of a table at any depth of `metadata/`, those of later dumps first.

    `tags000000000000.json` and `tags.json` hold tags, `tag_aliases.json` does not. Posts also lie in files such as
    `2017/2017000000000000.json` and `2019000000000000`. The first row of a post counts.
    """
    metadata = mirror / "metadata"
    name = re.compile(rf"(?:{kind}\d*{'|20[0-9]{14}' if kind == 'posts' else ''})(?:\.json)?")
    files = [path for path in metadata.rglob("*") if name.fullmatch(path.name) and path.is_file()]
    years = {path: _YEAR.findall(path.relative_to(metadata).as_posix()) for path in files}
    return sorted(files, key=lambda path: (-int(max(years[path], default="9999")), path))

"""What every kind of source returns: a table of posts, usable or refused, and relations between tags."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.json_reader import Line, RowT
from data_prep.sources.sidecar_style import Style
from joytag.data.tag_names import NEGATIVE, canonical, is_kaomoji

SCHEMA = pa.schema(
    [
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),  # relative to the source's folder
        pa.field("md5", pa.string()),  # expected of the file; null if the source has none
        pa.field("tags", pa.list_(pa.dictionary(pa.int32(), pa.string()))),  # raw names, possibly repeated
        pa.field("negatives", pa.list_(pa.dictionary(pa.int32(), pa.string()))),  # raw names of tags that it has not
        pa.field("offset", pa.int64()),  # of the row in its text file, bytes; null in other formats
        pa.field("reason", pa.string()),  # why the post is refused; null if it is usable
        pa.field("detail", pa.string()),
        # What ties the post to others, whether it is usable or not; null if nothing does.
        pa.field("parent_id", pa.int64()),  # the `post_id` of the post that this one is a variant of
        pa.field("pixiv_id", pa.int64()),  # the number of the pixiv work that it is a page of, in every source
        pa.field("family", pa.int64()),  # what the source's setting `family` finds, see `family_id`
    ]
)
TIES = tuple(SCHEMA.names[-3:])
VERSION = 2  # of what the kinds read from the same files


class Post(NamedTuple):
    """A row of SCHEMA. A post without a `reason` has an id, a path and tags."""

    post_id: int | None = None
    path: str | None = None
    md5: str | None = None
    tags: str | None = None  # separated by white space
    offset: int | None = None
    reason: str | None = None
    detail: str | None = None
    parent_id: int | None = None
    pixiv_id: int | None = None
    family: int | None = None
    negatives: str | None = None  # separated by white space


class Unreadable(NamedTuple):
    """A row of a table of tags that cannot be read, at a byte offset of its file."""

    file: Path
    offset: int
    reason: str


@dataclass
class Relations:
    """What a source knows about tags, and the rows that it cannot read."""

    categories: dict[str, int] = field(default_factory=dict)
    deprecated: set[str] = field(default_factory=set)
    aliases: list[tuple[str, str]] = field(default_factory=list)
    implications: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


def table(posts: Iterable[Post]) -> pa.Table:
    """Return posts as a table of SCHEMA."""
    columns = dict(zip(Post._fields, list(zip(*posts, strict=True)) or [()] * len(SCHEMA), strict=True))
    return pa.table([_array(columns[field.name], field.type) for field in SCHEMA], SCHEMA)


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Return values of a type, texts that are split at white space for a list; there None is an empty list."""
    if not pa.types.is_list(type_):
        return pa.array(values, type_)
    text = pc.ascii_trim_whitespace(pa.array(values, pa.string()))
    # Arrow splits and numbers the names much faster than Python could create millions of strings.
    names = pc.ascii_split_whitespace(pc.if_else(pc.equal(text, ""), None, text))
    return pa.ListArray.from_arrays(names.offsets, names.values.dictionary_encode())


def table_of_lines(lines: Iterable[Line[RowT]], convert: Callable[[RowT, int], Post]) -> pa.Table:
    """Convert rows with their offsets to posts; refuse lines that are not rows. Returns a table of SCHEMA."""
    return table(
        Post(offset=line.offset, reason="bad row", detail=line.reason)
        if line.row is None
        else convert(line.row, line.offset)
        for line in lines
    )


def path_id(path: str) -> int:
    """Derive a stable id, 0 to 2^63 - 1, from a relative path with forward slashes."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def family_id(name: object) -> int | None:
    """Return the number of the family of a name, a text or a whole number, or None if it is empty or neither."""
    is_name = isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    return path_id(ascii(str(name))) if is_name else None


def is_inside(path: str) -> bool:
    """Return whether a path is relative and stays below the folder that it starts from, links aside."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path and "\\" not in path


def is_storable(path: str) -> bool:
    """Return whether a path has no control characters and no bytes that are not UTF-8."""
    return not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", path)


def with_text(post: Post, text: str, style: Style, negatives: bool = False) -> Post:
    """Return a post with the tags of a text, canonical and without repetitions; sentences are refused.

    With `negatives`, a hyphen before a name makes it one of a tag that the image has not, see `rejected`.
    """
    tags = style.tags(text)
    if tags is None:
        return post._replace(reason="sentences instead of tags", detail=repr(text.strip()[:60]))
    names = unique(tags)
    if not negatives:
        return post._replace(tags=" ".join(names))
    refused = {name: rejected(name) for name in names}
    return post._replace(
        tags=" ".join(name for name, tag in refused.items() if tag is None),
        negatives=" ".join(tag for tag in refused.values() if tag is not None),
    )


def rejected(name: str) -> str | None:
    """Return the tag that a canonical name with a hyphen before it rejects, or None if it is a tag itself.

    `-cat` rejects `cat`, `-^_^` the face `^_^`, and `--_-` the face `-_-`. Tags are `-_-` and other faces that end with
    a hyphen, and `-_cat`, which is `- cat` in a list of a text.
    """
    rest = name.removeprefix(NEGATIVE)
    is_face = name.endswith("-") and not rest.startswith("-") and is_kaomoji(name)
    return None if rest in ("", name) or rest.startswith("_") or is_face else rest


def unique(names: Iterable[str]) -> list[str]:
    """Return the canonical forms of names, in their order, without repetitions."""
    return [name for name in dict.fromkeys(map(canonical, names)) if name]

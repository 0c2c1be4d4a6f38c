"""Posts as all sources give them: a table of rows, good ones and those that a source had to refuse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from joytag.data.tag_names import danbooru_spelling

SCHEMA = pa.schema(
    [
        pa.field("post_id", pa.int64()),
        pa.field("path", pa.string()),  # below the source's folder
        pa.field("md5", pa.string()),  # what the file should have; null if the source doesn't say
        pa.field("tags", pa.list_(pa.dictionary(pa.int32(), pa.string()))),  # raw names, perhaps twice
        pa.field("offset", pa.int64()),  # of the row in its file, bytes; null where a file is a post
        pa.field("reason", pa.string()),  # why the row is refused; null if it isn't
        pa.field("detail", pa.string()),
    ]
)


class Post(NamedTuple):
    """A row of the table. Without a `reason` it has an id, a path and tags."""

    post_id: int | None = None
    path: str | None = None
    md5: str | None = None
    tags: str | None = None  # separated by white space
    offset: int | None = None
    reason: str | None = None
    detail: str | None = None


def table(posts: Iterable[Post]) -> pa.Table:
    """Posts as a table of SCHEMA."""
    columns = dict(zip(SCHEMA.names, list(zip(*posts, strict=True)) or [()] * len(SCHEMA), strict=True))
    text = pc.ascii_trim_whitespace(pa.array(columns["tags"], pa.string()))
    # Split and numbered by Arrow, at a fraction of the cost of millions of Python's strings.
    names = pc.ascii_split_whitespace(pc.if_else(pc.equal(text, ""), None, text))
    lists = pa.ListArray.from_arrays(names.offsets, names.values.dictionary_encode())
    return pa.table([lists if f.name == "tags" else pa.array(columns[f.name], f.type) for f in SCHEMA], SCHEMA)


def path_id(path: str) -> int:
    """A stable non-negative 63-bit id of a relative path with forward slashes."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def is_inside(path: str) -> bool:
    """Whether a relative path, taken literally, stays below the folder that it starts from."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path and "\\" not in path


def split(text: str) -> list[str]:
    """The tags of a caption, separated by commas or newlines, each once, in their order."""
    return unique(re.split(r"[,\r\n]", text))


def unique(names: Iterable[str]) -> list[str]:
    """Names in Danbooru's spelling, each once, in their order."""
    return [name for name in dict.fromkeys(map(danbooru_spelling, names)) if name]

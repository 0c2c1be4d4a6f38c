"""Any mixture of sources to posts: the one place that knows the kinds of sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.config import Source
from data_prep.sources import danbooru2021, jsonl, parquet, posts, sidecar
from joytag.core.files import file_hash

KINDS = {"danbooru2021": danbooru2021, "sidecar": sidecar, "jsonl": jsonl, "parquet": parquet}


class Part(NamedTuple):
    """A part of a source of some kind, and the tags that a post of it needs."""

    kind: str
    part: Any
    min_tags: int


class Refused(NamedTuple):
    """A row of a source's file, at a byte offset, that can't be read."""

    source: int
    file: Path
    offset: int
    detail: str


def check(sources: Sequence[Source], output: Path) -> None:
    """Raise ValueError, naming the setting, for a path that isn't there or that the output would be written into."""
    for number, source in enumerate(sources):
        path, wanted = Path(source.path), "file" if source.kind == "jsonl" else "folder"
        if not (path.is_file() if wanted == "file" else path.is_dir()):
            hint = "; make it with: .venv/bin/joytag openmoji" if source.path.startswith("data/raw/openmoji") else ""
            raise ValueError(f"sources.{number}.path: {source.path}: no such {wanted}{hint}")
        inside = output.resolve().is_relative_to(path.resolve())
        if (inside and source.kind == "sidecar") or output.resolve() == path.resolve():
            raise ValueError(f"output: {output}: inside the source {source.path}; choose a folder outside it")


def folder(source: Source) -> Path:
    """The folder that the paths of a source's posts are relative to."""
    return Path(source.path).parent if source.kind == "jsonl" else Path(source.path)


def lines(part: Part) -> Path | None:
    """The file whose rows are a part's posts, if it is a text of lines."""
    return part.part.lines.path if part.kind in ("danbooru2021", "jsonl") else None


def parts(source: Source) -> list[Part]:
    """A source, cut up. Raises ValueError when it holds nothing of its kind."""
    path = Path(source.path)
    found: Sequence[Any] = (
        danbooru2021.parts(path, source.images) if source.kind == "danbooru2021" else KINDS[source.kind].parts(path)
    )
    if not found:
        raise ValueError(f"{path}: holds no posts")
    return [Part(source.kind, part, source.min_tags) for part in found]


def read(part: Part) -> pa.Table:
    """The posts of a part, a table of `posts.SCHEMA`."""
    table = KINDS[part.kind].read(part.part)
    count = pc.fill_null(pc.list_value_length(table["tags"]), 0)
    few = pc.and_(pc.is_null(table["reason"]), pc.less(count, part.min_tags))
    reason = pc.if_else(few, f"fewer than {part.min_tags} tags in the source", table["reason"])
    return table.set_column(table.schema.get_field_index("reason"), posts.SCHEMA.field("reason"), reason)


def fingerprint(source: Source) -> str:
    """A digest of the settings, names, sizes and times of a source's files: it changes when the source does."""
    digest = hashlib.sha256(json.dumps(source.model_dump()).encode())
    for path in KINDS[source.kind].inputs(Path(source.path)):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def content_hashes(source: Source) -> dict[str, str]:
    """sha256 of each file with a source's tags; of sidecars, one of all their names and contents."""
    path = Path(source.path)
    files = KINDS[source.kind].inputs(path)
    if source.kind == "sidecar":
        files = [file for file in files if file.suffix == ".txt"]
    with ThreadPoolExecutor() as pool:
        names = [file.relative_to(folder(source)) for file in files]
        hashes = dict(zip(names, pool.map(file_hash, files), strict=True))
    if source.kind != "sidecar":
        return {name.as_posix(): value for name, value in hashes.items()}
    lines = (f"{name.as_posix()}\0{value}\n" for name, value in hashes.items())
    return {"*.txt": hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()}


def relations(sources: Sequence[Source]) -> tuple[danbooru2021.Relations, list[Refused]]:
    """What all mirrors among the sources say of tags, and the rows that can't be read.

    The first source that names a tag's category is believed.
    """
    found, refused = danbooru2021.Relations(), []
    for number, source in enumerate(sources):
        if source.kind == "danbooru2021":
            more = danbooru2021.read_relations(Path(source.path))
            found.categories = more.categories | found.categories
            found.deprecated |= more.deprecated
            found.aliases += more.aliases
            found.implications += more.implications
            refused += [Refused(number, file, offset, detail) for file, offset, detail in more.refused]
    return found, refused

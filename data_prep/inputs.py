"""The sources of a build, whatever their kinds: checks, posts, fingerprints and tag relations."""

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
from data_prep.sources import posts
from data_prep.sources.posts import Relations, Unreadable
from data_prep.sources.registry import KINDS
from joytag.core.files import file_hash
from joytag.data.tag_names import canonical


class MissingSource(ValueError):
    """A source whose path does not exist: `path` as the setting has it."""

    def __init__(self, number: int, path: str, wanted: str) -> None:
        super().__init__(f"sources.{number}.path: {path}: no such {wanted}")
        self.path = path


class Part(NamedTuple):
    """A part of a source of some kind, and the number of tags that each of its posts needs."""

    kind: str
    part: Any
    min_tags: int

    @property
    def text_file(self) -> Path | None:
        """The text file whose lines are the posts, for kinds that read lines."""
        return self.part.lines.path if KINDS[self.kind].reads_lines else None


def check(sources: Sequence[Source], output: Path) -> None:
    """Raise ValueError, naming the setting, for a path that does not exist or that holds the output.

    The error for a path that does not exist is MissingSource.
    """
    for number, source in enumerate(sources):
        path, kind = Path(source.path), KINDS[source.kind]
        if not (path.is_file() if kind.path_is_file else path.is_dir()):
            raise MissingSource(number, source.path, "file" if kind.path_is_file else "folder")
        # Compared as files, since names may differ in case on Windows and macOS.
        is_same = output.exists() and output.samefile(path)
        is_inside = any(parent.exists() and parent.samefile(path) for parent in output.resolve().parents)
        if is_same or (is_inside and kind.sidecar_suffixes):
            raise ValueError(f"output: {output}: inside the source {source.path}; choose a folder outside it")


def folder(source: Source) -> Path:
    """Return the folder that the paths of a source's posts are relative to."""
    return Path(source.path).parent if KINDS[source.kind].path_is_file else Path(source.path)


def parts(source: Source) -> list[Part]:
    """Divide a source into parts. Raises ValueError when it has no posts."""
    kind = KINDS[source.kind]
    its_parts = kind.parts(Path(source.path), *(getattr(source, name) for name in kind.settings))
    if not its_parts:
        raise ValueError(f"{source.path}: holds no posts")
    return [Part(source.kind, part, source.min_tags) for part in its_parts]


def read(part: Part) -> pa.Table:
    """Read the posts of a part, a table of `posts.SCHEMA`; posts with too few tags are refused."""
    table = KINDS[part.kind].read(part.part)
    count = pc.fill_null(pc.list_value_length(table["tags"]), 0)
    has_few = pc.and_(pc.is_null(table["reason"]), pc.less(count, part.min_tags))
    reason = pc.if_else(has_few, f"fewer than {part.min_tags} tags in the source", table["reason"])
    return table.set_column(table.schema.get_field_index("reason"), posts.SCHEMA.field("reason"), reason)


def fingerprint(source: Source) -> str:
    """Hash a source's settings and the names, sizes and modification times of its files (sha256, hex)."""
    digest = hashlib.sha256(json.dumps(source.model_dump()).encode())
    for path in KINDS[source.kind].inputs(Path(source.path)):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def content_hashes(source: Source) -> dict[str, str]:
    """Hash each file that holds tags (sha256, hex), by its name below the source's folder.

    Sidecars are too many to list: one hash, named `sidecars`, covers all their names and contents.
    """
    kind = KINDS[source.kind]
    files = kind.inputs(Path(source.path))
    if kind.sidecar_suffixes:
        files = [file for file in files if file.suffix.lower() in kind.sidecar_suffixes]
    names = [file.relative_to(folder(source)).as_posix() for file in files]
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip(names, pool.map(file_hash, files), strict=True))
    if not kind.sidecar_suffixes:
        return hashes
    lines = "".join(f"{name}\0{value}\n" for name, value in hashes.items())
    return {"sidecars": hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()}


def relations(sources: Sequence[Source]) -> tuple[Relations, list[list[Unreadable]]]:
    """Merge the tag relations of all sources; list, source by source, the rows that cannot be read.

    All names are canonical. If two sources give a tag a category, the first source's counts.
    """
    merged = Relations()
    unreadable: list[list[Unreadable]] = [[] for _ in sources]
    for number, source in enumerate(sources):
        read_relations = KINDS[source.kind].relations
        if read_relations is not None:
            more = read_relations(Path(source.path))
            merged.categories = {canonical(name): n for name, n in more.categories.items()} | merged.categories
            merged.deprecated |= set(map(canonical, more.deprecated))
            merged.aliases += [(canonical(old), canonical(new)) for old, new in more.aliases]
            merged.implications += [(canonical(name), canonical(implied)) for name, implied in more.implications]
            unreadable[number] = more.unreadable
    return merged, unreadable

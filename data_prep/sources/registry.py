"""The kinds of sources, one row each.

A kind is a module of this package with three functions: `parts` divides a source, `read` turns a part into posts,
`inputs` lists the files that the posts are read from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from data_prep.sources import danbooru2021, jsonl, parquet, sidecar
from data_prep.sources.posts import Relations

Transparent = Literal["white", "refuse"]


class SourceKind(NamedTuple):
    """The functions of a kind's module, and how the kind differs from the others.

    `parts(path, *settings)` returns picklable values.
    `read(part)` returns a table of `posts.SCHEMA`. `inputs(path)` returns existing files.
    """

    parts: Callable[..., Sequence[Any]]
    read: Callable[[Any], pa.Table]
    inputs: Callable[[Path], list[Path]]
    path_is_file: bool = False
    """A source is a file, and the paths of its images are relative to that file's folder."""
    reads_lines: bool = False
    """A post is a line of a text file; `lines` of a part, a `json_reader.Part`, is the range of the file."""
    settings: tuple[str, ...] = ()
    """The settings of a source that this kind reads and others ignore."""
    sidecar_suffixes: tuple[str, ...] = ()
    """The suffixes of text files beside images. The folder is searched, so the output cannot lie inside it."""
    images_are_final: bool = False
    """A good image is never replaced under its path: only refused ones are looked at again."""
    transparent: Transparent = "white"
    """What is done with transparent images, unless the source says otherwise."""
    relations: Callable[[Path], Relations] | None = None
    """Reads the source's tag relations, if it has any."""


KINDS = {
    "danbooru2021": SourceKind(
        danbooru2021.parts,
        danbooru2021.read,
        danbooru2021.inputs,
        settings=("images",),
        reads_lines=True,
        images_are_final=True,
        transparent="refuse",  # as the original build did
        relations=danbooru2021.read_relations,
    ),
    "sidecar": SourceKind(
        sidecar.parts,
        sidecar.read,
        sidecar.inputs,
        settings=("separator", "family", "negatives"),
        sidecar_suffixes=sidecar.SUFFIXES,
    ),
    "jsonl": SourceKind(
        jsonl.parts,
        jsonl.read,
        jsonl.inputs,
        path_is_file=True,
        reads_lines=True,
        settings=("separator", "family", "negatives"),
    ),
    "parquet": SourceKind(
        parquet.parts, parquet.read, parquet.inputs, settings=("family",), relations=parquet.read_relations
    ),
}

"""Decisions into files of tags: sidecars beside the images, or one file of JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from joytag.app.collection import Collection
from joytag.app.decisions import Decision
from joytag.core import files, jsonl
from joytag.core.errors import describe
from joytag.data.encodings import decode

SUFFIX = ".txt"
KEYS = {"path", "tags", "negatives"}
Answers = Mapping[str, Mapping[str, bool]]  # by image and tag, whether the image has the tag
Edit = Callable[[str, Mapping[str, bool]], tuple[str, int]]


class Applied(NamedTuple):
    """The files that were changed and their number of changed tags, those that were right, and why others were not."""

    changed: dict[str, int]
    right: list[str]
    refused: dict[str, str]


def answers(decided: Mapping[str, Mapping[str, Decision]]) -> dict[str, dict[str, bool]]:
    """Return the answers of decisions by image and tag; those of which nobody is sure are left out."""
    sure = {
        image: {tag: row.decision == "yes" for tag, row in its.items() if row.decision != "unsure"}
        for image, its in decided.items()
    }
    return {image: given for image, given in sure.items() if given}


def to_sidecars(collection: Collection, given: Answers, edit: Edit) -> Applied:
    """Write answers into the .txt files beside the images. A file is replaced as a whole, or not at all.

    `edit` returns a text with an image's answers applied, and the number of changes, or raises ValueError with the
    reason why it cannot. An image whose file cannot be written, or that shares it with another one, is left alone.
    """
    done = Applied({}, [], {})
    owners = Counter(collection.path(name).with_suffix(SUFFIX) for name in collection.names)
    for name, its in ((name, its) for image, its in given.items() for name in collection.find(image)):
        path = collection.path(name).with_suffix(SUFFIX)
        try:
            if owners[path] > 1:
                raise ValueError("shares its file of tags with another image; rename one")
            text, changes = edit(decode(path.read_bytes())[0] if path.exists() else "", its)
            if changes:
                files.write_text(path, text)
                done.changed[name] = changes
            else:
                done.right.append(name)
        except (OSError, ValueError) as error:
            done.refused[name] = describe(error) if isinstance(error, OSError) else str(error)
    return done


def to_jsonl(collection: Collection, given: Answers, path: Path) -> Applied:
    """Write answers as a source of JSON lines: path of the image below the file's folder, tags, negatives.

    Raises ValueError for a file that holds anything else, or that does not lie above the images, and OSError.
    """
    before = jsonl.read(path)
    if path.exists() and (not before or any(row.keys() != KEYS for row in before)):
        raise ValueError(f"{path}: not a file of decisions; choose another one")
    if not collection.root.absolute().is_relative_to(path.absolute().parent):
        raise ValueError(f"{path}: must lie in {collection.root} or above it, since a source's paths do not leave it")
    rows = []
    for name, its in ((name, its) for image, its in given.items() for name in collection.find(image)):
        below = collection.path(name).absolute().relative_to(path.absolute().parent).as_posix()
        yes, no = ([tag for tag, has in its.items() if has == which] for which in (True, False))
        rows.append({"path": below, "tags": yes, "negatives": no})
    if rows == before:
        return Applied({}, [path.name], {})
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return Applied({path.name: sum(len(row["tags"]) + len(row["negatives"]) for row in rows)}, [], {})

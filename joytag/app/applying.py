"""Decisions into files of tags: sidecars beside the images, or one file of JSON lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from joytag.app.collection import Collection
from joytag.app.decisions import Decision
from joytag.core import files, jsonl
from joytag.core.errors import describe
from joytag.data.encodings import decode
from joytag.data.tag_names import canonical, is_kaomoji

SUFFIX = ".txt"
NEGATIVE = "-"  # before the name of a tag that an image does not have
KEYS = {"path", "tags", "negatives"}
Answers = Mapping[str, Mapping[str, bool]]  # by image and tag, whether the image has the tag


class Format(NamedTuple):
    """How the tags of a text are separated: the text between them, and a pattern that splits at it."""

    separator: str
    pattern: str


class Applied(NamedTuple):
    """The files that were changed and their number of changed tags, those that were right, and why others were not."""

    changed: dict[str, int]
    right: list[str]
    refused: dict[str, str]


def answers(decided: Mapping[str, Mapping[str, Decision]]) -> Answers:
    """Return the answers of decisions by image and tag; those of which nobody is sure are left out."""
    sure = {
        image: {tag: row.decision == "yes" for tag, row in its.items() if row.decision != "unsure"}
        for image, its in decided.items()
    }
    return {image: given for image, given in sure.items() if given}


def to_sidecars(
    collection: Collection, given: Answers, format_of: Callable[[str], Format | None], negatives: bool = False
) -> Applied:
    """Write answers into the .txt files beside the images. A file is replaced as a whole, or not at all.

    A yes adds the tag; a no removes it and, with `negatives`, adds it with a hyphen. Other tags stay as they are
    written. `format_of` returns how a text separates tags, None if it holds none. An image whose file cannot be written
    or holds no tags, or that shares it with another one, is left alone.
    """
    done = Applied({}, [], {})
    owners = Counter(collection.path(name).with_suffix(SUFFIX) for name in collection.names)
    for name, its in ((name, its) for image, its in given.items() for name in collection.find(image)):
        path = collection.path(name).with_suffix(SUFFIX)
        try:
            if owners[path] > 1:
                raise ValueError("shares its file of tags with another image; rename one")
            text = decode(path.read_bytes())[0] if path.exists() else ""
            style = format_of(text)
            if style is None:
                raise ValueError(f"{path.name} holds sentences instead of tags")
            changes, text = change(text, its, style, negatives)
            if changes:
                files.write_text(path, text)
                done.changed[name] = changes
            else:
                done.right.append(name)
        except (OSError, ValueError) as error:
            done.refused[name] = describe(error) if isinstance(error, OSError) else str(error)
    return done


def change(text: str, given: Mapping[str, bool], style: Format, negatives: bool) -> tuple[int, str]:
    """Return a text of tags with answers applied, and the number of tags that are added or removed.

    Raises ValueError for a tag that contains the separator.
    """
    written = [tag.strip() for tag in re.split(style.pattern, text) if tag.strip()]
    dropped = {NEGATIVE + tag if has else tag for tag, has in given.items()}
    kept = [tag for tag in written if canonical(tag) not in dropped]
    there = set(map(canonical, kept))
    wanted = [tag if has else NEGATIVE + tag for tag, has in given.items() if has or negatives]
    new = [tag for tag in wanted if tag not in there]
    for tag in new:
        if re.search(style.pattern, tag):
            raise ValueError(f"{tag} contains what separates tags there; write JSON lines instead")
    has_spaces = style.separator != " " and any(" " in tag for tag in kept)
    if has_spaces and not any("_" in tag and not is_kaomoji(tag) for tag in kept):
        new = [tag if is_kaomoji(tag) else tag.replace("_", " ") for tag in new]
    if "\\(" in text:
        new = [re.sub(r"([()])", r"\\\1", tag) for tag in new]
    return len(new) + len(written) - len(kept), style.separator.join([*kept, *new]) + "\n"


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

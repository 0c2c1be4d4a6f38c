"""A folder of images with text files beside them, as taggers, boorus and Hydrus write them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from data_prep.sources import posts
from data_prep.sources.posts import Post
from data_prep.sources.sidecar_style import AUTO, Evidence, Style
from joytag.core.terminal import plural, print, printable
from joytag.data.encodings import decode
from joytag.data.folders import find_images, ignores_case

SUFFIXES = (".txt", ".tags", ".caption")
# The sidecars of `a.png`. Of several, the first that does not hold sentences counts.
PATTERNS = ("{name}.txt", "{stem}.txt", "{stem}.tags", "{stem}.caption")
MAX_SIDECAR = 1 << 20  # bytes
PART = 4096  # images of a part


class Image(NamedTuple):
    """An image, its sidecar if it has one, and how that separates tags. Paths are relative to the source's folder.

    `passed_over` is the reason why a file or folder cannot be used.
    """

    path: str
    sidecar: str | None = None
    style: Style | None = None
    passed_over: str | None = None


class Part(NamedTuple):
    """Images below a folder, the pattern of their paths that names families, and whether `-tag` rejects a tag."""

    folder: Path
    images: list[Image]
    family: re.Pattern[str] | None
    negatives: bool


class NoSidecars(ValueError):
    """Raised for a folder without any image that has a sidecar."""


class Unusable(Exception):
    """A sidecar that cannot be used: the reason, and the detail."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def parts(folder: Path, separator: str, family: str | None, negatives: bool) -> list[Part]:
    """Divide the images below a folder; recognize and print the style of each folder's sidecars, if it is not set.

    `family` is a regular expression over paths, see `_family`; `negatives` says whether `-tag` rejects a tag. Raises
    NoSidecars when no image has a sidecar, ValueError when all folders hold sentences instead of tags, or when `family`
    is none.
    """
    try:
        pattern = None if family is None else re.compile(family)
    except re.error as error:
        raise ValueError(f"{folder}: family: {family!r} is not a regular expression ({error})") from None
    listing = find_images(folder)
    listed = list(_list(folder, listing.images))
    if not any(sidecars for _, sidecars in listed):
        others = f"; passed over: {listing.describe_passed_over()}" if listing.passed_over else ""
        raise NoSidecars(f"{folder}: no images with {', '.join(SUFFIXES)} sidecars here{others}")
    styles = _recognize(folder, listed) if separator == AUTO else defaultdict(lambda: Style(separator))
    images = [
        Image(path.relative_to(folder).as_posix(), passed_over=why) for path, why in sorted(listing.passed_over.items())
    ]
    for path, sidecars in listed:
        units = [(sidecar, styles[_unit(path, pattern)]) for pattern, sidecar in sidecars.items()]
        best = min(units, key=lambda unit: unit[1].sentences, default=(None, None))
        images.append(Image(path, *best))
    several = [path for path, sidecars in listed if len(sidecars) > 1]
    if several:
        names = ", ".join(pattern.format(name="a.png", stem="a") for pattern in PATTERNS)
        example = f"such as {several[0]}; the first of {names} that holds tags counts"
        print(f"{len(several):>9,} {plural(len(several), 'image')}: several sidecars, {example}")
    return [Part(folder, images[start : start + PART], pattern, negatives) for start in range(0, len(images), PART)]


def inputs(folder: Path) -> list[Path]:
    """Return the images, then the sidecars."""
    listed = list(_list(folder, find_images(folder).images))
    sidecars = dict.fromkeys(sidecar for _, its in listed for sidecar in its.values())
    return [folder / path for path in (*(path for path, _ in listed), *sidecars)]


def read(part: Part) -> pa.Table:
    """Read the posts of a part. A post's id is derived from its path, so it does not change when images are added."""
    root = part.folder.resolve()
    return posts.table(
        _post(part, root, image)._replace(family=_family(image.path, part.family)) for image in part.images
    )


def _family(path: str, pattern: re.Pattern[str] | None) -> int | None:
    """Return the number of the family that the groups of a pattern name, or its whole match if it has no groups."""
    match = None if pattern is None else pattern.search(path)
    if match is None:
        return None
    names = match.groups("") if match.re.groups else (match[0],)
    return posts.family_id("\0".join(names) if any(names) else "")


def _list(folder: Path, images: Iterable[Path]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each image and its sidecars by pattern.

    The case of their suffixes does not matter, nor that of their names where the file system ignores it.
    """
    by_folder = sorted(images, key=lambda image: (image.parent, image))
    for parent, group in groupby(by_folder, key=lambda image: image.parent):
        its_images = list(group)
        fold = str.casefold if ignores_case(its_images[0]) else str
        files = {}
        with os.scandir(parent) as entries:
            for entry in entries:
                name = PurePosixPath(entry.name)
                if name.suffix.lower() in SUFFIXES and entry.is_file():
                    files[fold(name.stem + name.suffix.lower())] = entry.name
        for image in its_images:
            names = {pattern: fold(pattern.format(name=image.name, stem=image.stem)) for pattern in PATTERNS}
            below = parent.relative_to(folder)
            sidecars = {p: (below / files[name]).as_posix() for p, name in names.items() if name in files}
            yield image.relative_to(folder).as_posix(), sidecars


def _unit(path: str, pattern: str) -> tuple[str, str]:
    """Return the unit that shares a style: a directory and one pattern of its sidecars."""
    return PurePosixPath(path).parent.as_posix(), pattern


def _recognize(folder: Path, listed: list[tuple[str, dict[str, str]]]) -> dict[tuple[str, str], Style]:
    """Return the style of each unit; print what was recognized. Raises ValueError when all hold sentences."""
    root = folder.resolve()
    units: defaultdict[tuple[str, str], Evidence] = defaultdict(Evidence)
    for path, sidecars in listed:
        for pattern, sidecar in sidecars.items():
            evidence = units[_unit(path, pattern)]
            with suppress(Unusable):  # `read` reports it
                evidence.add(*_read_text(folder, root, sidecar))
    styles = {unit: evidence.style() for unit, evidence in units.items()}
    alike: defaultdict[tuple[str, Style], list[tuple[str, str]]] = defaultdict(list)
    for unit, style in styles.items():
        alike[unit[1], style].append(unit)
    for (pattern, _), its_units in alike.items():
        total = Evidence()
        for unit in its_units:
            total.merge(units[unit])
        first = printable(folder / its_units[0][0])
        others = len(its_units) - 1
        more = f" and {others:,} more {plural(others, 'folder')}" if others else ""
        print(f"sidecars {pattern.format(name='*.*', stem='*')} of {first}{more}: {total}")
    if all(style.sentences for style in styles.values()):
        raise ValueError(f"{folder}: its sidecars hold sentences instead of tags; use tags, or set `separator`")
    return styles


def _read_text(folder: Path, root: Path, name: str) -> tuple[str, str]:
    """Return the text of a sidecar and its encoding. Raises Unusable."""
    path = folder / name
    if not path.resolve().is_relative_to(root):
        raise Unusable("link out of the folder")
    try:
        if path.stat().st_size > MAX_SIDECAR:
            raise Unusable("bad sidecar", f"more than {MAX_SIDECAR} bytes")
        return decode(path.read_bytes())
    except OSError as error:
        raise Unusable("bad sidecar", error.strerror) from None
    except ValueError as error:
        raise Unusable("bad sidecar", str(error)) from None


def _post(part: Part, root: Path, image: Image) -> Post:
    if not posts.is_storable(image.path):
        return Post(path=ascii(image.path)[1:-1], reason="bad name", detail="rename the file")
    if image.passed_over:
        return Post(path=image.path, reason=image.passed_over)
    post = Post(posts.path_id(image.path), image.path)
    if image.sidecar is None or image.style is None:
        return post._replace(reason="without sidecar")
    if not (part.folder / image.path).resolve().is_relative_to(root):
        return post._replace(reason="link out of the folder")
    try:
        text, _ = _read_text(part.folder, root, image.sidecar)
    except Unusable as error:
        return post._replace(reason=error.reason, detail=error.detail)
    return posts.with_text(post, text, image.style, part.negatives)

"""Images of a folder, and what is passed over in it; all listing of image folders is here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from joytag.data.images import HEIF_SUFFIXES, SUFFIXES

# Folders of programs, besides hidden ones: thumbnails and trash of NAS, trash of Windows, resource forks of macOS.
PROGRAM_FOLDERS = {
    "@eadir",
    ".@__thumb",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "system volume information",
}

_RAW = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
_VIDEO = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_OTHER = (".apng", ".clip", ".eps", ".exr", ".hdr", ".ico", ".jp2", ".jxl", ".jxr", ".kra", ".pcx", ".pdf", ".ppm")
_DRAWN = (".psd", ".psb", ".sai", ".sai2", ".svg", ".swf", ".tga", ".xcf")
# Image and video files that cannot be read. They are named, so that nobody believes that they were used.
UNREADABLE = frozenset(_RAW + _VIDEO + _OTHER + _DRAWN + HEIF_SUFFIXES) - frozenset(SUFFIXES)


class Listing(NamedTuple):
    """Images in natural order, and the paths of what was passed over, each with its reason."""

    images: list[Path]
    passed_over: dict[Path, str]

    def add(self, path: Path) -> None:
        """Add a file if it is an image, or note why it cannot be used; ignore files of other kinds."""
        suffix = path.suffix.lower()
        if path.name.startswith("._") or suffix not in UNREADABLE.union(SUFFIXES):
            return  # macOS writes ._image.jpg beside image.jpg
        try:
            if not path.is_file():
                if path.is_symlink():
                    self.passed_over[path] = "broken link"
            elif suffix in SUFFIXES:
                self.images.append(path)
            else:
                remedy = " without pillow-heif (pip install 'joytag[heif]')" if suffix in HEIF_SUFFIXES else ""
                self.passed_over[path] = f"{suffix} cannot be read{remedy}"
        except OSError as error:
            self.passed_over[path] = f"cannot be read ({error.strerror})"

    def describe_passed_over(self) -> str:
        """Return the reasons with their numbers in one line, the most frequent first; empty without any."""
        return "; ".join(f"{reason}: {count:,}" for reason, count in Counter(self.passed_over.values()).most_common())


def find_images(path: Path, recursive: bool = True) -> Listing:
    """List the images in a folder, with those in its subfolders if `recursive`; or the file itself if it is an image.

    Ignores hidden folders and those of PROGRAM_FOLDERS. Notes links to folders, which are not followed and so cannot
    form circles, folders that cannot be opened, and without `recursive` all subfolders.
    """
    listing = Listing([], {})
    if not path.is_dir():
        listing.add(path)
        return listing

    def note(error: OSError) -> None:
        listing.passed_over[Path(error.filename)] = f"folder cannot be opened ({error.strerror})"

    for name, folders, files in os.walk(path, onerror=note):
        parent = Path(name)
        for file in files:
            listing.add(parent / file)
        folders[:] = [f for f in folders if not f.startswith(".") and f.lower() not in PROGRAM_FOLDERS]
        for folder in map(parent.joinpath, folders):
            if folder.is_symlink():  # os.walk lists links but does not enter them
                listing.passed_over[folder] = "link to a folder"
            elif not recursive:
                listing.passed_over[folder] = "subfolder (search recursively)"
        if not recursive:
            break
    return Listing(sort(listing.images), listing.passed_over)


def ignores_case(image: Path) -> bool:
    """Whether names that differ in case mean one file, where an existing image is: usual on Windows and macOS."""
    other = image.with_suffix(image.suffix.swapcase())
    try:
        return os.path.samestat(image.lstat(), other.lstat())
    except OSError:
        return False


def sort(paths: Iterable[Path]) -> list[Path]:
    """Return paths in natural order: 2.png before 10.png."""
    split = cache(_numbers)  # folders occur often
    return sorted(paths, key=lambda path: ([split(part) for part in path.parts], path))


def _numbers(name: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(text) if i % 2 else text for i, text in enumerate(parts)]

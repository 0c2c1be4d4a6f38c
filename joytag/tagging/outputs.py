"""Outputs of tagging: files beside the images, or the terminal; see also `joytag.tagging.table`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from joytag.core import files
from joytag.core.errors import FULL_DISK, describe
from joytag.core.terminal import print, printable
from joytag.data import folders, images
from joytag.data.encodings import decode
from joytag.tagging.captions import Captions, OptionError


class Output(Protocol):
    """A destination for tags."""

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Return the images that still need tagging; write nothing. Raises ValueError when writing cannot succeed."""

    def opened(self) -> AbstractContextManager[None]:
        """Return a context in which images are written; it completes the output when it ends without an error."""

    def write(self, image: Path, names: dict[str, float], captions: Captions) -> str:
        """Write an image's names and scores. Returns the reason if that is impossible, else an empty string.

        Raises OSError when it is impossible for all other images, too.
        """

    def finish(self) -> None:
        """Complete the output when no image is pending."""


@dataclass
class Sidecars:
    """A file beside each image: a text of names, or with `scores` JSON, `{"tags": {name: score}}`.

    An image that has such a file is done, unless `overwrite`. `append` merges into existing texts; doing so twice
    changes nothing. Texts in other encodings become UTF-8. Texts end with a line break, so that none is empty:
    sd-scripts' trainer refuses empty files. Raises OptionError for an extension that is an image's.
    """

    extension: str
    scores: bool = False
    append: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        name = self.extension.removeprefix(".")
        if not name or not name.replace("-", "").replace("_", "").isalnum() or f".{name}".lower() in images.SUFFIXES:
            raise OptionError("extension", f"{self.extension!r} cannot be used; give one like .txt, not an image's")
        self.extension = f".{name}"
        self._folders: set[Path] = set()  # that were written to
        self.converted = 0  # texts that were in another encoding

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output. Raises ValueError naming images that would share a file, or be replaced by their tags."""
        owners: dict[Path, Path] = {}
        shared = []
        folds = {folder: folders.ignores_case(image) for folder, image in {path.parent: path for path in paths}.items()}
        for image in paths:
            if self.path(image) == image:
                raise ValueError(f"{image}: is a {self.extension} file, not an image")
            path = self.path(image).absolute()
            first = owners.setdefault(path.with_name(path.name.casefold()) if folds[image.parent] else path, image)
            if first != image:
                shared.append(f"{first} and {image.name}")
        if shared:
            more = f" (and {len(shared) - 3} more)" if len(shared) > 3 else ""
            raise ValueError(
                f"{'; '.join(shared[:3])}{more}: would share one {self.extension} file; rename one, "
                "or write one table for all images: output jsonl or csv"
            )
        return [image for image in paths if not self._is_done(image)]

    def __str__(self) -> str:
        return f"{'merged into' if self.append else 'into'} a {self.extension} file beside each"

    def path(self, image: Path) -> Path:
        """Return the path of an image's file."""
        return image.with_suffix(self.extension)

    def _is_done(self, image: Path) -> bool:
        # Not Path.is_file, which raises OSError for a name that is too long.
        return not (self.append or self.overwrite) and os.path.isfile(self.path(image))  # noqa: PTH113

    def opened(self) -> AbstractContextManager[None]:
        """Implement Output."""
        return nullcontext()

    def write(self, image: Path, names: dict[str, float], captions: Captions) -> str:
        """Implement Output. A file that appeared since the start stays: somebody else wrote it."""
        path = self.path(image)
        if self._is_done(image):
            return ""
        encoding = "UTF-8"
        try:
            if path.exists() and not path.is_file():
                return f"{path}: is not a file"
            if self.scores:
                text = json.dumps({"tags": rounded(names)}, indent=1)
            elif self.append and path.exists():
                before, encoding = decode(path.read_bytes())
                text = captions.join(captions.merge(before, names))
            else:
                text = captions.join(names)
            if path.parent not in self._folders:
                self._folders.add(path.parent)
                files.remove_partials(path.parent, files.ABANDONED)
            files.write_text(path, text + "\n")
            self.converted += encoding != "UTF-8"
        except ValueError as error:
            return f"{path}: {error}"
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            return describe(error)
        return ""

    def finish(self) -> None:
        """Implement Output."""


class Printer:
    """Standard output: each image's path, then its tags with their scores."""

    def __str__(self) -> str:
        return "to the terminal"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output."""
        return list(paths)

    def opened(self) -> AbstractContextManager[None]:
        """Implement Output."""
        return nullcontext()

    def write(self, image: Path, names: dict[str, float], _: Captions) -> str:
        """Implement Output."""
        print(printable(image))
        for name, score in names.items():
            print(f"  {score:.3f}  {name}")
        return ""

    def finish(self) -> None:
        """Implement Output."""


def rounded(names: dict[str, float]) -> dict[str, float]:
    """Return the scores with four decimals."""
    return {name: round(score, 4) for name, score in names.items()}

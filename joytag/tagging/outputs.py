"""Outputs of tagging: files beside the images, one table, or the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from joytag.core import files
from joytag.data import images
from joytag.tagging.captions import CaptionStyle, OptionError


class Output(Protocol):
    """A destination for tags."""

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Return the images that still need tagging; write nothing. Raises ValueError when writing cannot succeed."""

    def write(self, image: Path, names: dict[str, float]) -> str:
        """Write an image's names and scores. Returns the reason if that is impossible, else an empty string."""

    def finish(self) -> None:
        """Finish after the last image; also called when no image was pending."""


@dataclass
class Sidecars:
    """A file beside each image: a text of names, or with `scores` JSON, `{"tags": {name: score}}`.

    An image that has such a file is done, unless `overwrite`. `append` merges into existing texts; doing so twice
    changes nothing. Raises OptionError for an extension that is an image's.
    """

    extension: str
    style: CaptionStyle
    scores: bool = False
    append: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        name = self.extension.removeprefix(".")
        if not name or not name.replace("-", "").replace("_", "").isalnum() or f".{name}".lower() in images.SUFFIXES:
            raise OptionError("extension", f"{self.extension!r} cannot be used; give one like .txt, not an image's")
        self.extension = f".{name}"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output. Raises ValueError naming images that would share a file."""
        owners: dict[str, Path] = {}
        shared = []
        for image in paths:
            first = owners.setdefault(os.path.normcase(self.path(image).absolute()), image)
            if first != image:
                shared.append(f"{first} and {image.name}")
        if shared:
            more = f" (and {len(shared) - 3} more)" if len(shared) > 3 else ""
            raise ValueError(
                f"{'; '.join(shared[:3])}{more}: would share one {self.extension} file; rename one, "
                "or write one table for all images: output jsonl or csv"
            )
        if self.append or self.overwrite:
            return list(paths)
        return [image for image in paths if not self.path(image).exists()]

    def __str__(self) -> str:
        return f"{'merged into' if self.append else 'into'} a {self.extension} file beside each"

    def path(self, image: Path) -> Path:
        """Return the path of an image's file."""
        return image.with_suffix(self.extension)

    def write(self, image: Path, names: dict[str, float]) -> str:
        """Implement Output. Merging is impossible if the existing file is not UTF-8 text."""
        path = self.path(image)
        if self.scores:
            files.write_text(path, json.dumps({"tags": _rounded(names)}, indent=1) + "\n")
            return ""
        merged = list(names)
        if self.append and path.exists():
            try:
                merged = self.style.merge(path.read_text(encoding="utf-8-sig"), names)
            except UnicodeDecodeError:
                return f"{path}: not UTF-8 text; save it as UTF-8"
        files.write_text(path, self.style.separator.join(merged))
        return ""

    def finish(self) -> None:
        """Implement Output."""


class Table:
    """One file for all images, `tags.jsonl` or `tags.csv`, with paths relative to its folder.

    Rows are collected as JSON lines in a hidden file, with which an interrupted run continues; the table appears when
    it is complete. Images of an earlier table are done, unless `overwrite`.
    """

    def __init__(self, path: Path, style: CaptionStyle, overwrite: bool = False) -> None:
        self.path = path
        self.style = style
        self.overwrite = overwrite
        self.partial = path.with_name(f".{path.name}.part")
        self._file: io.TextIOWrapper | None = None

    def __str__(self) -> str:
        return f"into {self.path}"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output. Raises ValueError when an existing table is damaged."""
        done = {row["file_name"] for row in self._read()}
        return [image for image in paths if self._name(image) not in done]

    def write(self, image: Path, names: dict[str, float]) -> str:
        """Implement Output."""
        if self._file is None:
            earlier = "".join(json.dumps(row) + "\n" for row in self._read())
            files.write_text(self.partial, earlier)  # drops a last line that was cut short
            self._file = self.partial.open("a", encoding="utf-8")
        text = self.style.separator.join(names)
        self._file.write(json.dumps({"file_name": self._name(image), "text": text, "tags": _rounded(names)}) + "\n")
        self._file.flush()
        return ""

    def finish(self) -> None:
        """Implement Output."""
        if self._file is not None:
            self._file.close()
        if not self.partial.exists():
            return
        if self.path.suffix == ".jsonl":
            self.partial.replace(self.path)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["file_name", "text"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._read())
        # Names that are not UTF-8 are written with escapes, as in the terminal.
        files.write_text(self.path, text.getvalue().encode("utf-8", "backslashreplace").decode())
        self.partial.unlink()

    def _name(self, image: Path) -> str:
        return relative_name(image, self.path.parent)

    def _read(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an interrupted run, or else of the table."""
        source = self.partial if self.partial.exists() else self.path
        if (self.overwrite and source == self.path) or not source.exists():
            return
        try:
            with source.open(encoding="utf-8", newline="") as file:
                if source.suffix == ".csv":
                    yield from csv.DictReader(file)
                    return
                for line in file:
                    if line.endswith("\n"):
                        yield json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise ValueError(f"{source}: damaged ({error}); remove it, or overwrite it") from None


class Printer:
    """Standard output: each image's path, then its tags with their scores."""

    def __str__(self) -> str:
        return "to the terminal"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output."""
        return list(paths)

    def write(self, image: Path, names: dict[str, float]) -> str:
        """Implement Output."""
        print(image)
        for name, score in names.items():
            print(f"  {score:.3f}  {name}")
        return ""

    def finish(self) -> None:
        """Implement Output."""


def relative_name(image: Path, folder: Path) -> str:
    """Return an image's path relative to a folder, with forward slashes."""
    return Path(os.path.relpath(image, folder)).as_posix()


def _rounded(names: dict[str, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in names.items()}

"""Folders of images to tags on disk: which images, where their tags go, and what was done before."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from joytag.core import files, jsonl, progress
from joytag.data import images
from joytag.tagging.captions import Captions
from joytag.tagging.tagger import Tagger

FAILED = "failed.jsonl"


def find(inputs: Sequence[str], recursive: bool = False) -> list[Path]:
    """The images that files, folders and glob patterns name, each once, in the order given.

    Raises ValueError when there is none, or when one of the inputs names nothing.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        matches = sorted(glob.iglob(given, recursive=True))  # noqa: PTH207, Path.glob takes no absolute patterns
        if not matches and not os.path.lexists(given):
            raise ValueError(f"{given}: no such file or folder")
        for match in [given] if os.path.lexists(given) else matches:
            for path in images.find(Path(match), recursive):
                found.setdefault(path.absolute(), path)
    if not found:
        deeper = "" if recursive or not any(images.find(Path(given)) for given in inputs) else "; add --recursive"
        raise ValueError(f"{inputs[0]}: no images here ({', '.join(images.SUFFIXES)}){deeper}")
    return list(found.values())


def common_folder(inputs: Sequence[str], paths: Sequence[Path]) -> Path:
    """Where files about all images go: the one folder that was given, or the closest above all images."""
    if len(inputs) == 1 and Path(inputs[0]).is_dir():
        return Path(inputs[0])
    return Path(os.path.commonpath([path.parent.absolute() for path in paths]))


class Output(Protocol):
    """Somewhere for tags to go."""

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """The images that still need tagging. Raises ValueError before anything is written in vain."""

    def write(self, image: Path, names: dict[str, float]) -> str:
        """Keep an image's names with their scores; says why that is impossible, or nothing."""

    def finish(self) -> None:
        """All images are done; also called when they were done before."""


@dataclass
class Sidecars:
    """A file beside each image: names in a text, or with `scores` JSON's `{"tags": {name: score}}`.

    An image that has one is done, unless `overwrite`; `append` merges into texts, and repeats without harm.
    Raises ValueError for an extension that could be an image's.
    """

    extension: str
    captions: Captions
    scores: bool = False
    append: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        name = self.extension.removeprefix(".")
        if not name or not name.replace("-", "").replace("_", "").isalnum() or f".{name}".lower() in images.SUFFIXES:
            raise ValueError(f"--extension {self.extension}: give one like .txt, not an image's")
        self.extension = f".{name}"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """See Output. Images that would share a sidecar are named in the error."""
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
                "or use --output jsonl or csv"
            )
        if self.append or self.overwrite:
            return list(paths)
        return [image for image in paths if not self.path(image).exists()]

    def __str__(self) -> str:
        return f"{'merged into' if self.append else 'into'} a {self.extension} file beside each"

    def path(self, image: Path) -> Path:
        """An image's sidecar."""
        return image.with_suffix(self.extension)

    def write(self, image: Path, names: dict[str, float]) -> str:
        """See Output. Impossible is to merge into what is no text."""
        path = self.path(image)
        if self.scores:
            files.write_text(path, json.dumps({"tags": _rounded(names)}, indent=1) + "\n")
            return ""
        chosen = list(names)
        if self.append and path.exists():
            try:
                chosen = self.captions.merge(path.read_text(encoding="utf-8-sig"), names)
            except UnicodeDecodeError:
                return f"{path}: not UTF-8 text; save it as UTF-8"
        files.write_text(path, self.captions.separator.join(chosen))
        return ""

    def finish(self) -> None:
        """See Output."""


class Table:
    """One file for all images, `tags.jsonl` or `tags.csv`, with paths relative to its folder.

    Rows gather in a hidden file of JSON lines, from which an interrupted run goes on; the table appears when
    it is whole. Images of an earlier table are done, unless `overwrite`.
    """

    def __init__(self, path: Path, captions: Captions, overwrite: bool = False) -> None:
        self.path, self.captions, self.overwrite = path, captions, overwrite
        self.rows = path.with_name(f".{path.name}.part")
        self._file: io.TextIOWrapper | None = None

    def __str__(self) -> str:
        return f"into {self.path}"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """See Output."""
        done = {row["file_name"] for row in self._read()}
        return [image for image in paths if self._name(image) not in done]

    def write(self, image: Path, names: dict[str, float]) -> str:
        """See Output."""
        if self._file is None:
            before = "".join(json.dumps(row) + "\n" for row in self._read())
            files.write_text(self.rows, before)  # without a last line that was cut short
            self._file = self.rows.open("a", encoding="utf-8")
        row = {
            "file_name": self._name(image),
            "text": self.captions.separator.join(names),
            "tags": _rounded(names),
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return ""

    def finish(self) -> None:
        """See Output."""
        if self._file is not None:
            self._file.close()
        if not self.rows.exists():
            return
        if self.path.suffix == ".jsonl":
            self.rows.replace(self.path)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["file_name", "text"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._read())
        # A name that is no UTF-8 is written with escapes, as everywhere in the terminal.
        files.write_text(self.path, text.getvalue().encode("utf-8", "backslashreplace").decode())
        self.rows.unlink()

    def _name(self, image: Path) -> str:
        return relative(image, self.path.parent)

    def _read(self) -> Iterator[dict[str, Any]]:
        """The rows of an interrupted run, else of the table."""
        source = self.rows if self.rows.exists() else self.path
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
            raise ValueError(f"{source}: damaged ({error}); remove it, or add --overwrite") from None


class Printer:
    """Standard output: each image's path, then its tags with their scores."""

    def __str__(self) -> str:
        return "onto the terminal"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """See Output."""
        return list(paths)

    def write(self, image: Path, names: dict[str, float]) -> str:
        """See Output."""
        print(image)
        for name, score in names.items():
            print(f"  {score:.3f}  {name}")
        return ""

    def finish(self) -> None:
        """See Output."""


@dataclass(frozen=True)
class Job:
    """Images to tag: all that were named, those that still need it, and where the tags go."""

    folder: Path
    paths: list[Path]
    pending: list[Path]
    output: Output
    captions: Captions

    @classmethod
    def plan(
        cls,
        inputs: Sequence[str],
        recursive: bool,
        kind: str,
        captions: Captions,
        extension: str | None = None,
        append: bool = False,
        overwrite: bool = False,
    ) -> Job:
        """Find the images, and what is done already, for `kind` txt, json, jsonl, csv or print; write nothing.

        Raises ValueError when there are no images, when two would share a sidecar, or when the options
        contradict one another.
        """
        if append and (overwrite or kind != "txt"):
            raise ValueError("--append: goes with --output txt, and not with --overwrite")
        if extension and kind not in ("txt", "json"):
            raise ValueError(f"--extension: goes with --output txt or json, not with {kind}")
        paths = find(inputs, recursive)
        folder = common_folder(inputs, paths)
        output: Output = Printer()
        if kind in ("txt", "json"):
            output = Sidecars(extension or kind, captions, kind == "json", append, overwrite)
        elif kind in ("jsonl", "csv"):
            output = Table(folder / f"tags.{kind}", captions, overwrite)
        return cls(folder, paths, output.pending(paths), output, captions)

    def __str__(self) -> str:
        done = len(self.paths) - len(self.pending)
        return (
            f"{self.folder}: {len(self.paths):,} images"
            + (f", {done:,} of them done (--overwrite tags them again)" if done else "")
            + f"; {len(self.pending):,} to tag, {self.output}"
        )

    def run(
        self,
        tagger: Tagger,
        threshold: float | np.ndarray,
        batch_size: int | None = None,
        workers: int | None = None,
        most: int | None = 20,
    ) -> None:
        """Tag what is pending, show how far it is, and print a summary with the `most` commonest tags (None: all).

        Images that cannot be used are listed in `failed.jsonl`, also when this is interrupted. Raises ValueError
        with the first reason when not a single image could be used, now or before.
        """
        places = {tag: place for place, tag in enumerate(tagger.tags)}
        failed: dict[Path, str] = {}
        counts: Counter[str] = Counter()
        start = time.perf_counter()
        results = tagger.stream(self.pending, threshold, batch_size, workers)
        tracked = progress.track(results, "Tag", len(self.pending), "images")
        try:
            for image, result in zip(self.pending, tracked, strict=True):
                names = self.captions.choose(result.tags, places)
                error = result.error or self.output.write(image, names)
                if error:
                    failed[image] = error.removeprefix(f"{image}: ")
                else:
                    counts.update(names.keys())
        finally:
            results.close()
            if not isinstance(self.output, Printer):
                write_failed(self.folder, self.paths, failed)
        self.output.finish()
        self._summarize(failed, counts, time.perf_counter() - start, most)

    def _summarize(self, failed: dict[Path, str], counts: Counter[str], seconds: float, most: int | None) -> None:
        tagged = len(self.pending) - len(failed)
        if failed:
            image, reason = next(iter(failed.items()))
            more = f" (and {len(failed) - 1:,} more)" if len(failed) > 1 else ""
            if len(failed) == len(self.paths):
                raise ValueError(f"{image}: {reason}{more}")
            print(f"Not tagged: {image}: {reason}{more}", file=sys.stderr)
        if isinstance(self.output, Printer):
            return
        print(f"{tagged:,} images tagged in {seconds:.1f} s, {tagged / seconds:.1f} a second")
        if failed:
            print(f"{len(failed):,} not tagged, listed in {self.folder / FAILED}")
        for name, count in counts.most_common(most):
            print(f"{count:>9,}  {name}")


def write_failed(folder: Path, paths: Iterable[Path], failed: dict[Path, str]) -> None:
    """List those of `images` that could not be used in `failed.jsonl`, beside what it says about others that exist.

    There is no such file when there is nothing to say.
    """
    path, known = folder / FAILED, {"", *(relative(image, folder) for image in paths)}
    names = [(str(row.get("file_name", "")), row) for row in jsonl.read(path)]
    others = [row for name, row in names if name not in known and (folder / name).exists()]
    rows = [{"file_name": relative(image, folder), "reason": reason} for image, reason in failed.items()]
    text = "".join(json.dumps(row) + "\n" for row in [*others, *rows])
    if text:
        files.write_text(path, text)
    else:
        path.unlink(missing_ok=True)


def relative(image: Path, folder: Path) -> str:
    """An image's path seen from a folder, with forward slashes."""
    return Path(os.path.relpath(image, folder)).as_posix()


def _rounded(names: dict[str, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in names.items()}

"""Tagging of folders: find the images, skip those that are done, tag the others."""

from __future__ import annotations

import glob
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.core import progress
from joytag.data import images
from joytag.tagging import failures
from joytag.tagging.captions import Captions, CaptionStyle, OptionError
from joytag.tagging.outputs import Output, Printer, Sidecars
from joytag.tagging.table import Table
from joytag.tagging.tagger import Tagger


def find_images(inputs: Sequence[str], recursive: bool = False) -> tuple[list[Path], list[Path]]:
    """Return the images that files, folders and glob patterns name, each once, in the order of `inputs`.

    Also returns the files that were passed over: a pattern stands for the images among the files that it matches, and
    so do several inputs, since a shell replaces patterns by file names. A single file is an image by its name alone.
    Raises ValueError when there are no images, or when an input does not exist.
    """
    paths: dict[Path, Path] = {}
    others: dict[Path, None] = {}
    for name in inputs:
        is_pattern = not os.path.lexists(name)
        matches = sorted(glob.iglob(name, recursive=True)) if is_pattern else [name]  # noqa: PTH207, Path.glob takes no absolute patterns
        if not matches:
            raise ValueError(f"{name}: no such file or folder")
        for match in map(Path, matches):
            if (is_pattern or len(inputs) > 1) and match.is_file() and match.suffix.lower() not in images.SUFFIXES:
                others[match] = None
                continue
            for path in images.find(match, recursive):
                paths.setdefault(path.absolute(), path)
    if not paths:
        deeper = not recursive and any(Path(name).is_dir() and images.find(Path(name)) for name in inputs)
        hint = "; they are in folders below it: search recursively" if deeper else ""
        raise ValueError(f"{inputs[0]}: no images here ({', '.join(images.SUFFIXES)}){hint}")
    return list(paths.values()), list(others)


def common_folder(inputs: Sequence[str], paths: Sequence[Path]) -> Path:
    """Return the folder for files about all images: the only input if it is a folder, else the closest common one."""
    if len(inputs) == 1 and Path(inputs[0]).is_dir():
        return Path(inputs[0])
    return Path(os.path.commonpath([path.parent.absolute() for path in paths]))


@dataclass(frozen=True)
class Job:
    """A tagging job: all images of the inputs, those that are not done yet, and the output for their tags."""

    folder: Path
    paths: list[Path]
    pending: list[Path]
    passed_over: list[Path]
    output: Output
    style: CaptionStyle

    @classmethod
    def plan(
        cls,
        inputs: Sequence[str],
        recursive: bool,
        kind: str,
        style: CaptionStyle,
        extension: str | None = None,
        append: bool = False,
        overwrite: bool = False,
    ) -> Job:
        """Find the images and what is done already, for output `kind` txt, json, jsonl, csv or print. Writes nothing.

        Raises OptionError when options contradict each other, ValueError when there are no images, when two would
        share a file, or when a table is there that cannot be extended.
        """
        if append and (overwrite or kind != "txt"):
            raise OptionError("append", "only for output txt, and not together with overwrite")
        if extension and kind not in ("txt", "json"):
            raise OptionError("extension", f"only for output txt or json, not {kind}")
        paths, passed_over = find_images(inputs, recursive)
        folder = common_folder(inputs, paths)
        output: Output = Printer()
        if kind in ("txt", "json"):
            output = Sidecars(extension or kind, kind == "json", append, overwrite)
        elif kind in ("jsonl", "csv"):
            output = Table(folder / f"tags.{kind}", overwrite)
        return cls(folder, paths, output.pending(paths), passed_over, output, style)

    def __str__(self) -> str:
        done = len(self.paths) - len(self.pending)
        skipped = f", {done:,} of them already tagged" if done else ""
        others = f" ({_count(len(self.passed_over), 'other file')} passed over)" if self.passed_over else ""
        found = f"{_count(len(self.paths), 'image')}{others}{skipped}"
        return f"{self.folder}: {found}; {len(self.pending):,} to tag, {self.output}"

    def run(
        self,
        tagger: Tagger,
        threshold: float | NDArray[np.float32],
        batch_size: int | None = None,
        workers: int | None = None,
        most_common: int | None = 20,
    ) -> None:
        """Tag the pending images under a progress bar, then print a summary with the most common tags (None: all).

        Images that cannot be used are listed in `failed.jsonl`, also after an interruption. Warns of names in the style
        that mean no tag of the model. Raises ValueError with the first reason when no image could be used, now or
        before.
        """
        captions = Captions(self.style, tagger.tags)
        self._warn(captions)
        failed: dict[Path, str] = {}
        counts: Counter[str] = Counter()
        untagged = 0
        start = time.perf_counter()
        with self.output.opened():
            results = tagger.stream(self.pending, threshold, batch_size, workers)
            tracked = progress.track(results, "Tag", len(self.pending), "images")
            try:
                for image, result in zip(self.pending, tracked, strict=True):
                    names = captions.choose(result.tags)
                    error = result.error or self.output.write(image, names, captions)
                    if error:
                        failed[image] = error.removeprefix(f"{image}: ")
                    else:
                        counts.update(names.keys())
                        untagged += not names
            finally:
                results.close()
                is_listed = isinstance(self.output, Printer) or failures.write(self.folder, self.paths, failed)
        if failed:
            self._report(failed, is_listed)
        if not isinstance(self.output, Printer):
            tagged, seconds = len(self.pending) - len(failed), time.perf_counter() - start
            print(f"{_count(tagged, 'image')} tagged in {seconds:.1f} s, {tagged / seconds:.1f} a second")
            if untagged:
                print(f"{_count(untagged, 'image')} without a tag above the threshold")
            if failed and is_listed:
                print(f"{len(failed):,} not tagged, listed in {self.folder / failures.FILE}")
            for name, uses in counts.most_common(most_common):
                print(f"{uses:>9,}  {name}")

    def _warn(self, captions: Captions) -> None:
        merges = isinstance(self.output, Sidecars) and self.output.append  # with names that are no tags of the model
        for name, described in captions.unknown().items():
            if not (merges and name == "always_first"):
                warnings.warn(f"{name}: the model has no tag {described}", stacklevel=3)

    def _report(self, failed: dict[Path, str], is_listed: bool) -> None:
        """Print why images were not tagged: the first reason, or all if they are not listed in a file."""
        lines = [f"{image}: {reason}" for image, reason in failed.items()]
        more = f" (and {len(lines) - 1:,} more)" if len(lines) > 1 else ""
        if len(failed) == len(self.paths):
            raise ValueError(lines[0] + more)
        if not is_listed:
            print(f"{self.folder / failures.FILE} is another program's, or cannot be written", file=sys.stderr)
        for line in [lines[0] + more] if is_listed else lines:
            print(f"Not tagged: {line}", file=sys.stderr)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

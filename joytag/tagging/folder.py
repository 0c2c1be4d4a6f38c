"""Tagging of folders: find the images, skip those that are done, tag the others."""

from __future__ import annotations

import glob
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.core import progress
from joytag.core.terminal import plural, print, printable
from joytag.data import folders, images
from joytag.data.folders import Listing
from joytag.tagging import failures
from joytag.tagging.captions import Captions, CaptionStyle, OptionError
from joytag.tagging.outputs import Output, Printer, Sidecars
from joytag.tagging.table import Table, real_path
from joytag.tagging.tagger import Tagger


def find_images(inputs: Sequence[str], recursive: bool = False) -> Listing:
    """List the images that files, folders and glob patterns name, each once, in the order of `inputs`.

    A pattern stands for the images among the files that it matches, without the folders of programs, and so do several
    inputs, since a shell replaces patterns by file names. A single input is used whatever its name. Raises ValueError
    when there are no images, or when an input does not exist.
    """
    found: dict[Path, Path] = {}
    passed_over: dict[Path, str] = {}
    for name in inputs:
        is_pattern = not os.path.lexists(name)
        matches = glob.iglob(name, recursive=True) if is_pattern else [name]  # noqa: PTH207, Path.glob takes no absolute patterns
        paths = folders.sort(map(Path, matches))
        if not paths:
            raise ValueError(f"{name}: no such file or folder")
        is_single = not is_pattern and len(inputs) == 1
        for path in paths:
            if not is_single and path.is_dir() and path.name.lower() in folders.PROGRAM_FOLDERS:
                continue
            listing = folders.find_images(path, recursive)
            if not any(listing) and not path.is_dir():
                listing = Listing([path], {}) if is_single else Listing([], {path: "not an image"})
            passed_over |= listing.passed_over
            for image in listing.images:
                found.setdefault(real_path(image), image)
    result = Listing(list(found.values()), passed_over)
    if not found:
        others = f"; passed over: {result.describe_passed_over()}" if passed_over else ""
        raise ValueError(f"{inputs[0]}: no images here ({', '.join(images.SUFFIXES)}){others}")
    return result


def common_folder(inputs: Sequence[str], paths: Sequence[Path]) -> Path:
    """Return the folder for files about all images: the only input if it is a folder, else the closest common one.

    Raises ValueError when they have none, as on two drives of Windows.
    """
    if len(inputs) == 1 and Path(inputs[0]).is_dir():
        return Path(inputs[0])
    try:
        return Path(os.path.commonpath([real_path(path).parent for path in paths]))
    except ValueError:
        raise ValueError(f"{paths[0]} and {paths[-1]}: have no common folder; tag them one after another") from None


@dataclass
class Tally:
    """What became of the images of a job: reasons of those not tagged, uses of each tag, images without a tag."""

    failed: dict[Path, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    untagged: int = 0


@dataclass(frozen=True)
class Job:
    """A tagging job: all images of the inputs, those that are not done yet, and the output for their tags."""

    folder: Path
    paths: list[Path]
    pending: list[Path]
    passed_over: str  # in one line; empty without any
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
        listing = find_images(inputs, recursive)
        paths = listing.images
        folder = common_folder(inputs, paths)
        output: Output = Printer()
        if kind in ("txt", "json"):
            output = Sidecars(extension or kind, kind == "json", append, overwrite)
        elif kind in ("jsonl", "csv"):
            output = Table(folder / f"tags.{kind}", overwrite)
        return cls(folder, paths, output.pending(paths), listing.describe_passed_over(), output, style)

    def __str__(self) -> str:
        done = len(self.paths) - len(self.pending)
        skipped = f", {done:,} of them already tagged" if done else ""
        others = f"; passed over: {self.passed_over}" if self.passed_over else ""
        found = f"{len(self.paths):,} {plural(len(self.paths), 'image')}{skipped}"
        return f"{printable(self.folder)}: {found}; {len(self.pending):,} to tag, {self.output}{others}"

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
        tally, untried = Tally(), set(self.pending)
        start = time.perf_counter()
        with self.output.opened():
            results = tagger.stream(self.pending, threshold, batch_size, workers)
            tracked = progress.track(results, "Tag", len(self.pending), "images")
            try:
                for image, result in zip(self.pending, tracked, strict=True):
                    untried.discard(image)
                    names = captions.choose(result.tags)
                    error = result.error or self.output.write(image, names, captions)
                    if error:
                        tally.failed[image] = error.removeprefix(f"{image}: ")
                    else:
                        tally.uses.update(names.keys())
                        tally.untagged += not names
            finally:
                results.close()
                is_listed = isinstance(self.output, Printer) or failures.write(
                    self.folder, (path for path in self.paths if path not in untried), tally.failed
                )
        if tally.failed:
            self._report(tally.failed, is_listed)
        if not isinstance(self.output, Printer):
            self._summarize(tally, time.perf_counter() - start, is_listed, most_common)

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
            in_file = more and is_listed and not isinstance(self.output, Printer)
            raise ValueError(lines[0] + more + (f"; all are in {self.folder / failures.FILE}" if in_file else ""))
        if not is_listed:
            print(f"{self.folder / failures.FILE} is another program's, or cannot be written", file=sys.stderr)
        for line in [lines[0] + more] if is_listed else lines:
            print(f"Not tagged: {printable(line)}", file=sys.stderr)

    def _summarize(self, tally: Tally, seconds: float, is_listed: bool, most_common: int | None) -> None:
        """Print how many images were tagged, what is worth knowing of the others, and the most common tags."""
        tagged = len(self.pending) - len(tally.failed)
        print(f"{tagged:,} {plural(tagged, 'image')} tagged in {seconds:.1f} s, {tagged / seconds:.1f} a second")
        if tally.untagged:
            print(f"{tally.untagged:,} {plural(tally.untagged, 'image')} without a tag above the threshold")
        if isinstance(self.output, Sidecars) and self.output.converted:
            converted = self.output.converted
            print(f"{converted:,} {plural(converted, 'text')} in UTF-16 or Windows-1252, now UTF-8")
        if tally.failed and is_listed:
            print(f"{len(tally.failed):,} not tagged, listed in {self.folder / failures.FILE}")
        if self.passed_over:
            print(f"Passed over: {self.passed_over}")
        for name, uses in tally.uses.most_common(most_common):
            print(f"{uses:>9,}  {name}")

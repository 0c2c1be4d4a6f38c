"""Tagging of folders: find the images, skip those that are done, tag the others."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.core import files, jsonl, progress
from joytag.data import images
from joytag.tagging.captions import CaptionStyle, OptionError
from joytag.tagging.outputs import Output, Printer, Sidecars, Table, relative_name
from joytag.tagging.tagger import Tagger

FAILED = "failed.jsonl"


def find_images(inputs: Sequence[str], recursive: bool = False) -> list[Path]:
    """Return the images that files, folders and glob patterns name, each once, in the order of `inputs`.

    Raises ValueError when there are none, or when an input does not exist.
    """
    paths: dict[Path, Path] = {}
    for name in inputs:
        matches = sorted(glob.iglob(name, recursive=True))  # noqa: PTH207, Path.glob takes no absolute patterns
        if not matches and not os.path.lexists(name):
            raise ValueError(f"{name}: no such file or folder")
        for match in [name] if os.path.lexists(name) else matches:
            for path in images.find(Path(match), recursive):
                paths.setdefault(path.absolute(), path)
    if not paths:
        deeper = not recursive and any(images.find(Path(name)) for name in inputs)
        hint = "; they are in folders below it: search recursively" if deeper else ""
        raise ValueError(f"{inputs[0]}: no images here ({', '.join(images.SUFFIXES)}){hint}")
    return list(paths.values())


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

        Raises OptionError when options contradict each other, ValueError when there are no images or when two would
        share a file.
        """
        if append and (overwrite or kind != "txt"):
            raise OptionError("append", "only for output txt, and not together with overwrite")
        if extension and kind not in ("txt", "json"):
            raise OptionError("extension", f"only for output txt or json, not {kind}")
        paths = find_images(inputs, recursive)
        folder = common_folder(inputs, paths)
        output: Output = Printer()
        if kind in ("txt", "json"):
            output = Sidecars(extension or kind, style, kind == "json", append, overwrite)
        elif kind in ("jsonl", "csv"):
            output = Table(folder / f"tags.{kind}", style, overwrite)
        return cls(folder, paths, output.pending(paths), output, style)

    def __str__(self) -> str:
        done = len(self.paths) - len(self.pending)
        skipped = f", {done:,} of them already tagged" if done else ""
        return f"{self.folder}: {len(self.paths):,} images{skipped}; {len(self.pending):,} to tag, {self.output}"

    def run(
        self,
        tagger: Tagger,
        threshold: float | NDArray[np.float32],
        batch_size: int | None = None,
        workers: int | None = None,
        most_common: int | None = 20,
    ) -> None:
        """Tag the pending images under a progress bar, then print a summary with the most common tags (None: all).

        Images that cannot be used are listed in `failed.jsonl`, also after an interruption. Raises ValueError with the
        first reason when no image could be used, now or before.
        """
        positions = {tag: index for index, tag in enumerate(tagger.tags)}
        failed: dict[Path, str] = {}
        counts: Counter[str] = Counter()
        start = time.perf_counter()
        results = tagger.stream(self.pending, threshold, batch_size, workers)
        tracked = progress.track(results, "Tag", len(self.pending), "images")
        try:
            for image, result in zip(self.pending, tracked, strict=True):
                names = self.style.choose(result.tags, positions)
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
        self._summarize(failed, counts, time.perf_counter() - start, most_common)

    def _summarize(
        self, failed: dict[Path, str], counts: Counter[str], seconds: float, most_common: int | None
    ) -> None:
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
        for name, count in counts.most_common(most_common):
            print(f"{count:>9,}  {name}")


def write_failed(folder: Path, paths: Iterable[Path], failed: dict[Path, str]) -> None:
    """Write `failed.jsonl`: those of `paths` that could not be used, and its earlier rows about other images.

    Rows about images that no longer exist are dropped. Without rows there is no file.
    """
    path = folder / FAILED
    processed = {"", *(relative_name(image, folder) for image in paths)}
    earlier = [(str(row.get("file_name", "")), row) for row in jsonl.read(path)]
    kept = [row for name, row in earlier if name not in processed and (folder / name).exists()]
    rows = [{"file_name": relative_name(image, folder), "reason": reason} for image, reason in failed.items()]
    text = "".join(json.dumps(row) + "\n" for row in [*kept, *rows])
    if text:
        files.write_text(path, text)
    else:
        path.unlink(missing_ok=True)

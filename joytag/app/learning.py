"""Learn: fine-tune the model on what is decided, in a process of its own."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from joytag.core import child_process, jsonl
from joytag.models import release
from joytag.training.tracker import LOG

SOURCE = ("sources.0.separator=newline", "sources.0.negatives=true", "sources.0.exhaustive=false")
RUN, EXAMPLES, OUTPUT = "run", "images", "output.txt"  # in the folder of an attempt


# An image to learn from: its file, a name for it, and its tags, with a hyphen before those that it has not.
Example = tuple[Path, str, list[str]]


class Progress(BaseModel):
    """How far learning is."""

    state: Literal["idle", "preparing", "running", "loading", "done", "stopped", "failed"] = "idle"
    samples: int = Field(0, description="Samples trained on.")
    total: int = Field(0, description="Samples to train on; 0 until they are known.")
    message: str = Field("", description="The last line of output, when it has ended.")


class Learning:
    """One attempt at a time, each in a numbered folder below a directory; the process ends with this one."""

    def __init__(self, directory: Path) -> None:
        self._directory = self._attempt = directory
        self._progress = Progress()
        self._task: asyncio.Task[None] | None = None

    def start(self, model: Path, examples: Callable[[], Iterable[Example]], use: Callable[[Path], None]) -> bool:
        """Fine-tune a release in the background of an event loop; `use` gets the new one. False while one runs."""
        if self._task is not None and not self._task.done():
            return False
        numbers = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        self._attempt = self._directory / f"{max(numbers, default=0) + 1:03}"
        self._progress = Progress(state="preparing")
        self._task = asyncio.create_task(self._learn(model, examples, use))
        return True

    async def stop(self) -> None:
        """End the process, if one runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
            self._progress.state = "stopped"

    def progress(self) -> Progress:
        """Return how far it is."""
        samples = [row["samples"] for row in jsonl.read(self._attempt / RUN / LOG)[-1:]]
        with suppress(OSError):
            output = (self._attempt / OUTPUT).read_text(encoding="utf-8", errors="replace")
            if total := re.search(r"([\d,]+) samples, peak rate", output):
                self._progress.total = int(total[1].replace(",", ""))
        return self._progress.model_copy(update={"samples": samples[0]} if samples else {})

    async def _learn(self, model: Path, examples: Callable[[], Iterable[Example]], use: Callable[[Path], None]) -> None:
        images, run, now = self._attempt / EXAMPLES, self._attempt / RUN, self._progress
        command = ["joytag", "finetune", str(images), "--model", str(model), "--output", str(run), *SOURCE]
        try:
            await asyncio.to_thread(_write, images, examples)
            now.state = "running"
            code, now.message = await child_process.run([command], {}, self._attempt / OUTPUT)
            shutil.rmtree(images, ignore_errors=True)
            if code == 0:
                now.state = "loading"
                await asyncio.to_thread(use, run / release.DIRECTORY)
            now.state = "failed" if code else "done"
        except (OSError, ValueError) as error:
            now.state, now.message = "failed", " ".join(str(error).split())


def _write(folder: Path, examples: Callable[[], Iterable[Example]]) -> None:
    """Write a folder of images, linked where the file system can, with a text of tags beside each."""
    folder.mkdir(parents=True)
    for path, name, tags in examples():
        target = folder / f"{name}{path.suffix}"
        try:
            target.hardlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, target)
        target.with_suffix(".txt").write_text("\n".join(tags) + "\n", encoding="utf-8")

"""One line of figures to log.jsonl, the terminal and wandb; whatever fails here never stops a run."""

from __future__ import annotations

import json
import netrc
import os
import uuid
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from joytag.core import jsonl
from joytag.core.files import write_text

INIT_TIMEOUT = 30  # seconds that wandb may take to reach its server
FINISH_TIMEOUT = 60  # and to send the rest of a run; `wandb sync` sends it later


class Tracker:
    """Records figures by the number of samples seen; on ranks other than 0 (`enabled` False) it does nothing.

    Logs that are longer than the `samples` a run resumes from are cut there, so that no line occurs twice.
    """

    def __init__(
        self, directory: Path, samples: int, total: int, config: dict[str, Any], wandb: str, project: str, enabled: bool
    ) -> None:
        self.enabled, self.path, self.events = enabled, directory / "log.jsonl", directory / "events.jsonl"
        if not enabled:
            return
        for path in (self.path, self.events):
            kept = [line for line in jsonl.read(path) if line["samples"] <= samples]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.wandb = _start_wandb(wandb, project, directory, config)
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("samples", total=total, completed=samples)

    def __enter__(self) -> Tracker:
        if self.enabled:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.progress.stop()
            self._tell_wandb("finish")

    def advance(self, samples: int) -> None:
        """Move the progress bar."""
        if self.enabled:
            self.progress.update(self.task, completed=samples)

    @property
    def shows(self) -> bool:
        """Whether there is a place for images."""
        return self.enabled and self.wandb is not None

    def log(self, samples: int, figures: dict[str, float], details: dict[str, float] | None = None) -> None:
        """Record one line of figures, and `details`, which the terminal does without."""
        if not self.enabled:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.console.print(f"{samples:>11,}  {text}", highlight=False, soft_wrap=True)
        figures = figures | (details or {})
        _append(self.path, {"samples": samples, **figures})
        self._tell_wandb("log", figures, step=samples)

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Send images, uint8 [B, height, width, 3], with their captions to wandb."""
        if self.shows:
            import wandb

            shown = [wandb.Image(array, caption=text) for array, text in zip(arrays, captions, strict=True)]
            self._tell_wandb("log", {"validation": shown}, step=samples)

    def _tell_wandb(self, name: str, *arguments: Any, **options: Any) -> None:
        """Call a method of wandb's run; once that fails, do without it, since each further try would take seconds."""
        if self.wandb is not None:
            try:
                getattr(self.wandb, name)(*arguments, **options)
            except Exception as error:
                warnings.warn(f"wandb: {error}; the run goes on without it", stacklevel=2)
                self.wandb = None

    def event(self, samples: int, kind: str, facts: dict[str, Any]) -> None:
        """Record something out of the ordinary, in events.jsonl and, without its lists, on the terminal."""
        if self.enabled:
            text = "  ".join(f"{name} {value:.4g}" for name, value in facts.items() if isinstance(value, float))
            self.console.print(f"{samples:>11,}  {kind}: {text}, see {self.events}", highlight=False, soft_wrap=True)
            _append(self.events, {"samples": samples, "event": kind, **facts})


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        jsonl.append(path, line)
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); the run goes on", stacklevel=2)


def _start_wandb(mode: Any, project: str, directory: Path, config: dict[str, Any]) -> Any:
    """A wandb run that a resumed training continues, or None when there is none to be had."""
    if mode == "disabled":
        return None
    try:
        import wandb

        if mode == "auto":
            mode = "online" if _has_account() else "offline"
        id_file = directory / "wandb-id.txt"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:12])
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, x_disable_stats=True
        )
        run_id = id_file.read_text(encoding="utf-8").strip()
        arguments: dict[str, Any] = {
            "project": project,
            "name": directory.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(directory),
            "config": config,
            "settings": settings,
        }
        try:
            return wandb.init(mode=mode, **arguments)
        except Exception as error:
            warnings.warn(f"wandb cannot be reached ({error}); recording offline", stacklevel=2)
            wandb.teardown()  # it holds the run's id
            return wandb.init(mode="offline", **arguments)
    except Exception as error:
        warnings.warn(f"wandb is of no use here ({error}); log.jsonl has all figures", stacklevel=2)
        return None


def _has_account() -> bool:
    """Whether wandb knows who we are, from the environment or from `wandb login`, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False

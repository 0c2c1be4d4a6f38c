"""Write metrics to log.jsonl, the terminal and wandb. A failure here never stops a run."""

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

from joytag.core import jsonl, progress
from joytag.core.files import write_text

INIT_TIMEOUT = 30  # seconds for wandb to reach its server
FINISH_TIMEOUT = 60  # seconds to upload the rest of a run; `wandb sync` uploads what is left


class Tracker:
    """Records metrics by the number of samples trained on; with `enabled` False, on ranks other than 0, does nothing.

    A run that resumes from `samples` first removes later lines from its logs, so that no line occurs twice.
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
        self._samples, self._bar = samples, progress.bar("Train", total, "samples", samples)

    def __enter__(self) -> Tracker:
        if self.enabled:
            self._advance = self._bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.enabled:
            self._bar.__exit__(*exception)
            self._call_wandb("finish")

    def advance(self, samples: int) -> None:
        """Move the progress bar to a number of samples."""
        if self.enabled:
            self._advance(samples - self._samples)
            self._samples = samples

    @property
    def shows_images(self) -> bool:
        """Whether images can be shown, by wandb."""
        return self.enabled and self.wandb is not None

    def log(self, samples: int, metrics: dict[str, float], details: dict[str, float] | None = None) -> None:
        """Record one line of metrics, and `details`, which the terminal does not show."""
        if not self.enabled:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{samples:>11,}  {text}", flush=True)
        metrics = metrics | (details or {})
        append_line(self.path, {"samples": samples, **metrics})
        self._call_wandb("log", metrics, step=samples)

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Send images, uint8 [B, height, width, 3], with their captions to wandb."""
        if self.shows_images:
            import wandb

            shown = [wandb.Image(array, caption=text) for array, text in zip(arrays, captions, strict=True)]
            self._call_wandb("log", {"validation": shown}, step=samples)

    def _call_wandb(self, name: str, *arguments: Any, **options: Any) -> None:
        """Call a method of wandb's run. After a failure wandb is not used again, since each try would take seconds."""
        if self.wandb is not None:
            try:
                getattr(self.wandb, name)(*arguments, **options)
            except Exception as error:
                warnings.warn(f"wandb: {error}; the run goes on without it", stacklevel=2)
                self.wandb = None

    def event(self, samples: int, kind: str, details: dict[str, Any]) -> None:
        """Record an anomaly, in events.jsonl and, without its lists, on the terminal."""
        if self.enabled:
            text = "  ".join(f"{name} {value:.4g}" for name, value in details.items() if isinstance(value, float))
            print(f"{samples:>11,}  {kind}: {text}, see {self.events}", flush=True)
            append_line(self.events, {"samples": samples, "event": kind, **details})


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line of JSON to a file; only warn when it cannot be written."""
    try:
        jsonl.append(path, line)
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); the run goes on", stacklevel=2)


def _start_wandb(mode: Any, project: str, directory: Path, config: dict[str, Any]) -> Any:
    """Start or continue the directory's wandb run; None when wandb is disabled or fails."""
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
            wandb.teardown()  # the failed attempt still holds the run's id
            return wandb.init(mode="offline", **arguments)
    except Exception as error:
        warnings.warn(f"wandb cannot be used ({error}); log.jsonl has all metrics", stacklevel=2)
        return None


def _has_account() -> bool:
    """Whether an account is configured, in the environment or by `wandb login`; does not use the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False

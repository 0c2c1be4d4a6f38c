"""Write metrics to log.jsonl, the terminal, wandb and TensorBoard. A failure here never stops a run."""

from __future__ import annotations

import json
import netrc
import os
import threading
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from joytag.core import jsonl, progress
from joytag.core.errors import describe
from joytag.core.files import naming, write_text
from joytag.core.terminal import print

LOG = "log.jsonl"
EVENTS = "events.jsonl"
INIT_TIMEOUT = 30  # seconds for wandb to reach its server
FINISH_TIMEOUT = 60  # seconds to upload the rest of a run; `wandb sync` uploads what is left


class Service(Protocol):
    """Something that shows metrics beside the terminal and log.jsonl; its methods may raise anything."""

    def log(self, samples: int, metrics: dict[str, float]) -> None:
        """Record metrics."""

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Record images, uint8 [B, height, width, 3], with their captions."""

    def finish(self) -> None:
        """Write what is left."""


class Tracker:
    """Records metrics by the number of samples trained on; with `enabled` False, on ranks other than 0, does nothing.

    `services` starts each service by its name. One that fails is not used again, since each try could take seconds. A
    run that resumes from `samples` first removes later lines from its logs, so that no line occurs twice.
    """

    def __init__(
        self, directory: Path, samples: int, total: int, services: dict[str, Callable[[], Service]], enabled: bool
    ) -> None:
        self.enabled, self.path, self.events = enabled, directory / LOG, directory / EVENTS
        self.services: dict[str, Service] = {}
        if not enabled:
            return
        for path in (self.path, self.events):
            kept = [line for line in jsonl.read(path) if line["samples"] <= samples]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        for name, start in services.items():
            try:
                self.services[name] = start()
            except Exception as error:
                warnings.warn(f"{name} cannot be used ({_reason(error)}); {LOG} has all metrics", stacklevel=2)
        self._samples, self._bar = samples, progress.bar("Train", total, "samples", samples)

    def __enter__(self) -> Tracker:
        if self.enabled:
            self._advance = self._bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.enabled:
            self._bar.__exit__(*exception)
            self._call("finish")

    def advance(self, samples: int) -> None:
        """Move the progress bar to a number of samples."""
        if self.enabled:
            self._advance(samples - self._samples)
            self._samples = samples

    @property
    def shows_images(self) -> bool:
        """Whether images can be shown, by a service."""
        return bool(self.services)

    def log(self, samples: int, metrics: dict[str, float], details: dict[str, float] | None = None) -> None:
        """Record one line of metrics, and `details`, which the terminal does not show."""
        if not self.enabled:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{samples:>11,}  {text}", flush=True)
        metrics = metrics | (details or {})
        append_line(self.path, {"samples": samples, **metrics})
        self._call("log", samples, metrics)

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Send images, uint8 [B, height, width, 3], with their captions to the services."""
        self._call("images", samples, arrays, captions)

    def _call(self, method: str, *arguments: Any) -> None:
        """Call a method of all services, and drop those that fail."""
        for name, service in list(self.services.items()):
            try:
                getattr(service, method)(*arguments)
            except Exception as error:
                warnings.warn(f"{name}: {_reason(error)}; the run goes on without it", stacklevel=3)
                del self.services[name]

    def event(self, samples: int, kind: str, details: dict[str, Any]) -> None:
        """Record an anomaly, in events.jsonl and, without its lists, on the terminal."""
        if self.enabled:
            text = "  ".join(f"{name} {value:.4g}" for name, value in details.items() if isinstance(value, float))
            print(f"{samples:>11,}  {kind}: {text}, see {self.events}", flush=True)
            append_line(self.events, {"samples": samples, "event": kind, **details})


def _reason(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else str(error)


def check_logs(directory: Path) -> None:
    """Raise ValueError when a file in a run's directory has a log's name, but is another program's."""
    for path in (directory / LOG, directory / EVENTS):
        lines = jsonl.read(path)
        # The first line of a run that was killed may be incomplete.
        is_text = not lines and path.exists() and path.read_bytes()[:1] not in (b"", b"{")
        if is_text or any("samples" not in line for line in lines):
            raise ValueError(f"{path}: not a run's log; set another output, or move the file")


def curve(log: Path, name: str) -> list[tuple[int, float]]:
    """Return a metric of a run's log.jsonl, so far as it goes: the samples and the value of each line that has it."""
    return [(line["samples"], line[name]) for line in jsonl.read(log) if name in line]


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a line of JSON to a file; only warn when it cannot be written."""
    try:
        jsonl.append(path, line)
    except OSError as error:
        warnings.warn(f"{describe(error)}; the run goes on", stacklevel=2)


class Wandb:
    """A run at Weights & Biases; a directory's run continues. `mode` is online, offline or auto, see `wandb_mode`."""

    def __init__(self, mode: str, project: str | None, directory: Path, config: dict[str, Any]) -> None:
        import wandb

        id_file = directory / "wandb-id.txt"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:12])
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, x_disable_stats=True
        )
        arguments: dict[str, Any] = {
            "mode": mode,
            "project": project or os.environ.get("WANDB_PROJECT") or "joytag",
            "name": os.environ.get("WANDB_NAME") or directory.name,
            "id": id_file.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "dir": str(directory),
            "config": config,
            "settings": settings,
        }
        try:
            self.run = wandb.init(**arguments)
        except Exception as error:
            warnings.warn(f"wandb cannot be reached ({error}); recording offline", stacklevel=2)
            wandb.teardown()  # the failed attempt still holds the run's id
            self.run = wandb.init(**arguments | {"mode": "offline"})

    def log(self, samples: int, metrics: dict[str, float]) -> None:
        """Record metrics."""
        self.run.log(metrics, step=samples)

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Record images with their captions."""
        import wandb

        shown = [wandb.Image(array, caption=text) for array, text in zip(arrays, captions, strict=True)]
        self.run.log({"validation": shown}, step=samples)

    def finish(self) -> None:
        """Upload what is left."""
        self.run.finish()


class TensorBoard:
    """Event files for TensorBoard in `tensorboard/`; those after the `samples` from which a run resumes are hidden."""

    def __init__(self, directory: Path, samples: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "tensorboard"
        threading.excepthook = _print_unless_tensorboard
        with naming(self.path):
            self.writer = SummaryWriter(str(self.path), purge_step=samples + 1)

    def log(self, samples: int, metrics: dict[str, float]) -> None:
        """Record metrics."""
        with naming(self.path):
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, samples)
            self.writer.flush()

    def images(self, samples: int, arrays: np.ndarray, captions: list[str]) -> None:
        """Record images, and their captions as a list."""
        with naming(self.path):
            self.writer.add_images("validation", arrays, samples, dataformats="NHWC")
            self.writer.add_text("validation", "\n".join(f"1. {text}" for text in captions), samples)

    def finish(self) -> None:
        """Write what is left."""
        with naming(self.path):
            self.writer.close()


def _print_unless_tensorboard(error: threading.ExceptHookArgs) -> None:
    """Print the error that ended a thread, but not of TensorBoard's, whose writer raises it in the main thread, too."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def services(directory: Path, samples: int, config: dict[str, Any]) -> dict[str, Callable[[], Service]]:
    """Return how to start the services that the run's settings choose, by name; it resumes from `samples`."""
    tracking = config["tracking"]
    mode = wandb_mode(tracking["wandb"])
    chosen: dict[str, Callable[[], Service]] = {
        "wandb": lambda: Wandb(mode, tracking["project"], directory, config),
        "tensorboard": lambda: TensorBoard(directory, samples),
    }
    wanted = {"wandb": mode != "disabled", "tensorboard": tracking["tensorboard"]}
    return {name: start for name, start in chosen.items() if wanted[name]}


def wandb_mode(setting: str) -> str:
    """Return wandb's mode; auto is that of WANDB_MODE or, without it, online with an account, else offline."""
    if setting != "auto":
        return setting
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names


def _has_account() -> bool:
    """Whether an account is configured, in the environment or by `wandb login`; does not use the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    home = Path.home()
    paths = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]  # on Windows
    for path in paths:
        with suppress(OSError, netrc.NetrcParseError):
            return netrc.netrc(path).authenticators(host or "") is not None
    return False

"""Checkpoints: a release directory plus training state, saved atomically, verified when loaded, rotated."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from joytag.core.errors import describe
from joytag.core.files import file_hash, rename, sync
from joytag.models import release
from joytag.models.architectures import Model

DIRECTORY = "checkpoints"  # in a run's directory
RESULTS = "evaluations"  # in a run's directory: results about checkpoints
STATE_TENSORS = "train_state.safetensors"
STATE_VALUES = "train_state.json"
MANIFEST = "MANIFEST.sha256"  # in the format of sha256sum


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged; one line with the file and the remedy."""


class UnknownDataset(ValueError):
    """Raised when no checkpoint of a run names a dataset that exists."""


def save(
    root: Path,
    samples: int,
    model: Model,
    tags: list[str],
    loss_type: str,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    keep_last: int,
    keep_every: int,
) -> Path:
    """Write checkpoint `root/SAMPLES`, then remove those that need not be kept, and return its path.

    `tensors` and `values` (JSON) are the training state. The directory gets its name when every byte is on disk; an
    intact one of this name is left unchanged. Raises CheckpointError when it cannot be written.
    """
    final = root / f"{samples:012d}"
    partial = root / f".{final.name}.part"
    if final.exists() and is_intact(final):
        return final
    try:
        if final.exists():
            rename(final, root / f".{final.name}.damaged")
        for left in root.glob(".[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)  # another program may still read it
        _write(partial, model, tags, loss_type, tensors, values)
        rename(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)  # free the disk for the next attempt
        error.filename = str(final)  # of its files only the hidden names are known
        raise CheckpointError(f"{describe(error)}; earlier checkpoints are kept") from None
    sync(root)
    for old in _superfluous(checkpoints(root), keep_last, keep_every):
        # Renamed first, so that no incomplete checkpoint has a valid name.
        try:
            rename(old, root / f".{old.name}.old")
            shutil.rmtree(root / f".{old.name}.old")
        except OSError as error:  # on Windows and NFS, while another program reads it
            warnings.warn(f"{old}: cannot be removed now ({error.strerror}); the next checkpoint tries", stacklevel=2)
    return final


def _write(
    directory: Path, model: Model, tags: list[str], loss_type: str, tensors: dict[str, Tensor], values: dict[str, Any]
) -> None:
    release.save(directory, model, tags, loss_type)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    release.save_tensors(contiguous, directory / STATE_TENSORS)
    (directory / STATE_VALUES).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
    files = sorted(path for path in directory.iterdir())
    lines = [f"{file_hash(path)}  {path.name}\n" for path in files]
    (directory / MANIFEST).write_text("".join(lines), encoding="utf-8", newline="\n")
    for path in [*files, directory / MANIFEST, directory]:
        sync(path)


def _superfluous(paths: list[Path], keep_last: int, keep_every: int) -> list[Path]:
    """Return all but the newest and, after the first `keep_every` samples, the first of each such interval."""
    intervals: dict[int, Path] = {}
    for path in paths:
        intervals.setdefault(int(path.name) // keep_every, path)
    kept = {*paths[-keep_last:], *(path for interval, path in intervals.items() if interval > 0)}
    return [path for path in paths if path not in kept]


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints in a directory, oldest first."""
    return sorted(path for path in root.glob("[0-9]" * 12) if path.is_dir()) if root.is_dir() else []


def is_intact(directory: Path) -> bool:
    """Whether every file of a checkpoint is unchanged since it was written."""
    try:
        verify(directory)
    except CheckpointError:
        return False
    return True


def newest(root: Path) -> Path | None:
    """Return the newest intact checkpoint, None when there is no checkpoint; warn about damaged ones.

    Raises CheckpointError when all are damaged: a start from scratch would remove them.
    """
    paths = checkpoints(root)
    for path in reversed(paths):
        try:
            verify(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying an older checkpoint", stacklevel=2)
        else:
            return path
    if paths:
        raise CheckpointError(f"{root}: every checkpoint is damaged; move them away to start from scratch")
    return None


def newest_model(directory: Path) -> Path | None:
    """Return a release or a checkpoint itself, of a run its release, else its newest intact checkpoint; else None.

    Raises CheckpointError when all checkpoints are damaged.
    """
    finished = directory / release.DIRECTORY
    if release.is_complete(finished):
        return finished
    return directory if (directory / release.CONFIG).exists() else newest(directory / DIRECTORY)


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the directory of a model: `newest_model` of a path, or one that `release.locate` finds or downloads.

    Of a run that still trains it is another one later; who needs the same again uses `release.locate`. Raises
    CheckpointError or ReleaseError when there is none.
    """
    return newest_model(Path(source)) or release.locate(source)


def dataset(run: Path) -> Path:
    """Return the dataset directory that a run's newest checkpoint names. Raises UnknownDataset."""
    try:
        values = json.loads((checkpoints(run / DIRECTORY)[-1] / STATE_VALUES).read_text(encoding="utf-8"))
        directory = Path(values["dataset"])
    except (OSError, ValueError, LookupError, TypeError):  # no checkpoint, a damaged one, or one of an older version
        directory = None
    if directory is None or not directory.is_dir():
        raise UnknownDataset(f"{run}: no checkpoint there names a dataset that exists")
    return directory


def results_directory(model: Path) -> Path:
    """Return the directory for results about a model: its own; for a checkpoint, which is removed later, its run's."""
    path = model.resolve()
    if path.parent.name == DIRECTORY and (path / MANIFEST).is_file():
        return path.parents[1] / RESULTS / path.name
    return model


def verify(directory: Path) -> None:
    """Check every file against the manifest. Raises CheckpointError naming the first that differs."""
    try:
        lines = (directory / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{directory}: not a checkpoint ({MANIFEST} is missing or damaged)") from None
    missing = {*release.FILES, STATE_TENSORS, STATE_VALUES} - {line.partition("  ")[2] for line in lines}
    if missing:
        raise CheckpointError(f"{directory / MANIFEST}: damaged, it does not list {min(missing)}")
    for line in lines:
        digest, _, name = line.partition("  ")
        path = directory / name
        if Path(name).name != name or not path.is_file() or file_hash(path) != digest:
            raise CheckpointError(f"{path}: missing or damaged, it does not match {MANIFEST}")


def load(directory: Path) -> tuple[Model, list[str], dict[str, Tensor], dict[str, Any]]:
    """Verify and read a checkpoint: model, tag names, and the tensors and JSON values of the training state.

    Raises CheckpointError, or ReleaseError for its release part.
    """
    verify(directory)
    model, tags = release.load(directory)
    try:
        tensors = load_file(directory / STATE_TENSORS)
        values = json.loads((directory / STATE_VALUES).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{directory}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{directory / STATE_VALUES}: not a JSON object")
    return model, tags, tensors, values


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and JSON values, both by `state.PARAMETER.KEY` or `group.NUMBER.KEY`."""
    state = optimizer.state_dict()
    flat = {f"state.{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    for i, group in enumerate(state["param_groups"]):
        flat |= {f"group.{i}.{key}": value for key, value in group.items() if key != "params"}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Load the result of `pack_optimizer` into an optimizer of the same parameters."""
    state = optimizer.state_dict()
    for key, value in {**values, **tensors}.items():
        kind, number, name = key.split(".")
        if kind == "state":
            state["state"].setdefault(int(number), {})[name] = value
        else:
            state["param_groups"][int(number)][name] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict(state)

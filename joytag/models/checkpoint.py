"""Checkpoints: a release directory plus training state, saved atomically, loaded verified, rotated."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from joytag.core.files import file_hash, sync
from joytag.models import release
from joytag.models.architectures import Model

STATE_FILES = ("train_state.safetensors", "train_state.json")
MANIFEST = "MANIFEST.sha256"  # in the format of sha256sum


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged: one line with the file and the remedy."""


def save(
    root: Path,
    samples: int,
    model: Model,
    tags: list[str],
    loss_type: str,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    keep_last: int,
    keep_every: int,
) -> Path:
    """Write checkpoint `root/SAMPLES` and only then remove all that need not be kept.

    `tensors` and `facts` (anything JSON can hold) are the training state. The directory appears under
    its name when every byte is on disk; if it is there already, and whole, nothing is done. Raises CheckpointError
    when it cannot be written.
    """
    final = root / f"{samples:012d}"
    partial = root / f".{final.name}.part"
    if final.exists():
        if is_whole(final):
            return final
        final.rename(root / f".{final.name}.damaged")
    for left in root.glob(".[0-9]*"):
        shutil.rmtree(left)
    try:
        _write(partial, model, tags, loss_type, tensors, facts)
        partial.replace(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # room for the next try
        raise CheckpointError(f"{final}: cannot be written ({error}); the checkpoints before stay") from None
    sync(root)
    for old in _superfluous(checkpoints(root), keep_last, keep_every):
        shutil.rmtree(old.rename(root / f".{old.name}.old"))  # at no moment half a checkpoint under its name
    return final


def _write(
    directory: Path, model: Model, tags: list[str], loss_type: str, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    release.save(directory, model, tags, loss_type)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, directory / "train_state.safetensors")
    (directory / "train_state.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in directory.iterdir())
    lines = [f"{file_hash(path)}  {path.name}\n" for path in files]
    (directory / MANIFEST).write_text("".join(lines), encoding="utf-8")
    for path in [*files, directory / MANIFEST, directory]:
        sync(path)


def _superfluous(found: list[Path], keep_last: int, keep_every: int) -> list[Path]:
    """All but the newest, and the first of each stretch of `keep_every` samples after the first stretch."""
    stretches: dict[int, Path] = {}
    for path in found:
        stretches.setdefault(int(path.name) // keep_every, path)
    stay = {*found[-keep_last:], *(path for stretch, path in stretches.items() if stretch > 0)}
    return [path for path in found if path not in stay]


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints in a directory, oldest first."""
    return sorted(path for path in root.glob("[0-9]" * 12) if path.is_dir()) if root.is_dir() else []


def is_whole(directory: Path) -> bool:
    """Whether every file of a checkpoint is as it was written."""
    try:
        verify(directory)
    except CheckpointError:
        return False
    return True


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are named in a warning and passed over.

    None when there is no checkpoint at all; raises CheckpointError when all are damaged, since starting
    over would remove them.
    """
    found = checkpoints(root)
    for path in reversed(found):
        try:
            verify(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying an older checkpoint", stacklevel=2)
        else:
            return path
    if found:
        raise CheckpointError(f"{root}: every checkpoint is damaged; move them away to start from scratch")
    return None


def verify(directory: Path) -> None:
    """Check every file against the manifest. Raises CheckpointError naming the first that differs."""
    try:
        lines = (directory / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{directory}: not a checkpoint ({MANIFEST} is missing or damaged)") from None
    missing = {*release.FILES, *STATE_FILES} - {line.partition("  ")[2] for line in lines}
    if missing:
        raise CheckpointError(f"{directory / MANIFEST}: damaged, it does not list {min(missing)}")
    for line in lines:
        digest, _, name = line.partition("  ")
        path = directory / name
        if Path(name).name != name or not path.is_file() or file_hash(path) != digest:
            raise CheckpointError(f"{path}: missing or damaged, it does not match {MANIFEST}")


def load(directory: Path) -> tuple[Model, list[str], dict[str, Tensor], dict[str, Any]]:
    """Read a verified checkpoint: model, tag names, training tensors, training facts.

    Raises CheckpointError, or ReleaseError for its release part.
    """
    verify(directory)
    model, tags = release.load(directory)
    try:
        tensors = load_file(directory / "train_state.safetensors")
        facts = json.loads((directory / "train_state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{directory}: cannot be read ({error})") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{directory / 'train_state.json'}: holds no facts by name")
    return model, tags, tensors, facts


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as flat tensors, `state.PARAMETER.KEY` and `group.NUMBER.KEY`, and plain facts."""
    state = optimizer.state_dict()
    flat = {f"state.{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    for i, group in enumerate(state["param_groups"]):
        flat |= {f"group.{i}.{key}": value for key, value in group.items() if key != "params"}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Load what `pack_optimizer` gave into an optimizer of the same parameters."""
    state = optimizer.state_dict()
    for key, value in {**facts, **tensors}.items():
        kind, number, name = key.split(".")
        if kind == "state":
            state["state"].setdefault(int(number), {})[name] = value
        else:
            state["param_groups"][int(number)][name] = tuple(value) if isinstance(value, list) else value
    optimizer.load_state_dict(state)

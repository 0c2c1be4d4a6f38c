"""Reading and writing of a release directory: `config.json`, `model.safetensors`, `top_tags.txt`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from joytag.core import files
from joytag.core.errors import first_line, system_error
from joytag.data import tag_names
from joytag.models.architectures import ARCHITECTURES, Config, Model

DIRECTORY = "release"  # of a finished run
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FILES = (CONFIG, WEIGHTS, tag_names.FILE)
OLD_WEIGHTS = "model.pt"  # of releases older than safetensors
OLD_OUTPUTS = 9  # very old heads end with outputs for 3 ratings and 6 scores
IGNORED = ("loss_type", "use_amp")  # keys of config.json that describe the training alone; trainers left use_amp
UNPUBLISHED = "patch_dropout"  # not written to config.json: existing loaders would drop tokens in evaluation, too
POSITIONS = "pos_embedding.embedding.weight"
POSITION_IDS = "pos_embedding.position_ids"  # existing loaders require it beside POSITIONS; int64 [1, tokens], 0, 1 ...
MAX_CONFIG = 2**20  # bytes of config.json
INCOMPLETE = f"; a release holds {', '.join(FILES)}"


class ReleaseError(ValueError):
    """A release directory that cannot be read; one line with the file, the field and the remedy."""


def save(directory: Path, model: Model, tags: list[str], loss_type: str) -> None:
    """Write a model and its tag names as the release's existing loaders expect them, float32.

    `loss_type` names the loss in `config.json`, such as `focal2`; no loader needs it. The weights are
    written last: their presence means that the directory is complete.
    """
    assumed = model.config.ASSUMED
    config = {
        key: value
        for key, value in dataclasses.asdict(model.config).items()
        if key != UNPUBLISHED and (key not in assumed or value != assumed[key])
    }
    kind = next(name for name, row in ARCHITECTURES.items() if isinstance(model, row.model))
    text = json.dumps({"class": kind, **config, "loss_type": loss_type}, indent=2)
    files.remove_partials(directory)
    files.write_text(directory / CONFIG, text + "\n")
    files.write_text(directory / tag_names.FILE, "\n".join(tags))
    state = {name: _as_published(value.detach()).cpu().contiguous() for name, value in model.state_dict().items()}
    if POSITIONS in state:
        state[POSITION_IDS] = torch.arange(len(state[POSITIONS])).unsqueeze(0)
    with files.replacing(directory / WEIGHTS) as partial:
        save_tensors(state, partial)
        shutil.copymode(directory / CONFIG, partial)  # safetensors creates files that only their owner may read


def is_complete(directory: Path) -> bool:
    """Whether a release was written to its end."""
    return (directory / WEIGHTS).is_file()  # written last


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, contiguous and in CPU memory, to a safetensors file. Raises OSError."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise system_error(error, path) from None


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the directory of a release on disk, in a finished run, or downloaded from the Hugging Face hub.

    `source` is a path, or the hub's `owner/name` when no such path exists. Raises ReleaseError when it is neither, or
    when the download fails.
    """
    directory = Path(source)
    if directory.is_dir():
        return directory / DIRECTORY if is_complete(directory / DIRECTORY) else directory
    if directory.exists():
        raise ReleaseError(f"{directory}: is a file; use the directory that holds {', '.join(FILES)}")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source), re.ASCII):
        raise ReleaseError(f"{directory}: no such directory")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=[*FILES, OLD_WEIGHTS]))
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ReleaseError(
            f"{source}: no such directory, and the Hugging Face hub cannot provide it ({first_line(error)}); "
            "download the release by other means and use its directory"
        ) from None


def load(directory: Path) -> tuple[Model, list[str]]:
    """Read a model, float32 in evaluation mode on the CPU, and its tag names.

    Raises ReleaseError when a file is missing, damaged or malicious, or when the three do not belong together. A model
    is allocated only after the weights have been checked to fit it.
    """
    config, tags = read_config(directory), read_tags(directory)
    if len(tags) != config.n_tags:
        raise ReleaseError(
            f"{directory / tag_names.FILE}: {len(tags)} tags, but config.json's n_tags is {config.n_tags}; "
            "the files are of different releases"
        )
    path, state = _read_weights(directory)
    try:
        config.check_tensors(state)
    except ValueError as error:
        raise ReleaseError(f"{path}: {error}") from None
    if POSITIONS in state and POSITION_IDS in state:
        ids = state.pop(POSITION_IDS)
        if not torch.equal(ids, torch.arange(len(state[POSITIONS])).unsqueeze(0)):
            raise ReleaseError(f"{path}: tensor {POSITION_IDS} does not number the positions in order")
    for name in ("head.weight", "head.bias"):
        if name in state and state[name].shape[:1] == (config.n_tags + OLD_OUTPUTS,):
            state[name] = state[name][: config.n_tags]
    try:
        with torch.device("meta"):
            model: Model = config.build()
    except (RuntimeError, ValueError) as error:  # sizes beyond the range of integers
        raise ReleaseError(f"{directory / CONFIG}: describes no model ({first_line(error)})") from None
    _check(path, state, model.state_dict())
    if not model.state_is_complete:
        model = config.build()
    model.load_state_dict({name: _as_published(value).clone() for name, value in state.items()}, assign=True)
    return model.eval(), tags


def hashes(directory: Path) -> dict[str, str]:
    """Return the hex sha256 of each file that a release or checkpoint loads, by name."""
    paths = [directory / name for name in (*FILES, OLD_WEIGHTS)]
    return {path.name: files.file_hash(path) for path in paths if path.is_file()}


def read_tags(directory: Path) -> list[str]:
    """Return the tag names in the order of the outputs. Raises ReleaseError when `top_tags.txt` cannot be used."""
    path = directory / tag_names.FILE
    try:
        return tag_names.read(path)
    except tag_names.TagListError as error:
        raise ReleaseError(f"{error}{'' if path.exists() else INCOMPLETE}") from None


def read_config(directory: Path) -> Config:
    """Return the architecture in `config.json`. Raises ReleaseError naming a key that is missing, unknown or wrong."""
    path = directory / CONFIG
    text = _read_text(path)
    try:
        values: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise ReleaseError(f"{path}: not valid JSON ({error})") from None
    kind = values.pop("class", None) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ReleaseError(f"{path}: class: not {' or '.join(ARCHITECTURES)}")
    for key in IGNORED:
        values.pop(key, None)
    config = ARCHITECTURES[kind].config
    fields = dataclasses.fields(config)
    for key in sorted(values.keys() - {field.name for field in fields}):
        raise ReleaseError(f"{path}: {key}: unknown key")
    required = {field.name for field in fields if field.default is dataclasses.MISSING} | {"image_size"}
    for key in sorted(required - values.keys()):
        raise ReleaseError(f"{path}: {key}: missing")
    try:
        return TypeAdapter(config).validate_json(json.dumps({**config.ASSUMED, **values}), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "value_error":
            raise ReleaseError(f"{path}: {problem['ctx']['error']}") from None
        key = ".".join(map(str, problem["loc"]))
        raise ReleaseError(f"{path}: {key}: {problem['msg']} (given: {problem['input']!r:.40})") from None


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ReleaseError(f"{path}: larger than {MAX_CONFIG // 2**20} MB; it is not from a release")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ReleaseError(f"{path}: missing{INCOMPLETE}") from None
    except UnicodeDecodeError:
        raise ReleaseError(f"{path}: not UTF-8 text; copy the file again") from None


def _read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the file of the weights and its tensors by their published names."""
    path, old = directory / WEIGHTS, directory / OLD_WEIGHTS
    try:
        if path.is_file():
            with path.open("rb") as file:
                if file.read(20) == b"version https://git-":
                    raise ReleaseError(f"{path}: is a Git LFS pointer, not the weights; run git lfs pull")
            return path, load_file(path)
    except (SafetensorError, OSError) as error:
        raise ReleaseError(f"{path}: damaged or cut short ({error}); copy the file again") from None
    if not old.is_file():
        raise ReleaseError(f"{path}: missing{INCOMPLETE}")
    try:
        path, content = old, torch.load(old, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged pickle can raise errors of any type
        raise ReleaseError(
            f"{old}: damaged, or holds more than weights ({first_line(error)}); save the model's state_dict alone"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ReleaseError(f"{path}: holds no weights by name")
    for prefix in ("module.", "_orig_mod."):  # of models saved inside DistributedDataParallel or torch.compile
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return path, content


def _check(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ReleaseError at the first tensor that is missing, unexpected, of another shape or type, or not finite."""
    for name in sorted(expected.keys() - state.keys()):
        raise ReleaseError(f"{path}: tensor {name} is missing; config.json's model has it")
    for name in sorted(state.keys() - expected.keys()):
        raise ReleaseError(f"{path}: tensor {name} is unexpected; config.json's model does not have it")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise ReleaseError(
                f"{path}: tensor {name} has shape {list(value.shape)}, but config.json requires "
                f"{list(expected[name].shape)}"
            )
        if value.is_floating_point() != expected[name].is_floating_point():
            raise ReleaseError(f"{path}: tensor {name} holds {value.dtype}, not {expected[name].dtype}")
        if not torch.isfinite(_as_published(value)).all():
            raise ReleaseError(f"{path}: tensor {name} holds NaN or infinity as float32; the training diverged")


def _as_published(value: Tensor) -> Tensor:
    """Convert floating-point numbers to float32; BatchNorm's counters stay integers."""
    return value.float() if value.is_floating_point() else value

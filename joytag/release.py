"""The release directory, `config.json` + `model.safetensors` + `top_tags.txt`, read and written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from joytag import records
from joytag.model import ViT, ViTConfig

FILES = ("config.json", "model.safetensors", "top_tags.txt")
LOSS_TYPES = {"focal": "focal2", "bce": "ce", "asymmetric": "asl"}


class ReleaseError(ValueError):
    """A release directory that cannot be read: one line with the file, the field and the remedy."""


def save(directory: Path, model: ViT, tags: list[str], loss_type: str = "focal2") -> None:
    """Write a model and its tag names as the release's existing loaders expect them, float32.

    The weights come last, since their presence says that the directory is whole.
    """
    optional = {"layerscale_init", "head_mean_after", "cnn_stem", "patch_dropout"}
    defaults = {field.name: field.default for field in dataclasses.fields(ViTConfig)} | {"cnn_stem": None}
    config = {
        key: value
        for key, value in dataclasses.asdict(model.config).items()
        if key not in optional or value != defaults[key]
    }
    text = json.dumps({"class": "ViT", **config, "loss_type": loss_type}, indent=2)
    records.write_text(directory / "config.json", text + "\n")
    records.write_text(directory / "top_tags.txt", "\n".join(tags))
    state = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    partial = directory / "model.safetensors.part"
    save_file(state, partial)
    partial.replace(directory / "model.safetensors")


def load(directory: Path) -> tuple[ViT, list[str]]:
    """Read a model, in evaluation mode on the CPU, and its tag names.

    Raises ReleaseError when a file is missing or damaged, or when the three do not belong together.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise ReleaseError(f"{directory / name}: missing; a release holds {', '.join(FILES)}")
    config = _read_config(directory / "config.json")
    tags = (directory / "top_tags.txt").read_text(encoding="utf-8").split("\n")
    tags = [tag.strip() for tag in tags if tag.strip()]
    if len(tags) != config.n_tags:
        raise ReleaseError(
            f"{directory / 'top_tags.txt'}: {len(tags)} tags, but config.json's n_tags is {config.n_tags}"
        )
    path = directory / "model.safetensors"
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error}); copy the file again") from None
    model = ViT(config).eval()
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ state.keys()):
        raise ReleaseError(f"{path}: tensor {name} is {'missing' if name in expected else 'not part of the model'}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise ReleaseError(f"{path}: tensor {name} has shape {list(value.shape)}, not {list(expected[name].shape)}")
        if not torch.isfinite(value).all():
            raise ReleaseError(f"{path}: tensor {name} holds NaN or infinity")
    model.load_state_dict(state)
    return model, tags


def _read_config(path: Path) -> ViTConfig:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error})") from None
    if not isinstance(values, dict) or values.pop("class", None) != "ViT":
        raise ReleaseError(f"{path}: class: not ViT")
    values.pop("loss_type", None)
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    for key in values.keys() - known:
        raise ReleaseError(f"{path}: {key}: unknown key")
    for key in {"n_tags", "image_size"} - values.keys():
        raise ReleaseError(f"{path}: {key}: missing")
    try:
        values.setdefault("cnn_stem", None)
        return ViTConfig(**values)
    except (ValueError, TypeError) as error:
        raise ReleaseError(f"{path}: {error}") from None

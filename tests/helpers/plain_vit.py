"""The network in plain functions, and a reader of releases that is as strict as the original's."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

KEYS = ("n_tags", "image_size", "num_blocks", "patch_size", "d_model", "mlp_dim", "num_heads", "stochdepth_rate")
REQUIRED_KEYS = {"class", *KEYS, "use_sine", "loss_type"}
OPTIONAL_KEYS = {"layerscale_init", "head_mean_after", "cnn_stem", "patch_dropout"}


def expected_shapes(config: dict) -> dict[str, list[int]]:
    """Return the shape of each tensor that the original's model has, for stems of conv, ln, relu and gelu."""
    width, hidden, patch = config["d_model"], config["mlp_dim"], config["patch_size"]
    layers = {"norm": [width], "head": [config["n_tags"], width]}
    if config.get("cnn_stem") is None:
        layers["patch_embeddings"] = [width, 3, patch, patch]
    else:
        channels = 3
        for i, item in enumerate(config["cnn_stem"].split(";")):
            kind, _, text = item.partition(":")
            if kind == "conv":
                given = {"k": 3} | {a[0]: int(a[2:]) for a in text.split(",")}
                layers[f"patch_embeddings.conv.{i}"] = [given["c"], channels, given["k"], given["k"]]
                channels = given["c"]
            elif kind == "ln":
                layers[f"patch_embeddings.conv.{i}.norm"] = [channels]
    shapes: dict[str, list[int]] = {}
    for n in range(config["num_blocks"]):
        block = {"norm1": [width], "qkv_proj": [3 * width, width], "out_proj": [width, width], "norm2": [width]}
        block |= {"mlp.linear1": [hidden, width], "mlp.linear2": [width, hidden]}
        layers |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
        shapes |= {f"blocks.{n}.skip_init{i}.skip": [width] for i in (1, 2)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    if not config["use_sine"]:
        tokens = (config["image_size"] // patch) ** 2
        shapes |= {"pos_embedding.embedding.weight": [tokens, width], "pos_embedding.position_ids": [1, tokens]}
    return shapes


def read_strictly(directory: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read config.json and model.safetensors; an unknown key or any other set of tensors fails."""
    config, state = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    assert REQUIRED_KEYS <= config.keys() <= REQUIRED_KEYS | OPTIONAL_KEYS
    assert {name: list(value.shape) for name, value in state.items()} == expected_shapes(config)
    for name, value in state.items():
        assert value.dtype == (torch.int64 if name.endswith("position_ids") else torch.float32), name
    return config, state


def defined(config: dict, state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The network written out with plain functions and the published names, token by token.

    It is long because it is the whole definition of the network, in one place to compare with the paper.
    """
    x = images
    if config.get("cnn_stem") is None:
        x = F.conv2d(x, state["patch_embeddings.weight"], state["patch_embeddings.bias"], stride=config["patch_size"])
    else:
        for i, item in enumerate(config["cnn_stem"].split(";")):
            kind, _, text = item.partition(":")
            part = f"patch_embeddings.conv.{i}."
            if kind == "conv":
                given = {"k": 3, "s": 2, "p": 1} | {a[0]: int(a[2:]) for a in text.split(",")}
                x = F.conv2d(x, state[part + "weight"], state[part + "bias"], given["s"], given["p"])
            elif kind == "ln":
                mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
                x = (x - mean) / (variance + 1e-5).sqrt()
                x = x * state[part + "norm.weight"].view(-1, 1, 1) + state[part + "norm.bias"].view(-1, 1, 1)
            elif kind == "bn":
                mean, variance, w, b = (
                    state[part + name].view(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
                )
                x = (x - mean) / (variance + 1e-5).sqrt() * w + b
            else:
                x = x.clamp(min=0) if kind == "relu" else x * 0.5 * (1 + torch.erf(x / 2**0.5))
    rows, columns = x.shape[2:]
    x = torch.stack([x[:, :, i // columns, i % columns] for i in range(rows * columns)], dim=1)
    width = config["d_model"]
    if config["use_sine"]:
        omega = np.array([10_000 ** (-k / (width / 4 - 1)) for k in range(width // 4)])
        for i in range(rows * columns):
            across, down = (i % columns) * omega, (i // columns) * omega
            parts = [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
            x[:, i] += torch.from_numpy(np.concatenate(parts)).float()
    else:
        x = x + state["pos_embedding.embedding.weight"][state["pos_embedding.position_ids"]]

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(x, name):
        return F.layer_norm(x, (width,), state[name + ".weight"], state[name + ".bias"])

    for n in range(config["num_blocks"]):
        part = f"blocks.{n}."
        q, k, v = linear(norm(x, part + "norm1"), part + "qkv_proj").split(width, dim=-1)
        heads = []
        size = width // config["num_heads"]
        for h in range(config["num_heads"]):
            one = slice(h * size, (h + 1) * size)
            weights = (q[..., one] @ k[..., one].transpose(1, 2) / size**0.5).softmax(-1)
            heads.append(weights @ v[..., one])
        x = x + linear(torch.cat(heads, -1), part + "out_proj") * state[part + "skip_init1.skip"]
        hidden = linear(norm(x, part + "norm2"), part + "mlp.linear1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, part + "mlp.linear2") * state[part + "skip_init2.skip"]
    x = norm(x, "norm")
    return linear(x, "head").mean(1) if config.get("head_mean_after") else linear(x.mean(1), "head")

"""A run that starts from a released model: its weights under a new vocabulary, and slower rates for early layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.optim import param_groups_layer_decay

from joytag.models.architectures import Model
from joytag.models.timm_backbone import TimmModel


def carry_over(model: Model, tags: list[str], source: Model, source_tags: list[str]) -> dict[str, list[str]]:
    """Give `model` the weights of `source`, whose head's rows go by tag name; returns what became of the tags.

    Tags that the source knows are `kept`; for `new` ones the weights are zero and the bias stays as it is;
    `dropped` ones are the source's that the model lacks. Raises ValueError when the architectures differ.
    """
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
    expected = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("head.")}
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights or weights[name].shape != expected.get(name):
            raise ValueError(f"model: differs from init_from's in tensor {name}; leave out what describes the model")
    model.load_state_dict(weights, strict=False)
    rows = {tag: row for row, tag in enumerate(source_tags)}
    kept = [row for row, tag in enumerate(tags) if tag in rows]
    origin = [rows[tags[row]] for row in kept]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[kept] = source.head.weight[origin]
        model.head.bias[kept] = source.head.bias[origin]
    known = set(tags)
    return {
        "kept": [tags[row] for row in kept],
        "new": [tag for tag in tags if tag not in rows],
        "dropped": [tag for tag in source_tags if tag not in known],
    }


@torch.no_grad()
def retain(model: Model, tags: list[str], source: Model, source_tags: list[str], share: float) -> None:
    """Move a fine-tuned model's weights towards those that it started from, by a `share` of the way, in place.

    Half-way, a model has forgotten much less and has learned hardly less (Wortsman et al. 2022,
    arXiv:2109.01903). New tags' rows, which started from nothing, stay as they are.
    """
    start = copy.deepcopy(model)
    head = model.head.weight.clone(), model.head.bias.clone()
    fate = carry_over(start, tags, source, source_tags)
    before = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name], share)
    rows = [tags.index(tag) for tag in fate["new"]]
    model.head.weight[rows], model.head.bias[rows] = head[0][rows], head[1][rows]


def layer_groups(model: Model, decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in groups for an optimizer, each with an `lr_scale` to multiply the rate with.

    That is 1 for the head and the last norm, and for each block, from the last to the first and on to stem
    and positions, `decay` times that of the layer after it (Clark et al. 2020, arXiv:2003.10555, table 7).
    What the layers of a backbone of timm are, timm says.
    """
    if isinstance(model, TimmModel):
        inner = param_groups_layer_decay(model.backbone, layer_decay=decay, weight_decay_exclude_1d=False)
        head = {"params": list(model.head.parameters()), "lr_scale": 1.0}
        return [head, *({"params": group["params"], "lr_scale": decay * group["lr_scale"]} for group in inner)]
    layers = [[model.head, model.norm], *([block] for block in reversed(model.blocks)), [model.patch_embeddings]]
    if not model.config.use_sine:
        layers[-1].append(model.pos_embedding)
    groups = []
    for depth, modules in enumerate(layers):
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        if parameters:
            groups.append({"params": parameters, "lr_scale": decay**depth})
    return groups

"""Fine-tuning: a release's weights under a new vocabulary, and lower learning rates for early layers."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from timm.optim import param_groups_layer_decay

from joytag.models.architectures import Model
from joytag.models.timm_backbone import TimmModel


class CarriedTags(NamedTuple):
    """The tags of a model that starts from another: known to both, to the new one alone, to the old one alone."""

    kept: list[str]
    new: list[str]
    dropped: list[str]

    def summary(self) -> str:
        """The numbers in one line, and the first names of new and dropped tags on lines of their own."""
        lines = [", ".join(f"{len(tags):,} tags {fate}" for fate, tags in self._asdict().items())]
        for fate, tags in (("new", self.new), ("dropped", self.dropped)):
            if tags:
                lines.append(f"  {fate}: {', '.join(tags[:10])}{' ...' if len(tags) > 10 else ''}")
        return "\n".join(lines)


def carry_over(model: Model, tags: list[str], source: Model, source_tags: list[str]) -> CarriedTags:
    """Copy the weights of `source` into `model`, the head's rows by tag name.

    A new tag gets zero weights and keeps the model's bias. Raises ValueError when the architectures differ.
    """
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
    expected = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("head.")}
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights or weights[name].shape != expected.get(name):
            raise ValueError(f"model: differs from init_from's in tensor {name}; omit the model settings")
    model.load_state_dict(weights, strict=False)
    rows = {tag: row for row, tag in enumerate(source_tags)}
    kept = [row for row, tag in enumerate(tags) if tag in rows]
    origin = [rows[tags[row]] for row in kept]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[kept] = source.head.weight[origin]
        model.head.bias[kept] = source.head.bias[origin]
    known = set(tags)
    return CarriedTags(
        kept=[tags[row] for row in kept],
        new=[tag for tag in tags if tag not in rows],
        dropped=[tag for tag in source_tags if tag not in known],
    )


@torch.no_grad()
def retain(model: Model, tags: list[str], source: Model, source_tags: list[str], share: float) -> None:
    """Interpolate a fine-tuned model's weights towards those that it started from, in place.

    `share` in [0, 1] is the weight of the start. At 1/2 a model has forgotten much less than at 0 and has learned
    almost as much (Wortsman et al. 2022, arXiv:2109.01903). The rows of new tags do not change.
    """
    start = copy.deepcopy(model)
    head = model.head.weight.clone(), model.head.bias.clone()
    new = carry_over(start, tags, source, source_tags).new
    before = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name], share)
    rows = [tags.index(tag) for tag in new]
    model.head.weight[rows], model.head.bias[rows] = head[0][rows], head[1][rows]


def layer_groups(model: Model, decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters by layer for an optimizer; `lr_scale` is a group's factor of the learning rate.

    The factor is 1 for the head and the last norm. From the last block to the first, then the stem and learned
    positions, each layer has `decay` times the factor of the one after it (Clark et al. 2020, arXiv:2003.10555,
    table 7). timm defines the layers of its backbones.
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

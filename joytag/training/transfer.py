"""Fine-tuning: a release's weights under a new vocabulary."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from joytag.core.terminal import plural
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.models.architectures import Config, Model

YES, NO = DEFAULT_THRESHOLD + 0.1, DEFAULT_THRESHOLD - 0.1  # targets of tags whose label contradicts the teacher


class CarriedTags(NamedTuple):
    """The tags of a model that starts from another: known to both, to the new one alone, to the old one alone."""

    kept: list[str]
    new: list[str]
    dropped: list[str]

    def summary(self) -> str:
        """The numbers in one line, and the first names of new and dropped tags on lines of their own."""
        lines = [", ".join(f"{len(tags):,} {plural(len(tags), 'tag')} {fate}" for fate, tags in self._asdict().items())]
        for fate, tags in (("new", self.new), ("dropped", self.dropped)):
            if tags:
                lines.append(f"  {fate}: {', '.join(tags[:10])}{' ...' if len(tags) > 10 else ''}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Teacher:
    """A model whose scores are the targets of the tags that it knows (Li & Hoiem 2016, arXiv:1606.09282).

    Output `rows[i]` of `model` is the tag of column `columns[i]` of the labels; both int64 [kept].
    """

    model: Model
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, model: Model, known: list[str], tags: list[str]) -> Teacher:
        """Create the teacher of those of `tags` that are among `known`, the tags of the model."""
        row = {tag: number for number, tag in enumerate(known)}
        pairs = [(row[tag], column) for column, tag in enumerate(tags) if tag in row]
        rows, columns = torch.tensor(pairs, dtype=torch.int64, device=model.head.weight.device).reshape(-1, 2).T
        return cls(model.eval(), rows, columns)

    @torch.no_grad()
    def targets(self, images: Tensor, labels: Tensor, rejected: Tensor | None = None) -> Tensor:
        """Return the targets of images, float32 [B, N]: the labels, but for this model's tags its scores.

        `images` are normalized, float [B, 3, S, S]; labels [B, N] are bool, or numbers from 0 to 1, or NaN if they are
        unknown. An image with a label of one of these tags counts as labelled with all of them that are not unknown;
        `rejected` ones, bool [B, N], are labelled in every image. Where the labels contradict the scores, these are
        moved just across the threshold, to YES or NO. Moved to 1 and 0 they would raise and lower the scores of other
        images, too.
        """
        targets = labels.to(torch.float32, copy=True)
        scores = self.model(images).float().sigmoid()[:, self.rows]
        known = targets[:, self.columns]
        labelled = known > 0.5
        corrected = torch.where(labelled, scores.clamp(min=YES), scores.clamp(max=NO))
        is_label = labelled.any(dim=1, keepdim=True) & ~known.isnan()
        if rejected is not None:
            is_label |= rejected[:, self.columns]
        targets[:, self.columns] = torch.where(is_label, corrected, scores)
        return targets


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


def chosen_settings(images: int, released: Config) -> list[str]:
    """Return the settings, as `key=value`, for fine-tuning a release on this number of images.

    Measured on 10, 60 and 300 images with a model of width 192 (docs/fine-tuning.md): 1,200, 1,500 and 3,300 samples;
    with more images ten epochs. The rate is 0.003 there and falls as the width grows (Yang et al. 2022,
    arXiv:2203.03466, table 3).
    """
    samples = max(1_200, round(200 * images**0.5, -2), 10 * images)
    with torch.device("meta"):
        width = released.build().head.in_features
    return [f"stages.0.samples={samples:.0f}", f"optimizer.lr={0.003 * 192 / width:.2g}"]

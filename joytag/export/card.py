"""The model card of an export: the README of its page on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from joytag.core.settings import Settings
from joytag.core.terminal import printable
from joytag.export.layouts import LAYOUTS
from joytag.export.manifest import Evaluation, Manifest
from joytag.export.precisions import WEBGPU

FILE = "README.md"
SECTIONS = ("What it is", "How it was measured", "How to use it", "Limits", "Licence", "Training data")
NAMES = {"micro": "micro", "macro": "macro", "precision": "precision", "recall": "recall", "f1": "F1", "map": "mAP"}


class About(Settings):
    """What only the publisher knows."""

    hub: str
    """The model's id on the hub, `owner/name`."""
    license: str
    """An identifier of the hub, such as `apache-2.0` or `other`."""
    trained_on: str
    """The training data, in a sentence."""


def render(manifests: Mapping[str, Manifest], about: About) -> str:
    """Return the card of exports of one release, by their folders: "" or a path that ends with a slash."""
    first = next(iter(manifests.values()))
    bodies = (
        _describe(manifests, first),
        _measure(first),
        "\n\n".join(_usage(folder, manifest, about) for folder, manifest in manifests.items()),
        _limits(manifests, first),
        f"`{_plain(about.license)}`",
        _plain(about.trained_on),
    )
    sections = [f"## {title}\n\n{body}" for title, body in zip(SECTIONS, bodies, strict=True)]
    header = yaml.safe_dump(_front_matter(first, about), sort_keys=False, allow_unicode=True)
    return "\n\n".join([f"---\n{header}---", f"# {_plain(about.hub.partition('/')[2])}", *sections]) + "\n"


def _front_matter(manifest: Manifest, about: About) -> dict[str, Any]:
    tags = ["image-tagging", "multi-label-classification", "joytag"]
    values: dict[str, Any] = {
        "license": about.license,
        "pipeline_tag": "image-classification",
        "library_name": "onnx",
        "tags": tags,
    }
    if (found := manifest.evaluation) is not None:
        results = [
            {"type": name, "name": _name(name), "value": round(interval.value, 4)}
            for name, interval in found.metrics.items()
        ]
        data = {"type": "own", "name": printable(found.dataset), "split": found.split}
        task = {"type": "image-classification"}
        result = {"task": task, "dataset": data, "metrics": results}
        values["model-index"] = [{"name": about.hub.partition("/")[2], "results": [result]}]
    return values


def _describe(manifests: Mapping[str, Manifest], first: Manifest) -> str:
    lines = [
        f"A multi-label image tagger: {first.model_tags:,} tags, images of {first.input.side} pixels, exported by "
        f"JoyTag {_plain(first.joytag)}. A tag is predicted when its score is above {first.thresholds.default:g}.",
        "",
        "| folder | for | format | verified |",
        "|---|---|---|---|",
    ]
    for folder, manifest in manifests.items():
        programs = LAYOUTS[manifest.layout].programs
        lines.append(f"| `{folder or './'}` | {programs} | {manifest.precision} | {_verified(manifest)} |")
    return "\n".join([*lines, "", "`manifest.json` describes input, outputs and thresholds for programs."])


def _verified(manifest: Manifest) -> str:
    found = manifest.verification
    if found is None:
        return "no"
    return (
        f"{found.agreement:.3%} of the model's decisions on {found.images:,} images ({_plain(found.origin)}), "
        f"{found.common_tags:.2%} of the tags"
    )


def _measure(manifest: Manifest) -> str:
    found = manifest.evaluation
    if found is None:
        return "It is unmeasured: no evaluation was beside the model when it was exported."
    return "\n".join(
        [
            f"On {found.images:,} images of the {_plain(found.split)} split of {_plain(found.dataset)}, with "
            f"{found.tags:,} tags, at threshold {found.threshold:g}. Intervals are 95 %, from a bootstrap over images.",
            "",
            "| metric | value | interval |",
            "|---|---|---|",
            *_rows(found),
        ]
    )


def _rows(evaluation: Evaluation) -> list[str]:
    return [
        f"| {_name(name)} | {interval.value:.3f} | {interval.low:.3f} to {interval.high:.3f} |"
        for name, interval in evaluation.metrics.items()
    ]


def _name(metric: str) -> str:
    return " ".join(NAMES.get(part, _plain(part)) for part in metric.split("_"))


def _usage(folder: str, manifest: Manifest, about: About) -> str:
    text = files("joytag.export").joinpath("usage", f"{manifest.layout}.md").read_text(encoding="utf-8")
    values = {"hub": about.hub, "folder": folder, "side": manifest.input.side}
    filled = Template(text).substitute(values, threshold=f"{manifest.thresholds.default:g}")
    location = (
        f"The files are in `{folder}`; programs that load a model by its id need them at its root.\n\n"
        if folder
        else ""
    )
    return f"### {LAYOUTS[manifest.layout].programs}\n\n{location}{filled.strip()}"


def _limits(manifests: Mapping[str, Manifest], first: Manifest) -> str:
    lines = [
        "- It knows its own tags only, and was measured on images like those it was trained on.",
        "- Rare tags, small details and subjective tags are predicted less well than the averages say.",
        "- Scores are no probabilities: choose thresholds on images of your own.",
    ]
    for manifest in manifests.values():
        lines += [f"- Layout {manifest.layout}: {_plain(note)}." for note in manifest.notes]
    precisions = {manifest.precision for manifest in manifests.values()}
    lines += [f"- {limit}" for precision, limit in WEBGPU.items() if precision in precisions]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a text in one line that Markdown shows unchanged."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in printable(" ".join(text.split())))

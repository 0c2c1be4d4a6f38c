"""The table of layouts: which files a group of programs loads, and what their model takes and returns."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from joytag.core import files
from joytag.data import preprocessing
from joytag.data.dataset import CATEGORIES
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.export.manifest import Holds, Input, Output
from joytag.export.source import Source, Tag
from joytag.models import wd_onnx

RATINGS = ("general", "sensitive", "questionable", "explicit")  # the first rows of the WD layout, in this order
FIRST_RATING_ID = 9_999_999  # of the first; each later one is one less
GENERAL, CHARACTER = 0, 4  # the categories of tags that the WD layout knows
NO_CHARACTER = "no_character"  # keeps programs going that look for the first row of a character
MISSING = {"n/a", "na", "nan", "none", "null"}  # what pandas reads as no name, in some spellings
SD_SCRIPTS_SIDE = 448  # of the only images that sd-scripts gives to a model, pixels


class Row(NamedTuple):
    """An output of an exported model: a tag, or a name that the model does not know.

    `output` is the position among the release's tags; None is a score of constant 0.
    """

    tag_id: int
    tag: Tag
    output: int | None


@dataclass(frozen=True)
class Layout:
    """What programs of one kind expect.

    `outputs` are the model's, by name; `rows` orders its tags and tells what could not be kept; `write` writes the
    files beside the model, `model`. `limits` tells which of the programs cannot use a model for images of some side.
    """

    programs: str
    input: str
    axes: Literal["NCHW", "NHWC"]
    channels: Literal["RGB", "BGR"]
    is_standardized: bool
    outputs: Mapping[str, Holds]
    write: Callable[[Path, Source, Sequence[Row]], None]
    rows: Callable[[Sequence[Tag]], tuple[list[Row], list[str]]]
    model: str = wd_onnx.MODEL
    limits: Callable[[int], list[str]] = lambda side: []

    def describe_input(self, side: int) -> Input:
        """Describe the input of a model for images of `side` pixels."""
        value_range: Literal["standardized", "0 to 255"] = "standardized" if self.is_standardized else "0 to 255"
        return Input(name=self.input, axes=self.axes, side=side, channels=self.channels, range=value_range)

    def describe_outputs(self, source: Source, rows: Sequence[Row], embedding: bool) -> list[Output]:
        """Describe the outputs; with `embedding`, that is the last one unless the layout has it anyway."""
        outputs = dict(self.outputs)
        if embedding and "embedding" not in outputs.values():
            outputs["embedding"] = "embedding"
        width = source.model.head.in_features
        sizes: dict[Holds, int] = {"embedding": width, "logits": len(source.tags), "scores": len(rows)}
        return [
            Output(name=name, holds=holds, activation="sigmoid" if holds == "scores" else "none", size=sizes[holds])
            for name, holds in outputs.items()
        ]


def rows_of_release(tags: Sequence[Tag]) -> tuple[list[Row], list[str]]:
    """Keep the order of the release."""
    return [Row(output, tag, output) for output, tag in enumerate(tags)], []


def rows_of_wd(tags: Sequence[Tag]) -> tuple[list[Row], list[str]]:
    """Order the tags as programs slice them: four ratings, general tags, characters.

    A rating is a tag such as `rating:explicit`. Tags of other categories become general.
    """
    by_name = {tag.name: Row(output, tag, output) for output, tag in enumerate(tags)}
    notes, ratings = [], []
    for number, name in enumerate(RATINGS):
        known = by_name.pop(f"rating:{name}", None)
        tag = Tag(name, wd_onnx.RATING, known.tag.images if known else 0, DEFAULT_THRESHOLD)
        ratings.append(Row(FIRST_RATING_ID - number, tag, known.output if known else None))
    if missing := [row.tag.name for row in ratings if row.output is None]:
        notes.append(f"the model has no ratings {', '.join(missing)}; their scores are always 0")
    characters = [row for row in by_name.values() if row.tag.category == CHARACTER]
    others = [row for row in by_name.values() if row.tag.category != CHARACTER]
    general = [row._replace(tag=row.tag._replace(category=GENERAL)) for row in others]
    folded = sorted({CATEGORIES.get(row.tag.category, "others") for row in others if row.tag.category != GENERAL})
    if folded:
        count = sum(row.tag.category != GENERAL for row in others)
        notes.append(f"the layout has no category for {count:,} tags ({', '.join(folded)}); they are general tags")
    if not characters:
        characters = [Row(len(tags), Tag(NO_CHARACTER, CHARACTER, 0, DEFAULT_THRESHOLD), None)]
        notes.append(f"no tag is known as a character; the layout needs one, {NO_CHARACTER}, whose score is always 0")
    if lost := [tag.name for tag in tags if tag.name.lower() in MISSING]:
        notes.append(f"programs that read selected_tags.csv by pandas have no name for {', '.join(lost)}")
    return [*ratings, *general, *characters], notes


def limits_of_wd(side: int) -> list[str]:
    """Name the program whose images have one size."""
    if side == SD_SCRIPTS_SIDE:
        return []
    return [f"sd-scripts cannot use it: it takes models of {SD_SCRIPTS_SIDE} pixels, and this one is of {side}"]


def write_release(directory: Path, source: Source, rows: Sequence[Row]) -> None:
    """Copy the files of the release."""
    for name in source.hashes:
        shutil.copyfile(source.directory / name, directory / name)


def write_wd(directory: Path, source: Source, rows: Sequence[Row]) -> None:
    """Write the table of tags, and a config.json by which programs recognize a tagger of this kind."""
    _write_tags(directory, rows)
    config = {
        "architecture": "onnx",
        "num_classes": len(rows),
        "num_features": source.model.head.in_features,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, source.size, source.size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(preprocessing.MEAN),
            "std": list(preprocessing.STD),
            "num_classes": len(rows),
        },
    }
    _write_json(directory / "config.json", config)


def write_imgutils(directory: Path, source: Source, rows: Sequence[Row]) -> None:
    """Write tags with their thresholds, the steps that prepare an image, and the categories."""
    _write_tags(directory, rows, {"best_threshold": lambda row: row.tag.threshold})
    steps = [
        {"type": "pad_to_size", "size": [source.size] * 2, "background_color": "white", "interpolation": "bicubic"},
        {"type": "maybe_to_tensor"},
        {"type": "normalize", "mean": list(preprocessing.MEAN), "std": list(preprocessing.STD)},
    ]
    _write_json(directory / "preprocess.json", {"test": steps, "val": steps})
    used = sorted({row.tag.category for row in rows})
    names = {category: CATEGORIES.get(category, f"category {category}") for category in used}
    _write_json(directory / "categories.json", [{"category": key, "name": name} for key, name in names.items()])
    lines = [(category, name, DEFAULT_THRESHOLD) for category, name in names.items()]
    _write_csv(directory / "thresholds.csv", ("category", "name", "threshold"), lines)


def write_transformers(directory: Path, source: Source, rows: Sequence[Row]) -> None:
    """Write the names of the outputs and the steps that prepare an image."""
    labels = [row.tag.name for row in rows]
    config = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "problem_type": "multi_label_classification",
        "image_size": source.size,
        "num_channels": 3,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "transformers.js_config": {"dtype": "fp32"},
    }
    _write_json(directory / "config.json", config)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": source.size, "width": source.size},
        "resample": 3,  # Pillow's number for bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.MEAN),
        "image_std": list(preprocessing.STD),
    }
    _write_json(directory / "preprocessor_config.json", processor)


def _write_tags(directory: Path, rows: Sequence[Row], more: Mapping[str, Callable[[Row], Any]] | None = None) -> None:
    columns = more or {}
    lines = [
        (row.tag_id, row.tag.name, row.tag.category, row.tag.images, *(value(row) for value in columns.values()))
        for row in rows
    ]
    _write_csv(directory / wd_onnx.FILES[1], (*wd_onnx.COLUMNS, *columns), lines)


def _write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *lines])
    files.write_text(path, text.getvalue())


def _write_json(path: Path, value: Any) -> None:
    files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


LAYOUTS = {
    "joytag": Layout(
        programs="programs for the released JoyTag: ComfyUI nodes, batch scripts; onnxruntime in any language",
        input="input",
        axes="NCHW",
        channels="RGB",
        is_standardized=True,
        outputs={"logits": "logits"},
        rows=rows_of_release,
        write=write_release,
    ),
    "wd": Layout(
        programs="programs for WD taggers: sd-scripts, ComfyUI-WD14-Tagger, TagGUI, web UIs",
        input="input",
        axes="NHWC",
        channels="BGR",
        is_standardized=False,
        outputs={"output": "scores"},
        rows=rows_of_wd,
        limits=limits_of_wd,
        write=write_wd,
    ),
    "imgutils": Layout(
        programs="imgutils (`imgutils.generic.multilabel_timm`)",
        input="input",
        axes="NCHW",
        channels="RGB",
        is_standardized=True,
        outputs={"prediction": "scores", "logits": "logits", "embedding": "embedding"},
        rows=rows_of_release,
        write=write_imgutils,
    ),
    "transformers": Layout(
        programs="transformers.js in browsers and Node.js; the image processor of transformers",
        input="pixel_values",
        axes="NCHW",
        channels="RGB",
        is_standardized=True,
        outputs={"logits": "logits"},
        rows=rows_of_release,
        write=write_transformers,
        model="onnx/model.onnx",
    ),
}

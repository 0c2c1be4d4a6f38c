"""How other programs read an export and tag an image, rewritten from their documentation and file formats.

Each function takes the directory of an export, an image and a threshold, and returns the names of the tags.
"""

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageColor

Client = Callable[[Path, Image.Image, float], set[str]]
BICUBIC, BOX, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.LANCZOS


@cache
def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def squared(image: Image.Image) -> Image.Image:
    """Pad to a centred white square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def sigmoid(logits: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-logits))


def joytag(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """The ONNX programs for JoyTag: input `input`, the first output, CLIP's statistics, a sigmoid of their own."""
    model = session(directory / "model.onnx")
    size = json.loads((directory / "config.json").read_text())["image_size"]
    pixels = np.asarray(squared(on_white(image)).resize((size, size), BICUBIC), dtype=np.float32) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    [logits] = model.run(None, {"input": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    tags = [line.strip() for line in (directory / "top_tags.txt").read_text(encoding="utf-8").splitlines()]
    return {tags[i] for i in np.flatnonzero(sigmoid(logits) > threshold)}


def sd_scripts(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """sd-scripts: the first input, its own slices of the rows, ratings by position; shrinks by area."""
    model = session(directory / "model.onnx")
    size = model.get_inputs()[0].shape[1]  # 448 there
    square = squared(on_white(image))
    resized = square if square.width == size else square.resize((size, size), BOX if square.width > size else LANCZOS)
    batch = np.asarray(resized)[None, :, :, ::-1].astype(np.float32)
    [scores] = model.run(None, {model.get_inputs()[0].name: batch})[0]
    with (directory / "selected_tags.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["tag_id", "name", "category"]
    assert [row[1] for row in rows if row[2] == "9"] == ["general", "sensitive", "questionable", "explicit"]
    general, character = ([row[1] for row in rows if row[2] == category] for category in "04")
    assert len(scores) == 4 + len(general) + len(character)
    names = [*general, *character]
    return {names[i] for i, score in enumerate(scores[4:]) if score >= threshold}


def comfyui(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """ComfyUI-WD14-Tagger: shrinks before it pads, slices at the first general row and the first character."""
    model = session(directory / "model.onnx")
    size = model.get_inputs()[0].shape[1]
    ratio = size / max(image.size)
    new = int(image.width * ratio), int(image.height * ratio)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(on_white(image).resize(new, LANCZOS), ((size - new[0]) // 2, (size - new[1]) // 2))
    batch = np.asarray(square).astype(np.float32)[:, :, ::-1][None]
    [scores] = model.run([model.get_outputs()[0].name], {model.get_inputs()[0].name: batch})[0]
    with (directory / "selected_tags.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    first = {category: next(i for i, row in enumerate(rows) if row[2] == category) for category in "04"}
    found = list(zip([row[1] for row in rows], scores, strict=True))
    chosen = [*found[first["0"] : first["4"]], *found[first["4"] :]]
    return {name for name, score in chosen if score > threshold}


def taggui(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """TagGUI: found by its files, bicubic, ratings by category."""
    assert (directory / "config.json").is_file()
    model = session(directory / "model.onnx")
    _, size, _, _ = model.get_inputs()[0].shape
    pixels = np.array(squared(on_white(image)).resize((size, size), BICUBIC), dtype=np.float32)[:, :, ::-1]
    [scores] = model.run([model.get_outputs()[0].name], {model.get_inputs()[0].name: pixels[None]})[0]
    with (directory / "selected_tags.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = zip(rows, scores, strict=True)
    return {row["name"] for row, score in pairs if row["category"] != "9" and score > threshold}


def imgutils(directory: Path, image: Image.Image, threshold: float | None) -> set[str]:
    """imgutils: steps from preprocess.json, categories from theirs; None means each tag's best threshold."""
    values = on_white(image)
    array = np.empty(0)
    for step in json.loads((directory / "preprocess.json").read_text())["test"]:
        kind = step.pop("type")
        if kind == "pad_to_size":
            width, height = step["size"]
            ratio = min(width / values.width, height / values.height)
            new = round(values.width * ratio), round(values.height * ratio)
            canvas = Image.new("RGB", (width, height), ImageColor.getrgb(step["background_color"]))
            resized = values.resize(new, Image.Resampling[step["interpolation"].upper()])
            canvas.paste(resized, ((width - new[0]) // 2, (height - new[1]) // 2))
            values = canvas
        elif kind == "maybe_to_tensor":
            array = np.asarray(values).transpose(2, 0, 1).astype(np.float32) / 255
        else:
            assert kind == "normalize"
            mean, std = (np.array(step[key], dtype=np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
            array = (array - mean) / std
    model = session(directory / "model.onnx")
    names = [output.name for output in model.get_outputs()]
    assert {"prediction", "logits", "embedding"} == {*names}
    outputs = dict(zip(names, model.run(names, {"input": array[None]}), strict=True))
    np.testing.assert_allclose(sigmoid(outputs["logits"]), outputs["prediction"], atol=1e-6)
    with (directory / "selected_tags.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {str(row["category"]) for row in json.loads((directory / "categories.json").read_text())}
    assert {row["category"] for row in rows} <= known
    limits = [float(row["best_threshold"]) if threshold is None else threshold for row in rows]
    found = zip(rows, outputs["prediction"][0], limits, strict=True)
    return {row["name"] for row, score, limit in found if score >= limit}


def transformers_js(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """transformers.js: the caller pads and shrinks by lanczos, as the card says; then as transformers."""
    size = json.loads((directory / "preprocessor_config.json").read_text())["size"]
    return transformers(directory, squared(on_white(image)).resize((size["width"], size["height"]), LANCZOS), threshold)


def transformers(directory: Path, image: Image.Image, threshold: float) -> set[str]:
    """transformers: the processor's steps on an image that the caller padded, then the caller's sigmoid."""
    steps = json.loads((directory / "preprocessor_config.json").read_text())
    config = json.loads((directory / "config.json").read_text())
    size = steps["size"]["width"], steps["size"]["height"]
    pixels = np.asarray(squared(on_white(image)).resize(size, steps["resample"]), dtype=np.float32)
    pixels = (pixels * steps["rescale_factor"] - steps["image_mean"]) / steps["image_std"]
    model = session(directory / "onnx" / "model.onnx")
    [logits] = model.run(["logits"], {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    return {config["id2label"][str(i)] for i in np.flatnonzero(sigmoid(logits) > threshold)}


CLIENTS: dict[str, tuple[str, Client]] = {  # with the layouts that they read
    "joytag": ("joytag", joytag),
    "sd-scripts": ("wd", sd_scripts),
    "ComfyUI-WD14-Tagger": ("wd", comfyui),
    "TagGUI": ("wd", taggui),
    "imgutils": ("imgutils", imgutils),
    "transformers": ("transformers", transformers),
    "transformers.js": ("transformers", transformers_js),
}
RESIZES_OTHERWISE = {"sd-scripts", "ComfyUI-WD14-Tagger", "imgutils", "transformers.js"}  # than bicubically when padded
PADS_LATE = {"ComfyUI-WD14-Tagger", "imgutils"}  # so that one side of a very narrow image shrinks to nothing

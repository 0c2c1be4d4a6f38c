"""Taggers of other projects in the WD layout, `model.onnx` and `selected_tags.csv`: images to scores."""

from __future__ import annotations

import csv
import json
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from joytag.core.errors import first_line
from joytag.data import dataset, images, preprocessing
from joytag.models.vit import MAX_IMAGE_SIZE

CPU = torch.device("cpu")
MODEL = "model.onnx"
FILES = (MODEL, "selected_tags.csv")
COLUMNS = ("tag_id", "name", "category", "count")
RATING = 9  # the layout's category of outputs for an image's rating, which are not tags
THRESHOLD = 0.35  # the default of programs that use such taggers
BATCH = 8  # images computed at once, if the model does not fix it
LARGEST_BATCH = 256  # that a model may fix


class OnnxError(ValueError):
    """A tagger that is damaged or not in the WD layout; one line with the file, the field and the remedy."""


@dataclass(frozen=True)
class OnnxTagger:
    """A model with its tags: row i of `tags` describes scores[:, i]; ratings are left out.

    `size` is the side of its input images in pixels, `batch` the number of images that it computes at once. `threshold`
    is what an export's metadata name, else the usual one of such taggers.
    """

    path: Path
    tags: dataset.TagTable
    size: int
    batch: int
    threshold: float
    _outputs: NDArray[np.int64]  # [N], the model's outputs that are tags
    _n_outputs: int  # with ratings
    _session: Any

    @classmethod
    def load(cls, directory: Path, device: torch.device = CPU) -> OnnxTagger:
        """Read a directory, for a cuda `device` if onnxruntime supports it, else, with a warning, for the CPU.

        The model must have one input, float32 [batch, side, side, 3], and one output, [batch, rows of
        selected_tags.csv]. Raises OnnxError when it has others, or when a file is missing or damaged, and
        ModuleNotFoundError when onnxruntime is not installed.
        """
        path = directory / MODEL
        tags, outputs, rows = read_tags(directory / FILES[1])
        session = _open(path, device)
        if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
            raise OnnxError(f"{path}: has several inputs or outputs; a tagger of the WD layout has one of each")
        source, result = session.get_inputs()[0], session.get_outputs()[0]
        batch, *sides = source.shape if len(source.shape) == 4 else (0, 0)
        if source.type != "tensor(float)" or not isinstance(sides[0], int) or sides != [sides[0], sides[0], 3]:
            raise OnnxError(
                f"{path}: input {source.name}: {source.type} {source.shape} is not float [batch, side, side, 3]; "
                "only taggers of the WD layout can be used"
            )
        if len(result.shape) != 2 or (isinstance(result.shape[1], int) and result.shape[1] != rows):
            raise OnnxError(
                f"{path}: output {result.name}: {result.shape} is not [batch, {rows}], as in {FILES[1]}; "
                "the files are of different taggers"
            )
        if not 0 < sides[0] <= MAX_IMAGE_SIZE:
            raise OnnxError(f"{path}: input {source.name}: images of {sides[0]} pixels; at most {MAX_IMAGE_SIZE} fit")
        at_once = batch if isinstance(batch, int) and 0 < batch <= LARGEST_BATCH else BATCH
        return cls(path, tags, sides[0], at_once, _read_threshold(session), outputs, rows, session)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores, float32 [B, N] in [0, 1], of RGB squares uint8 [B, side, side, 3] from `read`.

        Raises OnnxError when the model's outputs are not scores.
        """
        if not len(pixels):
            return np.empty((0, len(self.tags)), dtype=np.float32)
        starts = range(0, len(pixels), self.batch)
        scores = np.concatenate([self._run(pixels[start : start + self.batch]) for start in starts])
        if scores.shape != (len(pixels), self._n_outputs):
            raise OnnxError(f"{self.path}: returns {scores.shape[1:]} values for an image, not {self._n_outputs}")
        if not (scores.min() >= 0 and scores.max() <= 1):  # NaN is neither
            raise OnnxError(
                f"{self.path}: returns values from {scores.min():g} to {scores.max():g}, not scores from 0 to 1; "
                "a tagger of the WD layout ends in a sigmoid"
            )
        return scores[:, self._outputs]

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return all outputs, float32, of at most `batch` images; smaller batches are padded to `batch`."""
        squares = np.zeros((self.batch, self.size, self.size, 3), dtype=np.float32)
        squares[: len(pixels)] = pixels[..., ::-1]  # the layout has BGR, 0 to 255
        try:
            (scores,) = self._session.run(None, {self._session.get_inputs()[0].name: squares})
        except Exception as error:  # onnxruntime's errors have no other common base class
            raise OnnxError(f"{self.path}: cannot be computed ({first_line(error)})") from None
        return np.asarray(scores, dtype=np.float32)[: len(pixels)]

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read an image as a bicubic square on white, RGB uint8 [side, side, 3]. Raises ImageError."""
        return np.asarray(preprocessing.square(images.decode(path), self.size, Image.Resampling.BICUBIC))


def read_tags(path: Path) -> tuple[dataset.TagTable, NDArray[np.int64], int]:
    """Read a `selected_tags.csv`: the tags, their outputs int64 [N], and the number of outputs with ratings.

    Row i names output i; `count` is used as the number of training images. Raises OnnxError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            rows = list(reader)
    except FileNotFoundError:
        raise OnnxError(f"{path}: missing; a tagger of the WD layout holds {' and '.join(FILES)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OnnxError(f"{path}: cannot be read as CSV ({error})") from None
    if missing:
        raise OnnxError(f"{path}: {min(missing)}: column missing; the WD layout has {', '.join(COLUMNS)}")
    seen: dict[str, tuple[np.int8, np.int64, int]] = {}  # category, count, output
    for output, row in enumerate(rows):
        try:
            name = row["name"].strip().replace(" ", "_")
            category, count = np.int8(int(row["category"])), np.int64(int(row["count"]))
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise OnnxError(f"{path}: row {output + 1}: not a name with a category and a count") from None
        if category == RATING:
            continue
        if name in seen or not name:
            raise OnnxError(f"{path}: row {output + 1}: {name or 'no name'}: must have a name that occurs once")
        seen[name] = category, count, output
    if not seen:
        raise OnnxError(f"{path}: lists no tags")
    categories, counts, outputs = map(np.array, zip(*seen.values(), strict=True))
    return dataset.TagTable(list(seen), categories, counts, counts), outputs, len(rows)


def _read_threshold(session: Any) -> float:
    with suppress(LookupError, TypeError, ValueError, RecursionError):  # of other programs' metadata
        value = json.loads(session.get_modelmeta().custom_metadata_map["thresholds"])["default"]
        if 0 < float(value) < 1:
            return float(value)
    return THRESHOLD


def _open(path: Path, device: torch.device) -> Any:
    """Open a model with onnxruntime. Raises OnnxError, and ModuleNotFoundError without onnxruntime."""
    import onnxruntime

    if not path.is_file():
        raise OnnxError(f"{path}: missing; a tagger of the WD layout holds {' and '.join(FILES)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    available = onnxruntime.get_available_providers()
    on_gpu = ("CUDAExecutionProvider", {"device_id": device.index or 0})
    wanted = [on_gpu] if device.type == "cuda" and on_gpu[0] in available else []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])
        if device.type == "cuda" and on_gpu[0] not in session.get_providers():
            warnings.warn(
                f"{path}: onnxruntime computes on the CPU; for {device} install onnxruntime-gpu", stacklevel=2
            )
        return session
    except Exception as error:  # onnxruntime's errors have no other common base class
        raise OnnxError(f"{path}: damaged, or not for onnxruntime ({first_line(error)})") from None

"""Taggers of other projects in the WD layout, `model.onnx` beside `selected_tags.csv`: images to scores."""

from __future__ import annotations

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from joytag.data import dataset, images

CPU = torch.device("cpu")
FILES = ("model.onnx", "selected_tags.csv")
COLUMNS = ("tag_id", "name", "category", "count")
RATING = 9  # the layout's number for outputs that tell an image's rating, which is no tag
THRESHOLD = 0.35  # what programs that use such taggers are set to
BATCH = 8  # images computed at once, if the model leaves that open


class OnnxError(ValueError):
    """A tagger that is not of the WD layout, or damaged: one line with the file, the field and the remedy."""


@dataclass(frozen=True)
class OnnxTagger:
    """A model with its tags: `tags[i]` describes scores[:, i]; ratings are none of them.

    `size` is the side of the images that it takes, `batch` how many it computes at once.
    """

    path: Path
    tags: dataset.TagTable
    size: int
    batch: int
    _outputs: np.ndarray  # int64 [N]: the model's outputs that are tags
    _rows: int  # how many outputs there are
    _session: Any

    @classmethod
    def load(cls, directory: Path, device: torch.device = CPU) -> OnnxTagger:
        """Read a directory, to compute on a cuda `device` if onnxruntime can, else, with a warning, on the CPU.

        The layout: one input float32 [batch, side, side, 3], one output [batch, rows of selected_tags.csv]. Raises
        OnnxError when the model is of another, or a file is missing or damaged.
        """
        path = directory / FILES[0]
        tags, outputs, rows = read_tags(directory / FILES[1])
        session = _open(path, device)
        if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
            raise OnnxError(f"{path}: has several inputs or outputs; a tagger of the WD layout has one of each")
        given, made = session.get_inputs()[0], session.get_outputs()[0]
        batch, *sides = given.shape if len(given.shape) == 4 else (0, 0)
        if given.type != "tensor(float)" or not isinstance(sides[0], int) or sides != [sides[0], sides[0], 3]:
            raise OnnxError(
                f"{path}: input {given.name}: {given.type} {given.shape} is not float [batch, side, side, 3]; "
                "only taggers of the WD layout can be used"
            )
        if len(made.shape) != 2 or (isinstance(made.shape[1], int) and made.shape[1] != rows):
            raise OnnxError(
                f"{path}: output {made.name}: {made.shape} is not [batch, {rows}], as {FILES[1]} has it; "
                "the files are of different taggers"
            )
        return cls(path, tags, sides[0], batch if isinstance(batch, int) else BATCH, outputs, rows, session)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Scores, float32 [B, N] in [0, 1], of squares uint8 [B, side, side, 3] in RGB, as `read` makes them.

        Raises OnnxError when what comes out are no scores.
        """
        if not len(pixels):
            return np.empty((0, len(self.tags)), dtype=np.float32)
        starts = range(0, len(pixels), self.batch)
        scores = np.concatenate([self._run(pixels[start : start + self.batch]) for start in starts])
        if scores.shape != (len(pixels), self._rows):
            raise OnnxError(f"{self.path}: gives {scores.shape[1:]} values an image, not {self._rows}")
        if not (scores.min() >= 0 and scores.max() <= 1):  # NaN is neither
            raise OnnxError(
                f"{self.path}: gives values from {scores.min():g} to {scores.max():g}, not scores from 0 to 1; "
                "a tagger of the WD layout ends in a sigmoid"
            )
        return scores[:, self._outputs]

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """All outputs, float32, of at most `batch` images, filled up so that each is computed in as large a batch."""
        squares = np.zeros((self.batch, self.size, self.size, 3), dtype=np.float32)
        squares[: len(pixels)] = pixels[..., ::-1]  # BGR, 0 to 255
        try:
            (scores,) = self._session.run(None, {self._session.get_inputs()[0].name: squares})
        except Exception as error:  # of a dozen classes that share no other base
            raise OnnxError(f"{self.path}: cannot be computed ({_line(error)})") from None
        return np.asarray(scores, dtype=np.float32)[: len(pixels)]

    def read(self, path: Path) -> np.ndarray:
        """The image at a path as a bicubic square on white, uint8 [side, side, 3] in RGB. Raises ImageError."""
        return np.asarray(images.square(images.decode(path), self.size, Image.Resampling.BICUBIC))


def read_tags(path: Path) -> tuple[dataset.TagTable, np.ndarray, int]:
    """`selected_tags.csv`: the tags, the outputs int64 [N] that give them, and how many outputs there are.

    Row i names output i; `count` is taken for the number of training images. Raises OnnxError.
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
            raise OnnxError(f"{path}: row {output + 1}: {name or 'no name'}: must be named, and occur once")
        seen[name] = category, count, output
    if not seen:
        raise OnnxError(f"{path}: names no tags")
    categories, counts, outputs = map(np.array, zip(*seen.values(), strict=True))
    return dataset.TagTable(list(seen), categories, counts, counts), outputs, len(rows)


def _open(path: Path, device: torch.device) -> Any:
    """A session of onnxruntime. Raises OnnxError."""
    try:
        import onnxruntime
    except ImportError:
        raise OnnxError(f"{path}: needs onnxruntime; pip install 'joytag[onnx]'") from None
    if not path.is_file():
        raise OnnxError(f"{path}: missing; a tagger of the WD layout holds {' and '.join(FILES)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, too
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
    except Exception as error:  # of a dozen classes that share no other base
        raise OnnxError(f"{path}: damaged, or not for onnxruntime ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

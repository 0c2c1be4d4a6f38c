"""`Tagger`: a model that turns images into tags."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from joytag.core import devices
from joytag.core.parallel import batches, read_ahead
from joytag.data import images, preprocessing
from joytag.data.tag_names import DEFAULT_THRESHOLD, canonical, describe_unknown
from joytag.models import checkpoint, inference, int8, matmul, release
from joytag.models.architectures import Model
from joytag.models.vit import ViT
from joytag.tagging import engines
from joytag.tagging.engines import Session

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
# Tokens (patches) in a batch. A CPU gains nothing from batches larger than its caches.
BATCH_TOKENS = {"cpu": 1_024, "mps": 8_192, "cuda": 32_768}
LARGEST = 8  # batches, as multiples of these; more gains nothing, and may need more memory than there is
MOST_WORKERS = 64


@dataclass(frozen=True)
class Result:
    """Tags and scores of an image.

    `tags` maps the tags above the threshold to their scores, best first. `scores` holds the scores of all tags,
    float32 [N] in [0, 1], in the order of `Tagger.tags`. If the image could not be used, `error` is the reason, and
    the other two are empty.
    """

    tags: dict[str, float] = field(default_factory=dict)
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    error: str = ""


class EvidenceError(ValueError):
    """Raised for a model whose logits are no sums over patches."""


class UnknownTag(ValueError):
    """Raised for a tag that a model does not have; the message names the nearest one."""


class Tagger:
    """A model with its tag names. Takes paths, encoded bytes, PIL images and arrays, uint8 [height, width, 3].

    tagger = Tagger.load("runs/openmoji/release")
    for tag, score in tagger("image.jpg").tags.items():
        print(tag, score)

    `tags` holds the tag names in the order of the scores. The model computes on `device` in `precision`: fp32, fp16,
    bf16 or int8.
    """

    def __init__(
        self, model: Model, tags: list[str], device: torch.device, precision: str, session: Session | None = None
    ) -> None:
        self.tags, self.device, self.precision, self._session = tags, device, precision, session
        self.size = model.config.image_size
        tokens = (self.size // model.config.patch_size) ** 2
        # Images computed at once. In int8 it is one: see `joytag.models.int8.quantize`.
        self.batch_size = 1 if precision == "int8" else max(1, BATCH_TOKENS[device.type] // tokens)
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()  # as the stem computes
        self._at_once = sys.maxsize
        self._dtype = torch.float32 if precision == "int8" else devices.pick_dtype(precision, device, int8.width(model))
        self._library = matmul.DEFAULT if session else matmul.prepare(self.model, device, self._dtype)

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], device: str = "auto", precision: str = "auto", engine: str = engines.TORCH
    ) -> Tagger:
        """Read a release directory, a checkpoint, a run's newest, or a model from the Hugging Face hub by its id.

        Precision `auto` is fp16 on CUDA and fp32 on MPS. On a CPU it is bf16 with AMX, else int8 with AVX2 if the
        model is large enough to gain from it, else fp32; another engine than torch prefers its own. For `engine` see
        `engines.pick_engine`. Raises ReleaseError or CheckpointError when there is no model or it is damaged,
        ValueError for a device, precision or engine that does not fit.
        """
        chosen, directory = devices.pick_device(device), checkpoint.locate(source)
        model, tags = release.load(directory)
        if precision == "auto" and engine in engines.ENGINES:
            precision = engines.ENGINES[engine].precisions[0]
        precision = pick_precision(precision, chosen, int8.width(model))
        session = engines.open_session(engines.pick_engine(engine, chosen, precision), model, directory, precision)
        return cls(int8.quantize(model) if precision == "int8" else model, tags, chosen, precision, session)

    def __str__(self) -> str:
        engine = "" if self._session is None else f" by {self._session.name}"
        return f"{self.precision} on {self.device}{engine}, batches of {self.batch_size}"

    def __call__(self, image: ImageSource, threshold: float | NDArray[np.float32] = DEFAULT_THRESHOLD) -> Result:
        """Tag one image. `threshold` is a number, or an array with one for each tag, [N].

        Raises ImageError when the image cannot be used.
        """
        return self.result(self.predict(prepare(image, self.size)[None])[0], threshold)

    def stream(
        self,
        sources: Iterable[ImageSource],
        threshold: float | NDArray[np.float32] = DEFAULT_THRESHOLD,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Generator[Result]:
        """Tag many images. Yields a result for each, in order; images that cannot be used have an `error`.

        `workers` threads read ahead. On a CPU each thread also computes, one batch at a time: that keeps the cores
        busier than sharing each matrix product. Batches are padded to `batch_size`, so that other images change an
        image's scores by rounding differences only; in int8, not at all. Neither number exceeds what the machine, or
        the number of images if it is known, can use.
        """
        size = self.batch_size if batch_size is None or self.precision == "int8" else batch_size
        size = min(size, LARGEST * self.batch_size, max(1, operator.length_hint(sources, size)))
        workers = min(workers, MOST_WORKERS) if workers else None
        if self.device.type != "cpu":
            workers = workers or max(1, min(16, os.cpu_count() or 1))
            for group in batches(read_ahead(self._read, sources, workers, 2 * max(size, workers)), size):
                yield from self._results(group, size, threshold)
            return

        def tag_batch(group: list[ImageSource]) -> list[Result]:
            return self._results([self._read(image) for image in group], size, threshold)

        threads = torch.get_num_threads()
        workers = workers or min(16, threads)
        limit_threads = partial(torch.set_num_threads, max(1, threads // workers))
        try:
            for results in read_ahead(tag_batch, batches(sources, size), workers, 2 * workers, limit_threads):
                yield from results
        finally:
            torch.set_num_threads(threads)

    @cached_property
    def _positions(self) -> dict[str, int]:
        own = {tag: position for position, tag in enumerate(self.tags)}
        return {canonical(tag): position for tag, position in own.items()} | own

    def position(self, tag: str) -> int:
        """Return the position of a tag, in any spelling, in `tags`. Raises UnknownTag."""
        found = self._positions.get(tag, self._positions.get(canonical(tag)))
        if found is None:
            raise UnknownTag(f"the model has no tag {describe_unknown([tag], self.tags) or tag}")
        return found

    @property
    def has_evidence(self) -> bool:
        """Whether `evidence` works with this model: its head must be linear over patches."""
        return isinstance(self.model, ViT)

    def evidence(self, image: ImageSource, tag: str | Sequence[str]) -> NDArray[np.float32]:
        """Return where an image speaks for a tag, and where against it, float32 [rows, columns].

        The numbers sum to the tag's logit exactly; its score is the sigmoid of the sum. Each is what one patch adds to
        the logit beyond the same patch of an empty image, and an equal share of the empty image's logit. The patches
        cover the white square on which the image is centred. For several tags the shape is [len(tag), rows, columns].
        Tags may have any spelling. torch computes the tokens in the tagger's precision, even if another engine computes
        the scores, and the head in float32. Raises EvidenceError for a backbone of timm, UnknownTag, and ImageError
        when the image cannot be used.
        """
        chosen = [self.position(name) for name in ([tag] if isinstance(tag, str) else tag)]
        maps = self._additions(prepare(image, self.size), chosen)
        empty = self._empty[chosen]
        maps += empty.mean(axis=(1, 2), keepdims=True) - empty
        return maps[0] if isinstance(tag, str) else maps

    def _additions(self, pixels: NDArray[np.uint8], tags: Sequence[int]) -> NDArray[np.float32]:
        """Return what each patch of an image, uint8 [3, S, S], adds to the logits, [len(tags), rows, columns]."""
        model = self.model
        if not isinstance(model, ViT):
            raise EvidenceError("evidence: not for a backbone of timm, whose head is not linear over patches")
        batch = torch.from_numpy(pixels[None]).to(self.device)
        with torch.no_grad(), inference.autocast(self.device, self._dtype):
            return model.evidence(preprocessing.normalize(batch), tags)[0].cpu().numpy()

    @cached_property
    def _empty(self) -> NDArray[np.float32]:
        return self._additions(np.full((3, self.size, self.size), 255, dtype=np.uint8), range(len(self.tags)))

    def _read(self, image: ImageSource) -> NDArray[np.uint8] | str:
        """Return the model's input, or the reason that there is none."""
        try:
            return prepare(image, self.size)
        except images.ImageError as error:
            return str(error)

    def _results(
        self, arrays: list[NDArray[np.uint8] | str], size: int, threshold: float | NDArray[np.float32]
    ) -> list[Result]:
        batch = np.zeros((size, 3, self.size, self.size), dtype=np.uint8)
        good = [array for array in arrays if not isinstance(array, str)]
        if good:
            batch[: len(good)] = good
        scores = iter(self.predict(batch) if good else ())
        return [
            Result(error=array) if isinstance(array, str) else self.result(next(scores), threshold) for array in arrays
        ]

    def predict(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores, float32 [B, N], of images, uint8 [B, 3, S, S].

        A batch that does not fit in memory is computed in parts, and so are all later ones. Raises ValueError when a
        single image does not fit, and when scores are not numbers.
        """
        scores = self._compute(batch) if self._session is None else self._session(batch)
        if np.isnan(scores).any():
            raise ValueError(
                f"the model's scores in {self.precision} are not numbers: its weights are damaged, or need fp32"
            )
        return scores

    def _compute(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        matmul.use(self._library)  # another model may use another
        while True:
            parts = torch.from_numpy(batch).split(min(self._at_once, len(batch)))
            try:
                logits = [inference.predict(self.model, part, self.device, self._dtype) for part in parts]
                return torch.cat([part.sigmoid().cpu() for part in logits]).numpy()
            except torch.OutOfMemoryError:
                if len(parts[0]) == 1:
                    raise ValueError(f"{self.device}: too little memory for a single image; use the cpu") from None
                self._at_once = len(parts[0]) // 2
                warnings.warn(
                    f"{self.device} is out of memory; computing {self._at_once} images at once from now on",
                    stacklevel=2,
                )

    def result(self, scores: NDArray[np.float32], threshold: float | NDArray[np.float32]) -> Result:
        """Return the result for the scores, float32 [N], of an image."""
        above = np.flatnonzero(scores > threshold)
        above = above[np.argsort(-scores[above], kind="stable")]
        return Result({self.tags[i]: float(scores[i]) for i in above}, scores)


def prepare(image: ImageSource, size: int) -> NDArray[np.uint8]:
    """Return the model's input for an image, uint8 [3, size, size], resized bicubically. Raises ImageError."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not image.size or image.ndim < 2 or image.shape[2:] not in ((), (3,), (4,)):
            described = f"array of {image.dtype} {image.shape}"
            raise images.ImageError(f"{described}: not uint8 [height, width, 3]", "not an image")
        pixels = image if image.shape[2:] == (3,) else np.asarray(_upright(Image.fromarray(image)))
    elif isinstance(image, Image.Image):
        if 0 in image.size:
            raise images.ImageError(f"PIL image of {image.width}x{image.height}: has no pixels", "not an image")
        pixels = np.asarray(_upright(image))
    elif isinstance(image, str | os.PathLike | bytes):
        pixels = images.decode_array(image)
    else:
        raise images.ImageError(f"{type(image).__name__}: not a path, bytes, PIL image or array", "not an image")
    squared = preprocessing.square_tensor(pixels, size, Image.Resampling.BICUBIC)
    return squared.permute(2, 0, 1).contiguous().numpy()


def _upright(image: Image.Image) -> Image.Image:
    try:
        return images.on_white(ImageOps.exif_transpose(image))
    except images.ImageError:
        raise
    except Exception as error:  # Pillow decodes only now, and raises errors of any type on damaged files
        raise images.ImageError(f"cannot be decoded ({type(error).__name__}: {error})", "damaged") from error


def pick_precision(precision: str, device: torch.device, width: int) -> str:
    """Return the precision to compute in; see `Tagger.load`. Raises ValueError when machine or model do not support it.

    `width` is the width of the model's quantizable layers, 0 without any.
    """
    if precision == "int8" and not width:
        raise ValueError("precision int8: not for a backbone of timm; use auto")
    if precision == "int8" and (device.type != "cpu" or not int8.supported()):
        raise ValueError(f"precision int8: needs an x86 CPU with AVX2, not {device}; use auto")
    if precision != "auto":
        return precision
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    if device.type == "cpu" and width >= devices.WIDE and int8.supported() and not devices.has_amx():
        return "int8"
    return names[devices.pick_dtype("auto", device, width)]

"""The only way of pixels into the project: bounded, safe decoding to squares on white."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # Pillow does everything that it does
    simplejpeg = None

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # Pillow's own limit stays on

# CLIP's channel statistics, which the released model was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag

# A copy is resized bicubically from an image at least this many times larger, which a cheaper filter made of the
# original. On JPEGs of 1,500 to 2,500 px the copies were 44 dB or more from those made at once with Lanczos' filter;
# storing them as JPEGs of quality 95 costs as much.
OVERSAMPLING = 1.25


class ImageError(ValueError):
    """An image that cannot be used. `kind` is the reason in a word or two, the same for all images alike."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reduced:
    """An image decoded at 1/1, 1/2, 1/4 or 1/8 of its size.

    `image` is upright RGB on white; `box` (left, upper, right, lower) is the part of it that the original covers,
    which ends within its last column and row where the original's sides are no multiples; `size` is the original's
    width and height.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether the image was decoded at its full size."""
        return self.image.size == self.size

    def fit(self, longest: int) -> Image.Image:
        """The image shrunk so that its longest side has at most `longest` pixels; never enlarged."""
        size = _fitting(self.size, longest)
        if self.image.size == size:
            return self.image
        return self.image.resize(size, Image.Resampling.BICUBIC, box=self.box, reducing_gap=OVERSAMPLING)


def decode(source: bytes | str | os.PathLike[str], *, still: bool = False, opaque: bool = False) -> Image.Image:
    """Decode a file's bytes, or the file at a path, to an upright RGB image on white.

    The EXIF orientation is applied; of an animation the first frame is taken, unless `still` refuses
    it; transparency is laid on white, unless `opaque` refuses it; 16-bit grey is scaled to 8 bits.
    Raises ImageError, starting with the path if there is one, when the file is missing, not in one
    of FORMATS, damaged, refused, or larger than MAX_PIXELS.
    """
    with _opened(source, still) as image:
        return _upright(image, opaque)


def decode_reduced(data: bytes, longest: int, *, still: bool = False, opaque: bool = False) -> Reduced:
    """Decode a file's bytes as `decode` does, but a JPEG at the smallest size that is good for a copy of `longest`.

    libjpeg skips the high frequencies that a copy would lose anyway, which halves the time or better;
    the whole file is read all the same, so that damage is found. Raises ImageError.
    """
    with _opened(data, still) as image:
        width, height = image.size
        if image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) == 1:
            scale = OVERSAMPLING * longest / max(image.size)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        divisor = round(width / image.width)
        upright = _upright(image, opaque)
        if divisor == 1:
            return Reduced(upright, (0, 0, *upright.size), upright.size)
        return Reduced(upright, (0, 0, width / divisor, height / divisor), (width, height))


@contextmanager
def _opened(source: bytes | str | os.PathLike[str], still: bool) -> Iterator[Image.Image]:
    """An opened image; whatever is wrong with it, then or when it is loaded, comes as an ImageError."""
    name = "" if isinstance(source, bytes) else f"{os.fspath(source)}: "
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if still and image.format != "MPO" and getattr(image, "is_animated", False):
                    raise ImageError("animated", "animated")
                yield image
    except ImageError as error:
        raise ImageError(f"{name}{error}", error.kind) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"{name}larger than {MAX_PIXELS} pixels", "too large") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}not an image in one of the formats {', '.join(FORMATS)}", "not an image") from None
    except FileNotFoundError:
        raise ImageError(f"{name}no such file", "missing") from None
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        raise ImageError(f"{name}cannot be decoded ({type(error).__name__}: {error})", "damaged") from error


def _upright(image: Image.Image, opaque: bool) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if opaque and is_transparent(image):
        raise ImageError("transparent", "transparent")
    return on_white(image)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets the background through."""
    return image.has_transparency_data and int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def on_white(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparency laid on white. Raises ImageError for floating-point pixels."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling
        grey = np.asarray(image, dtype=np.float64)
        grey = np.where(grey == image.info.get("transparency"), 65_535, grey)
        return Image.fromarray((grey / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("holds floating-point pixels, whose white is unknown", "floating-point")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Pad an RGB image to a centred white square, then resize it to `size` pixels a side.

    The recipe trains with bilinear resampling and tags with bicubic.
    """
    if max(image.size) ** 2 > MAX_PIXELS:  # a long strip, whose square would not fit into memory
        image = fit(image, math.isqrt(MAX_PIXELS))
    side = max(image.size)
    if image.size != (side, side):
        padded = Image.new("RGB", (side, side), WHITE)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = padded
    return image if side == size else image.resize((size, size), resample)


def fit(image: Image.Image, longest: int) -> Image.Image:
    """Shrink an image so that its longest side has at most `longest` pixels; never enlarge it."""
    return Reduced(image, (0, 0, *image.size), image.size).fit(longest)


def _fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(size)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def read_square(path: Path, size: int, out: Tensor | None = None) -> Tensor:
    """The image at a path as a bilinear square on white, uint8 [size, size, 3]; written to `out`, if it is given.

    As `decode` and `square` have it, to within two levels, but several times faster. A JPEG at least twice as large is
    decoded at 1/2, 1/4 or 1/8 of its size, which moves it by up to half an output pixel. Raises ImageError.
    """
    import torch

    pixels = _read_jpeg(path, size)
    if pixels is None:
        pixels = np.asarray(decode(path))
    if max(pixels.shape[:2]) ** 2 > MAX_PIXELS:
        pixels = np.asarray(square(Image.fromarray(pixels), size))
    out = torch.empty(size, size, 3, dtype=torch.uint8) if out is None else out
    _write_square(pixels, out)
    return out


def _write_square(pixels: np.ndarray, out: Tensor) -> None:
    """`square` in torch, uint8 [height, width, 3] to [size, size, 3]; most of the white is not resized.

    Stretches of `side / gcd(side, size)` pixels become `size / gcd(side, size)` whole ones, so the resizing may begin
    and end at any multiple of them. Two of white around the image are more than the filter sees.
    """
    import torch

    size, (height, width) = len(out), pixels.shape[:2]
    side, short, axis = max(height, width), min(height, width), int(height > width)
    stretches = math.gcd(side, size)
    length, before = side // stretches, (side - short) // 2
    first, last = max(0, before // length - 2), min(stretches, -(-(before + short) // length) + 2)
    shape = [side, side, 3]
    shape[axis] = (last - first) * length
    canvas = pixels
    if short < side or not pixels.flags.writeable:  # torch wants memory that may be written to
        canvas = np.full(shape, 255, dtype=np.uint8)
        canvas.swapaxes(0, axis)[before - first * length :][:short] = pixels.swapaxes(0, axis)
    image = torch.from_numpy(canvas)
    start, end = first * size // stretches, last * size // stretches
    if side != size:
        target = [size, size]
        target[axis] = end - start
        planes = image[None].permute(0, 3, 1, 2)
        image = torch.nn.functional.interpolate(planes, target, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    out.narrow(axis, 0, start).fill_(255)
    out.narrow(axis, start, end - start).copy_(image)
    out.narrow(axis, end, size - end).fill_(255)


def _read_jpeg(path: Path, size: int) -> np.ndarray | None:
    """A plain JPEG's pixels [height, width, 3], perhaps reduced; None for whatever needs Pillow or its messages."""
    if simplejpeg is None:
        return None
    try:
        data = path.read_bytes()
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if _may_be_turned(data) or colours in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
            return None
        divisor = next(d for d in (8, 4, 2, 1) if max(height, width) >= d * size or d == 1)
        return simplejpeg.decode_jpeg(data, min_height=-(-height // divisor), min_width=-(-width // divisor))
    except (OSError, ValueError):
        return None


def _may_be_turned(jpeg: bytes) -> bool:
    """Whether there is EXIF before the scan, or anything out of the ordinary; looks at the heads of segments alone."""
    place = 2
    while (marker := jpeg[place : place + 2]) != b"\xff\xda":  # start of scan
        if marker[:1] != b"\xff" or (marker == b"\xff\xe1" and jpeg[place + 4 : place + 8] == b"Exif"):
            return True
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return False


def to_array(image: Image.Image) -> np.ndarray:
    """An RGB image to uint8 [3, height, width]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(images: Tensor) -> Tensor:
    """uint8 [..., 3, height, width] to float32, scaled to [0, 1] and by CLIP's mean and deviation."""
    import torch  # here, since preparing data needs none of it, and its workers none of its memory

    constants = torch.tensor([MEAN, STD]).view(2, 3, 1, 1)
    mean, std = constants.to(images.device, non_blocking=True)  # made there, a GPU would be waited for
    return (images.float() / 255 - mean) / std


def find(path: Path, recursive: bool = True) -> list[Path]:
    """The images in a folder, and in those below it if `recursive`, sorted by path; or the file itself.

    What macOS leaves beside images (`._image.jpg`) is passed over.
    """
    if not path.is_dir():
        return [path]
    files = path.rglob("*") if recursive else path.iterdir()
    return sorted(p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith("._") and p.is_file())

"""The only way of pixels into the project: bounded, safe decoding to squares on white."""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # Pillow's own limit stays on

# CLIP's channel statistics, which the released model was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

WHITE = (255, 255, 255)


class ImageError(ValueError):
    """A picture that cannot be used, with the reason."""


def decode(source: bytes | str | os.PathLike[str], *, still: bool = False, opaque: bool = False) -> Image.Image:
    """Decode a file's bytes, or the file at a path, to an upright RGB picture on white.

    The EXIF orientation is applied; of an animation the first frame is taken, unless `still` refuses
    it; transparency is laid on white, unless `opaque` refuses it; 16-bit grey is scaled to 8 bits.
    Raises ImageError, starting with the path if there is one, when the file is missing, not in one
    of FORMATS, damaged, refused, or larger than MAX_PIXELS.
    """
    name = "" if isinstance(source, bytes) else f"{os.fspath(source)}: "
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if still and image.format != "MPO" and getattr(image, "is_animated", False):
                    raise ImageError("animated")
                image.load()
                picture = ImageOps.exif_transpose(image)
                if opaque and is_transparent(picture):
                    raise ImageError("transparent")
                return on_white(picture)
    except ImageError as error:
        raise ImageError(f"{name}{error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"{name}larger than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}not a picture in one of the formats {', '.join(FORMATS)}") from None
    except FileNotFoundError:
        raise ImageError(f"{name}no such file") from None
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        raise ImageError(f"{name}cannot be decoded ({type(error).__name__}: {error})") from error


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
        raise ImageError("holds floating-point pixels, whose white is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Pad an RGB picture to a centred white square, then resize it to `size` pixels a side.

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
    """Shrink a picture so that its longest side has at most `longest` pixels; never enlarge it."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> np.ndarray:
    """An RGB picture to uint8 [3, height, width]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(images: Tensor) -> Tensor:
    """uint8 [..., 3, height, width] to float32, scaled to [0, 1] and by CLIP's mean and deviation."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def find(path: Path, recursive: bool = True) -> list[Path]:
    """The pictures in a folder, and in those below it if `recursive`, sorted by path; or the file itself.

    What macOS leaves beside pictures (`._picture.jpg`) is passed over.
    """
    if not path.is_dir():
        return [path]
    files = path.rglob("*") if recursive else path.iterdir()
    return sorted(p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith("._") and p.is_file())

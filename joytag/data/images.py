"""Safe, bounded decoding of image files to RGB on white; all pixels enter the project here."""

from __future__ import annotations

import io
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

try:
    import simplejpeg
except ImportError:  # Pillow can do the same, more slowly
    simplejpeg = None
try:
    import pillow_heif
except ImportError:  # an extra
    pillow_heif = None

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
if pillow_heif is not None:
    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
    SUFFIXES += HEIF_SUFFIXES
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # Pillow's own limit stays on
MAX_BYTES = 1 << 30  # of a file; in one of MAX_PIXELS the pixels themselves take less

# Pillow warns of metadata, which is ignored, and of large images, which `_opened` refuses. One filter for the process:
# `warnings.catch_warnings` in the threads that decode would drop the warnings of others.
warnings.filterwarnings("ignore", module=r"PIL\.")

WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSITIONS = {orientation: Image.Transpose(method) for orientation, method in enumerate((0, 3, 1, 5, 4, 6, 2), 2)}
HALVED = 50_000_000  # pixels; larger images are halved while they are decoded, which keeps them below 1 GB of memory
_BAND = 1 << 22  # pixels that are converted to RGB at once

# A cheap filter first reduces the original to an image at least this many times larger than the copy, from which
# bicubic resampling creates the copy. On JPEGs of 1,500 to 2,500 px the result differs by 44 dB or more from direct
# Lanczos resampling, no more than JPEG compression at quality 95 changes it.
OVERSAMPLING = 1.25


class ImageError(ValueError):
    """An image that cannot be used. `kind` is the reason in a word or two, without details of this image."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reduced:
    """An image decoded at 1/1, 1/2, 1/4 or 1/8 of its size.

    `image` is upright RGB on white. `box` (left, upper, right, lower, pixels of `image`) is the area that the original
    covers: it ends inside the last column and row when the original's sides are not multiples of the reduction. `size`
    is the original's width and height.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether the image was decoded at its full size."""
        return self.image.size == self.size

    def fit(self, longest: int) -> Image.Image:
        """Return the image, shrunk if its longest side has more than `longest` pixels."""
        size = _fitting(self.size, longest)
        if self.image.size == size:
            return self.image
        return self.image.resize(size, Image.Resampling.BICUBIC, box=self.box, reducing_gap=OVERSAMPLING)


def decode(source: bytes | str | os.PathLike[str], *, still: bool = False, opaque: bool = False) -> Image.Image:
    """Decode a file's bytes, or the file at a path, to an upright RGB image on white.

    Applies the EXIF orientation, composites transparency onto white, scales 16-bit grey to 8 bits, and uses the first
    frame of an animation. Raises ImageError, beginning with the path if there is one, when the file is missing, not in
    one of FORMATS, damaged, or larger than MAX_PIXELS; also for an animation if `still`, and for transparency if
    `opaque`. An image of more than HALVED pixels is returned at half its size. Broken metadata is ignored.
    """
    with _opened(source, still) as image:
        return _upright(image, opaque)


def decode_array(source: bytes | str | os.PathLike[str], at_least: int | None = None) -> NDArray[np.uint8]:
    """Return the pixels of `decode`, uint8 [height, width, 3], those of most JPEGs a quarter faster.

    With `at_least`, a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8 of its size. Raises ImageError.
    """
    pixels = _decode_jpeg(source, at_least)
    return np.asarray(decode(source)) if pixels is None else pixels


def decode_reduced(data: bytes, longest: int, *, still: bool = False, opaque: bool = False) -> Reduced:
    """Decode a file's bytes as `decode` does, but a JPEG at the smallest size that suffices for a copy of `longest`.

    libjpeg then skips the high frequencies that the copy would lose, in half the time or less. It still reads the
    whole file, so damage is found. Raises ImageError.
    """
    with _opened(data, still) as image:
        orientation = _read_orientation(image)
        width, height = image.size
        if image.format == "JPEG" and orientation == 1:
            scale = OVERSAMPLING * longest / max(image.size)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        upright = _upright(image, opaque)
        divisor = round(max(width, height) / max(upright.size))
        if orientation > 4:
            width, height = height, width
        if divisor == 1:
            return Reduced(upright, (0, 0, *upright.size), upright.size)
        return Reduced(upright, (0, 0, width / divisor, height / divisor), (width, height))


@contextmanager
def _opened(source: bytes | str | os.PathLike[str], still: bool) -> Iterator[Image.Image]:
    """Open an image; errors, also those of the `with` block, become ImageError."""
    name = "" if isinstance(source, bytes) else f"{os.fspath(source)}: "
    try:
        with _open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            # Further images of the formats left out are other views and pages, not frames.
            if still and image.format not in ("MPO", "HEIF", "TIFF") and getattr(image, "is_animated", False):
                raise ImageError("animated", "animated")
            if isinstance(image, PngImageFile):  # before its pixels are read, which reading its EXIF does
                _scale_transparent_colour(image)
            yield image
    except ImageError as error:
        raise ImageError(f"{name}{error}", error.kind) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}larger than {MAX_PIXELS} pixels", "too large") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}not an image in one of the formats {', '.join(FORMATS)}", "not an image") from None
    except FileNotFoundError:
        raise ImageError(f"{name}no such file", "missing") from None
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        raise ImageError(f"{name}cannot be decoded ({type(error).__name__}: {error})", "damaged") from error


def _open(source: bytes | str | os.PathLike[str]) -> Image.Image:
    """Open an image; a PNG or a JPEG whose metadata Pillow refuses is opened without them."""
    if not isinstance(source, bytes) and Path(source).stat().st_size > MAX_BYTES:  # which Pillow might read to its end
        raise ImageError(f"larger than {MAX_BYTES >> 30} GB", "too large")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return Image.open(file, formats=FORMATS)
    except (ValueError, SyntaxError, UnidentifiedImageError):
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if data.startswith(_PNG):
            return Image.open(io.BytesIO(_pixels_of_png(data)), formats=["PNG"])
        if data.startswith(_JPEG):
            return Image.open(io.BytesIO(_pixels_of_jpeg(data)), formats=["JPEG"])
        raise


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # those that pixels and orientation depend on


def _pixels_of_png(data: bytes) -> bytes:
    """Return a PNG without its metadata, but with its orientation if that chunk is sound."""
    kept, offset = [_PNG], len(_PNG)
    while offset < len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4])
        kind, checksum = data[offset + 4 : offset + 8], data[end - 4 : end]
        is_sound = kind != b"eXIf" or zlib.crc32(data[offset + 4 : end - 4]) == int.from_bytes(checksum)
        if kind in _PNG_CHUNKS and is_sound:
            kept.append(data[offset:end])
        offset = end
    return b"".join(kept)


_JPEG = b"\xff\xd8\xff"
_APPLICATION = range(0xE0, 0xF0)  # markers of metadata


def _pixels_of_jpeg(data: bytes) -> bytes:
    """Return a JPEG without its metadata, but with its EXIF and the colours that a sound Adobe segment names."""
    kept, offset = [data[:2]], 2
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] not in (0xDA, 0xFF):  # pixels, padding
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4])
        marker, content = data[offset + 1], data[offset + 4 : end]
        is_adobe = marker == 0xEE and len(content) >= 12
        if marker not in _APPLICATION or is_adobe or content.startswith(b"Exif\0"):
            kept.append(data[offset:end])
        offset = end
    return b"".join([*kept, data[offset:]])


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, in which the pixels lie; 1 where there is none or it cannot be read."""
    # A PNG's EXIF may follow its pixels, whose damage must not be ignored below; a TIFF is turned upright as it loads.
    if isinstance(image, PngImageFile | TiffImageFile):
        image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises errors of any type on broken EXIF, which says nothing about the pixels
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _upright(image: Image.Image, opaque: bool) -> Image.Image:
    orientation = _read_orientation(image)
    factor = 2 if image.width * image.height > HALVED else 1
    if factor == 2 and image.format == "JPEG":
        image.draft(None, (image.width // 2, image.height // 2))
        factor = 1
    image.load()
    if opaque and is_transparent(image):
        raise ImageError("transparent", "transparent")
    if factor > 1 or (image.mode != "RGB" and image.width * image.height > _BAND):
        rows = max(1, _BAND // image.width // factor) * factor
        result = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
        for top in range(0, image.height, rows):
            band = on_white(image.crop((0, top, image.width, min(top + rows, image.height))))
            result.paste(band.reduce(factor), (0, top // factor))
    else:
        result = on_white(image)
    return result.transpose(_TRANSPOSITIONS[orientation]) if orientation > 1 else result


def _scale_transparent_colour(image: PngImageFile) -> None:
    """Convert a PNG's transparent colour to 8 bits, as Pillow converts the pixels but not this colour."""
    colour, raw_mode = image.info.get("transparency"), next((tile.args for tile in image.tile), None)
    levels = {"1": 255, "L;2": 85, "L;4": 17}.get(str(raw_mode))
    if levels and isinstance(colour, int):
        image.info["transparency"] = colour * levels
    elif raw_mode == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if not image.has_transparency_data:
        return False
    alpha = (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A")
    return alpha.getextrema() != (255, 255)


def on_white(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with transparency on white. Raises ImageError for floating-point pixels."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow clips instead of scaling
        grey = np.asarray(image, dtype=np.float64)
        grey = np.where(grey == image.info.get("transparency"), 65_535, grey)
        return Image.fromarray((grey / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("holds floating-point pixels, whose range is unknown", "floating-point")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(image: Image.Image, longest: int) -> Image.Image:
    """Shrink an image if its longest side has more than `longest` pixels."""
    return Reduced(image, (0, 0, *image.size), image.size).fit(longest)


def _fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(size)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _decode_jpeg(source: bytes | str | os.PathLike[str], at_least: int | None) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG to uint8 [height, width, 3]; None for what needs Pillow: other images, and errors."""
    if simplejpeg is None:
        return None
    try:
        data = source if isinstance(source, bytes) else _read_if_jpeg(source)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if _may_be_rotated(data) or colours in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
            return None
        divisor = next(d for d in (8, 4, 2, 1) if d == 1 or (at_least and max(height, width) >= d * at_least))
        if divisor == 1 and height * width > HALVED:
            return None
        return simplejpeg.decode_jpeg(data, min_height=-(-height // divisor), min_width=-(-width // divisor))
    except (OSError, ValueError, MemoryError):
        return None


def _read_if_jpeg(path: str | os.PathLike[str]) -> bytes:
    with Path(path).open("rb") as file:
        start = file.read(len(_JPEG))
        return start + file.read() if start == _JPEG and os.fstat(file.fileno()).st_size <= MAX_BYTES else start


def _may_be_rotated(jpeg: bytes) -> bool:
    """Whether a JPEG has EXIF or an orientation in XMP before its scan, or an invalid segment."""
    offset = 2
    while (marker := jpeg[offset : offset + 2]) != b"\xff\xda":  # start of scan
        end = offset + 2 + int.from_bytes(jpeg[offset + 2 : offset + 4])
        content = jpeg[offset + 4 : end] if marker == b"\xff\xe1" else b""
        if marker[:1] != b"\xff" or content.startswith(b"Exif") or b"tiff:Orientation" in content:
            return True
        offset = end
    return False

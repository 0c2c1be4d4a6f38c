"""Images of the synthetic mirror: plain ones, copies, near-copies, faults and unusual formats."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import imagehash
import numpy as np
from PIL import Image

PLAIN = "plain"


class Variant(NamedTuple):
    """A file that is not a plain PNG: `verdict` is the scan's reason to refuse it, None if it is usable.

    `encode` gets the post's image and id. The id also chooses one of the `extensions`.
    """

    verdict: str | None
    extensions: tuple[str, ...]
    encode: Callable[[Image.Image, int], bytes]


class File(NamedTuple):
    """The bytes of a post's file, its extension, and its kind: PLAIN or a key of the tables below."""

    data: bytes
    extension: str
    kind: str


def drawing(seed: int) -> Image.Image:
    """Draw coarse coloured blots, 96 to 159 pixels a side, different for each seed."""
    rng = np.random.default_rng((seed, 1))
    blots = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return blots.resize((int(rng.integers(96, 160)), int(rng.integers(96, 160))), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    return encode(image, "JPEG", quality=90)


def _animated(image: Image.Image, post_id: int) -> bytes:
    return encode(image, "GIF", save_all=True, append_images=[drawing(post_id + 1)])


def _with_alpha(image: Image.Image, alpha: int) -> bytes:
    image = image.copy()
    image.putalpha(alpha)
    return encode(image)


def _wide_grey(image: Image.Image) -> bytes:
    return encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))


def _flat(post_id: int) -> bytes:
    return encode(Image.new("RGB", (64, 64 + post_id % 99), (post_id % 256, post_id // 256 % 256, 90)))


def _bomb(side: int, post_id: int) -> bytes:
    """Return a small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"tEXt", b"id\0%d" % post_id) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


LEFTOVERS = ("swf", "zip", "mp4", "webm", "html", "psd")
FAULTS = {
    "truncated": Variant("damaged", ("jpg",), lambda image, _: encode(image, "JPEG")[:-900]),
    "empty": Variant("not an image", ("jpg",), lambda _, __: b""),
    "html": Variant("not an image", ("jpg",), lambda _, post_id: b"<html>404</html>%d" % post_id),
    "leftover": Variant("not an image", LEFTOVERS, lambda _, post_id: b"8BPS%d" % post_id),
    "moving": Variant("animated", ("gif",), _animated),
    "transparent": Variant("transparent", ("png",), lambda image, post_id: _with_alpha(image, post_id % 200)),
    "bomb": Variant("too large", ("png",), lambda _, post_id: _bomb(40_000, post_id)),
    "tiny": Variant("too small", ("png",), lambda image, _: encode(image.resize((8, 8)))),
    "floating-point": Variant("floating-point", ("tif",), lambda image, _: encode(image.convert("F"), "TIFF")),
    "wrong md5": Variant("md5 differs from the metadata", ("png",), lambda image, _: encode(image)),
    "missing": Variant("missing", ("png",), lambda image, _: encode(image)),
}
UNUSUAL = {
    "misnamed": Variant(None, ("jpg",), lambda image, _: encode(image)),
    "cmyk": Variant(None, ("jpg",), lambda image, _: _jpeg(image.convert("CMYK"))),
    "16-bit": Variant(None, ("png",), lambda image, _: _wide_grey(image)),
    "grey": Variant(None, ("jpg",), lambda image, _: _jpeg(image.convert("L"))),
    "palette": Variant(None, ("png",), lambda image, _: encode(image.quantize(64))),
    "opaque alpha": Variant(None, ("png",), lambda image, _: _with_alpha(image, 255)),
    "still gif": Variant(None, ("gif",), lambda image, _: encode(image, "GIF")),
    "flat": Variant(None, ("png",), lambda _, post_id: _flat(post_id)),
}
VARIANTS = FAULTS | UNUSUAL
# Copies and near-copies of another post's image, and the number of posts in a thousand that have them.
COPIES = {"same file": 8, "recompressed": 8, "resized": 8, "turned by EXIF": 2}
NEAR_COPIES = {"recoloured": 6, "retouched": 4}


def file_of(kind: str, post_id: int, original: int | None) -> File:
    """Return a post's file; `original` is the id of the post that a copy or near-copy is derived from.

    The file is a plain image if the pHash of a copy or near-copy is not as it should be.
    """
    image = drawing(post_id)
    if kind in VARIANTS:
        variant = VARIANTS[kind]
        return File(variant.encode(image, post_id), variant.extensions[post_id % len(variant.extensions)], kind)
    derived = None if original is None else _derived(kind, original)
    return derived or File(encode(image), "png", PLAIN)


def _derived(kind: str, original: int) -> File | None:
    """Return a copy or near-copy of a post's image, or None if its pHash is not as it should be."""
    image = drawing(original)
    if kind == "same file":
        return File(encode(image), "png", kind)
    if kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        return File(encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif), "png", kind)
    for attempt in range(8):
        changed, options = _changed(kind, image, attempt)
        data = encode(changed, **options)
        bits = int(imagehash.phash(Image.open(io.BytesIO(data)).convert("RGB")) - imagehash.phash(image))
        if (1 <= bits <= 3) if kind == "retouched" else bits == 0:
            return File(data, "jpg" if options else "png", kind)
    return None


def _changed(kind: str, image: Image.Image, attempt: int) -> tuple[Image.Image, dict[str, Any]]:
    """Change an image, a little differently at each attempt; return it with options for Pillow."""
    if kind == "recompressed":
        return image, {"kind": "JPEG", "quality": 88 + attempt, "subsampling": 0}
    if kind == "resized":
        share = 0.7 + attempt / 30
        return image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.LANCZOS), {}
    if kind == "recoloured":  # paler, with other colours but the same structure
        y, cb, cr = image.convert("YCbCr").split()
        tint = [channel.point(lambda v: v // 2 + 32 + 8 * attempt) for channel in (cr, cb)]
        return Image.merge("YCbCr", [y.point(lambda v: v // 2 + 64), *tint]).convert("RGB"), {}
    # A faint wave changes a few bits of the pHash and hardly any colour.
    wave = np.cos(np.pi * (1 + attempt % 4) * np.arange(image.height) / image.height) * (2 + attempt // 4)
    return Image.fromarray((np.asarray(image) + wave[:, None, None]).clip(0, 255).astype(np.uint8)), {}

"""Small images, and their files."""

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def image(width: int, height: int) -> Image.Image:
    """A smooth image with an edge."""
    coarse = Image.fromarray(np.random.default_rng(width).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    result = coarse.resize((width, height), Image.Resampling.BICUBIC)
    result.paste((200, 30, 30), (width // 3, height // 4, width // 2, height // 2))
    return result

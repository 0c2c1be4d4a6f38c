"""Small images and mirrors for the tests of data preparation."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def random_image(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """A smooth random image; each seed has its own pHash."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_mirror(folder: Path, **tables: Sequence[dict | str]) -> Path:
    """Write a mirror's metadata; `posts`, `tags`, `tag_aliases` and `tag_implications` are rows or lines."""
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    for name in ("posts", "tags", "tag_aliases", "tag_implications"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in tables.get(name, [])]
        (folder / "metadata" / f"{name}000000000000.json").write_text("".join(f"{line}\n" for line in lines))
    return folder


def relation(antecedent: str, consequent: str, status: str = "active") -> dict[str, str]:
    return {"antecedent_name": antecedent, "consequent_name": consequent, "status": status}

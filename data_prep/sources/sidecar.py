"""Images with `.txt` sidecars, as TagGUI and sd-scripts write them, to posts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data_prep.sources import posts
from data_prep.sources.posts import Post
from joytag.data import images

MAX_SIDECAR = 1 << 20  # bytes
PART = 4096  # images that are read at once


class Part(NamedTuple):
    """Images below a folder, as paths relative to it."""

    folder: Path
    images: list[str]


def parts(folder: Path) -> list[Part]:
    """The images below a folder, cut up. Raises ValueError when there are none with a sidecar."""
    found = images.find(folder)
    if not any(path.with_suffix(".txt").is_file() for path in found):
        raise ValueError(f"{folder}: no images with .txt sidecars here")
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [Part(folder, names[start : start + PART]) for start in range(0, len(names), PART)]


def inputs(folder: Path) -> list[Path]:
    """The images and sidecars."""
    found = images.find(folder)
    return found + [text for path in found if (text := path.with_suffix(".txt")).is_file()]


def read(part: Part) -> pa.Table:
    """The posts of a part. A post's id is derived from its path below the folder, so that it survives additions."""
    root = part.folder.resolve()
    return posts.table(_post(part.folder, root, name) for name in part.images)


def _post(folder: Path, root: Path, name: str) -> Post:
    if not name.isprintable():
        return Post(path=ascii(name)[1:-1], reason="bad name", detail="rename the file")
    refused = Post(posts.path_id(name), name)
    image, text = folder / name, (folder / name).with_suffix(".txt")
    if not text.is_file():
        return refused._replace(reason="without sidecar")
    if not all(path.resolve().is_relative_to(root) for path in (image, text)):
        return refused._replace(reason="link out of the folder")
    if text.stat().st_size > MAX_SIDECAR:
        return refused._replace(reason="bad sidecar", detail=f"more than {MAX_SIDECAR} bytes")
    try:
        return refused._replace(tags=" ".join(posts.split(text.read_text(encoding="utf-8-sig"))))
    except UnicodeDecodeError:
        return refused._replace(reason="bad sidecar", detail="not UTF-8")
    except OSError as error:
        return refused._replace(reason="bad sidecar", detail=error.strerror)

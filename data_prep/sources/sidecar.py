"""A folder of images with `.txt` sidecars, as TagGUI and sd-scripts write them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data_prep.sources import posts
from data_prep.sources.posts import Post
from joytag.data.images import find

SUFFIX = ".txt"
MAX_SIDECAR = 1 << 20  # bytes
PART = 4096  # images of a part


class Part(NamedTuple):
    """Images below a folder, as paths relative to it."""

    folder: Path
    images: list[str]


def parts(folder: Path, images: str) -> list[Part]:
    """Divide the images below a folder. Raises ValueError when no image has a sidecar."""
    files = find(folder)
    if not any(file.with_suffix(SUFFIX).is_file() for file in files):
        raise ValueError(f"{folder}: no images with {SUFFIX} sidecars here")
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    return [Part(folder, names[start : start + PART]) for start in range(0, len(names), PART)]


def inputs(folder: Path) -> list[Path]:
    """Return the images, then the sidecars."""
    files = find(folder)
    return files + [text for file in files if (text := file.with_suffix(SUFFIX)).is_file()]


def read(part: Part) -> pa.Table:
    """Read the posts of a part. A post's id is derived from its path, so it does not change when images are added."""
    root = part.folder.resolve()
    return posts.table(_post(part.folder, root, name) for name in part.images)


def _post(folder: Path, root: Path, name: str) -> Post:
    if not name.isprintable():
        return Post(path=ascii(name)[1:-1], reason="bad name", detail="rename the file")
    post = Post(posts.path_id(name), name)
    image, text = folder / name, (folder / name).with_suffix(SUFFIX)
    if not text.is_file():
        return post._replace(reason="without sidecar")
    if not all(path.resolve().is_relative_to(root) for path in (image, text)):
        return post._replace(reason="link out of the folder")
    if text.stat().st_size > MAX_SIDECAR:
        return post._replace(reason="bad sidecar", detail=f"more than {MAX_SIDECAR} bytes")
    try:
        return post._replace(tags=" ".join(posts.split(text.read_text(encoding="utf-8-sig"))))
    except UnicodeDecodeError:
        return post._replace(reason="bad sidecar", detail="not UTF-8")
    except OSError as error:
        return post._replace(reason="bad sidecar", detail=error.strerror)

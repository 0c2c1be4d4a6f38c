"""Pictures with `.txt` sidecars, as TagGUI and sd-scripts write them, to posts."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import duckdb
import pyarrow as pa

from joytag import image


def read_posts(db: duckdb.DuckDBPyConnection, folder: Path, source: int) -> None:
    """Append the pictures below `folder` that have a sidecar to table `posts`.

    A post's id is derived from its path below the folder, so that it survives additions. Raises
    ValueError naming the folder when nothing is found, or the sidecar when it is not UTF-8.
    """
    pictures = [p for p in image.find(folder) if p.with_suffix(".txt").is_file()] if folder.is_dir() else []
    if not pictures:
        raise ValueError(f"{folder}: no pictures with .txt sidecars here")
    rows = pa.table(
        {
            "source": pa.array([source] * len(pictures), pa.int16()),
            "post_id": pa.array([path_id(p.relative_to(folder)) for p in pictures], pa.int64()),
            "path": [str(p) for p in pictures],
            "md5": pa.array([None] * len(pictures), pa.string()),
            "tags": pa.array([read_tags(p.with_suffix(".txt")) for p in pictures], pa.list_(pa.string())),
        }
    )
    db.execute("INSERT INTO posts SELECT * FROM rows ORDER BY post_id")
    del rows  # DuckDB read it by this name


def path_id(path: Path) -> int:
    """A stable non-negative 63-bit id of a relative path."""
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8], "big") >> 1


def read_tags(path: Path) -> list[str]:
    """The tags of a sidecar, separated by commas or newlines, with underscores for spaces and plain parentheses."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    text = re.sub(r"\\([()])", r"\1", text)  # as prompts escape them
    names = (re.sub(r"\s+", "_", name.strip().lower()) for name in re.split(r"[,\n]", text))
    return list(dict.fromkeys(name for name in names if name))

"""Files of JSON lines: one object a line, appended one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from joytag.core.files import naming, sync


def read(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, [] when the file does not exist.

    Lines that hold no JSON object are skipped: a process that is killed while it writes leaves an incomplete line.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append(path: Path, *rows: Mapping[str, Any], durable: bool = False) -> None:
    """Append objects, on lines of their own even when the line before is incomplete; all of them or, on failure, none.

    `durable`: they are on the disk when this returns. Raises OSError naming `path`.
    """
    is_new = durable and not path.exists()
    with naming(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        separator = "" if file.read(1) in (b"", b"\n") else "\n"
        content = "".join([separator, *(f"{json.dumps(row)}\n" for row in rows)]).encode()
        try:
            while content:
                content = content[file.write(content) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
    if is_new:
        sync(path.parent)

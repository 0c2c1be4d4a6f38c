"""Files of JSON lines: one object a line, appended one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joytag.core.files import naming


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


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append an object, on a line of its own even when the line before is incomplete. Raises OSError naming `path`."""
    with naming(path), path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        separator = "" if file.read(1) in (b"", b"\n") else "\n"
        file.write(f"{separator}{json.dumps(row)}\n".encode())

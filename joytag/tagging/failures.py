"""`failed.jsonl`: the images of a folder that could not be tagged, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from joytag.core import files
from joytag.core.lock import InUse, sole_editor
from joytag.tagging.table import relative_name

FILE = "failed.jsonl"
KEYS = {"file_name", "reason"}


def write(folder: Path, paths: Iterable[Path], failed: dict[Path, str]) -> bool:
    """Write those of `paths` that could not be used; return whether that was possible.

    Earlier rows about other images stay, but those about images that no longer exist are dropped. Without rows there
    is no file. A file of that name from another program is never changed.
    """
    path = folder / FILE
    try:
        if not failed and not path.exists():
            return True
        with sole_editor(path):
            earlier = _read(path)
            processed = {relative_name(image, folder) for image in paths}
            kept = {n: r for n, r in earlier.items() if n not in processed and (folder / n).exists()}
            rows = kept | {relative_name(image, folder): reason for image, reason in failed.items()}
            lines = [json.dumps({"file_name": name, "reason": reason}) + "\n" for name, reason in rows.items()]
            if lines:
                files.write_text(path, "".join(lines))
            else:
                path.unlink(missing_ok=True)
    except (OSError, InUse, _Foreign):
        return False
    return True


class _Foreign(ValueError):
    """Raised for a file that another program wrote."""


def _read(path: Path) -> dict[str, str]:
    """Return the reason of each file name, {} when there is no file. Raises _Foreign."""
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not rows or any(row.keys() != KEYS for row in rows):
            raise _Foreign
        return {str(row["file_name"]): str(row["reason"]) for row in rows}
    except (AttributeError, ValueError, RecursionError):
        raise _Foreign from None

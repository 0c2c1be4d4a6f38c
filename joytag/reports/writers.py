"""JSON and CSV files, in which undefined metrics are null and empty cells."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from joytag.core.files import write_text
from joytag.core.settings import Settings


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON: a dataclass or settings as fields by name, an array as a list, a path as text.

    NaN is null.
    """
    write_text(path, json.dumps(_to_json(value), indent=2, allow_nan=False) + "\n")


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV with a header; null is an empty cell."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer, pyarrow.csv.WriteOptions(quoting_style="needed"))
    write_text(path, buffer.getvalue().decode())

"""Parquet tables of a given schema, checked when read and written atomically."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from joytag.core import files


class TableError(ValueError):
    """A parquet file that is missing, damaged or of another schema; one line with the file and the column."""


def read_table(path: Path, schema: pa.Schema, optional: Sequence[pa.Field] = ()) -> pa.Table:
    """Read the columns of a schema, and those of the `optional` ones that the file has; it may have others.

    Raises TableError when the file cannot be read, or when a column is missing, holds nulls or is of another type.
    """
    try:
        with pa.OSFile(str(path)) as source, pq.ParquetFile(source) as file:  # closed even if it cannot be parsed
            names = file.schema_arrow.names
            for column in optional:
                schema = schema.append(column) if column.name in names else schema
            table = file.read([name for name in schema.names if name in names])
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read ({error})") from None
    for name in schema.names:
        if name not in table.column_names:
            raise TableError(f"{path}: {name}: column missing")
        if table.column(name).null_count:
            raise TableError(f"{path}: {name}: holds nulls")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise TableError(f"{path}: {error}") from None


def write_table(tables: pa.Table | Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write a parquet file of exactly this schema, one row group for each table."""
    with files.replacing(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in [tables] if isinstance(tables, pa.Table) else tables:
            writer.write_table(table.select(schema.names).cast(schema), max(1, len(table)))

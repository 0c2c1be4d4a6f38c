"""Parquet tables, checked when read and written completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(tables: pa.Table | Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write a parquet file of exactly this schema, one row group a table, so that it is seen whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in [tables] if isinstance(tables, pa.Table) else tables:
                writer.write_table(table.select(schema.names).cast(schema), max(1, len(table)))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

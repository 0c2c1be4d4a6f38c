"""Tiny datasets of coloured noise, in the real format."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from joytag.data import dataset, tables

N_TAGS = 6


def add_originals(directory: Path, split: str) -> list[str]:
    """Record an original file of each image of a split, and return them by row."""
    path = directory / f"{split}.parquet"
    table = pq.read_table(path)
    names = [f"originals/{row}.png" for row in range(len(table))]
    tables.write_table(table.append_column(dataset.PATH, [names]), table.schema.append(dataset.PATH), path)
    return names


def make_dataset(directory: Path, splits: dict[str, int]) -> Path:
    """Write a dataset; `splits` are the numbers of images by split."""
    rng = np.random.default_rng(0)
    counts = {}
    for split, images in splits.items():
        rows = []
        for number in range(images):
            tags = np.flatnonzero(rng.random(N_TAGS) < 0.4)
            colour = rng.integers(0, 255, 3)
            noise = (colour + rng.normal(0, 20, (20 + number % 3, 24, 3))).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(noise).save(buffer, "JPEG", quality=95)
            sha256 = hashlib.sha256(buffer.getvalue()).digest()
            path = dataset.image_path(directory, sha256, "jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            rows.append((number, tags.tolist(), sha256, number % 2, number))
        columns = dict(zip(dataset.POSTS_SCHEMA.names, zip(*rows, strict=True), strict=True))
        table = pa.table({name: list(values) for name, values in columns.items()})
        tables.write_table(table, dataset.POSTS_SCHEMA, directory / f"{split}.parquet")
        counts[split] = np.bincount([t for row in rows for t in row[1]], minlength=N_TAGS)
    tags_table = {
        "index": list(range(N_TAGS)),
        "name": [f"tag_{i}" for i in range(N_TAGS)],
        "category": [0] * N_TAGS,
        "count": counts["train"] + counts["validation"],
        "count_train": counts["train"],
        "count_validation": counts["validation"],
        "count_by_source": [[0, 0]] * N_TAGS,
    }
    tables.write_table(pa.table(tags_table), dataset.TAGS_SCHEMA, directory / "tags.parquet")
    dataset.write_description(directory, {"sources": ["drawn", "photo"], "extension": "jpg"})
    return directory

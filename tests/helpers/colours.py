"""Images of one colour each and tags for it, which a model learns in a second."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from mirror import encode
from PIL import Image

from joytag.data import preprocessing
from joytag.data.dataset import POSTS_SCHEMA, SPLITS, TAGS_SCHEMA, Dataset, image_path, write_description
from joytag.data.tables import write_table
from joytag.models import release
from joytag.models.vit import ViT, ViTConfig

NAMES = ["red", "green", "blue", "light", "reddish_(hue)"]
SIZE = 16


def write_dataset(directory: Path, images_per_split: int = 192, names: list[str] = NAMES, first_id: int = 0) -> Path:
    """Write a dataset directory with the same number of images in both splits; a tenth of the labels are wrong."""
    counts = {}
    for split in SPLITS:
        rng = np.random.default_rng((split == "train", 7))
        rows = []
        for number in range(images_per_split):
            colour = rng.integers(0, 256, 3)
            data = encode(Image.new("RGB", (16 + number % 5, 22), tuple(colour.tolist())))
            sha256 = hashlib.sha256(data + bytes([number % 256, number // 256])).digest()
            path = image_path(directory, sha256, "png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            labels = np.array([*(colour > 150), colour.sum() > 420, colour[0] > colour[1:].max() + 60])
            labels ^= rng.random(len(NAMES)) < 0.1
            rows.append((first_id + number, np.flatnonzero(labels).tolist(), sha256, 0, number))
        columns = dict(zip(POSTS_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True))
        write_table(pa.table(columns), POSTS_SCHEMA, directory / f"{split}.parquet")
        counts[split] = np.bincount([tag for row in rows for tag in row[1]], minlength=len(names))
    table = {
        "index": range(len(names)),
        "name": names,
        "category": [0, 0, 0, 4, 4],
        "count": counts["train"] + counts["validation"],
        "count_train": counts["train"],
        "count_validation": counts["validation"],
        "count_by_source": [[0]] * len(names),
    }
    write_table(pa.table(table), TAGS_SCHEMA, directory / "tags.parquet")
    write_description(directory, {"sources": ["colours"], "extension": "png"})
    return directory


def train(dataset: Path, directories: dict[int, Path]) -> ViT:
    """Train a small model on the training split; `directories` are those to save it in, by the number of steps."""
    opened = Dataset.open(dataset)
    posts = opened.posts("train")
    paths = [opened.image_path(digest.tobytes()) for digest in posts.hashes]
    pixels = torch.stack([preprocessing.read_square(path, SIZE) for path in paths]).permute(0, 3, 1, 2)
    inputs, labels = (
        preprocessing.normalize(pixels),
        torch.from_numpy(posts.labels(np.arange(len(posts)), len(NAMES))).float(),
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(image_size=SIZE, num_blocks=1, patch_size=8, d_model=32, mlp_dim=32, num_heads=2)
    model = ViT(ViTConfig(n_tags=len(NAMES), stochdepth_rate=0, cnn_stem=None, **sizes))
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for step in range(1, max(directories) + 1):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in directories:
            save(directories[step], model, opened.tags.names)
    return model.eval()


def save(directory: Path, model: ViT, names: list[str] = NAMES) -> None:
    directory.mkdir(parents=True)
    release.save(directory, model, names, "focal2")

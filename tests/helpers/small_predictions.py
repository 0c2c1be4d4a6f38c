"""Small predictions, of eleven images and five tags, written block by block."""

from pathlib import Path

import numpy as np

from joytag.data import dataset
from joytag.evaluation.predictions import label_matrix
from joytag.evaluation.predictions_writer import PredictionsWriter

ROWS, TAGS, BATCH = 11, 5, 4
FACTS = {
    "model_files": {"model.safetensors": "ab"},
    "dtype": "float32",
    "batch": BATCH,
    "device": "cpu",
    "split_sha256": "of these images",
    "sources": ["drawn", "photo"],
    "date": "today",
}
BAD = [(2, "b.jpg: gone"), (8, "h.jpg: cut off")]


def vocabulary(n_tags: int = TAGS) -> dataset.TagTable:
    """Return a vocabulary with different numbers for each tag."""
    return dataset.TagTable(
        [f"tag_{i}" for i in range(n_tags)], np.arange(n_tags, dtype=np.int8), np.arange(n_tags), np.arange(n_tags) + 1
    )


def make_posts() -> dataset.Posts:
    """Return a split of ROWS posts with random tags."""
    rng = np.random.default_rng(0)
    tags = [np.flatnonzero(rng.random(TAGS) < 0.4) for _ in range(ROWS)]
    return dataset.Posts(
        ids=np.arange(ROWS) * 3,
        offsets=np.cumsum([0, *map(len, tags)]).astype(np.int32),
        tags=np.concatenate(tags).astype(np.int16),
        hashes=rng.integers(0, 256, (ROWS, 32), dtype=np.uint8),
        sources=np.arange(ROWS, dtype=np.int16) % 2,
        families=np.arange(ROWS) // 2,
    )


def make_scores() -> np.ndarray:
    """Return random scores, float16 [ROWS, TAGS], with a 0 and a 1 among them."""
    values = np.random.default_rng(1).random((ROWS, TAGS)).astype(np.float16)
    values[0, :2] = 0, 1
    return values


POSTS, SCORES = make_posts(), make_scores()


def write_block(writer: PredictionsWriter, block: int, scores: np.ndarray, bad: list = BAD, process: int = 0) -> None:
    """Write one block, without the `bad` rows in it."""
    rows = np.array([row for row in range(block * BATCH, min((block + 1) * BATCH, ROWS)) if row not in dict(bad)])
    own = [entry for entry in bad if entry[0] // BATCH == block]
    writer.write(block, rows.astype(np.int64), scores[rows.astype(np.int64)], own, process)


def finish(writer: PredictionsWriter, posts: dataset.Posts = POSTS) -> None:
    """Finish predictions of POSTS, or of other posts with the same labels."""
    writer.finish(posts, label_matrix(posts, TAGS), vocabulary())


def write_finished(directory: Path, bad: list = BAD, posts: dataset.Posts = POSTS) -> Path:
    """Write finished predictions, block by block."""
    writer = PredictionsWriter(directory, ROWS, TAGS, BATCH)
    writer.begin(FACTS)
    for block in (2, 0, 1):
        write_block(writer, block, SCORES, bad, process=block % 2)
    finish(writer, posts)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    """Return the content of each file, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def damage(path: Path, kind: str) -> None:
    """Damage a file in one of several ways."""
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "empty": b"",
                "cut off": data[:-3],
                "longer": data + b"\n\n\n",
                "flipped": data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :],
            }[kind]
        )

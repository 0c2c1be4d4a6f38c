"""How well a fine-tuned model still knows the tags of the model that it started from, and how well the new ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from joytag.core import devices
from joytag.core.terminal import plural
from joytag.data import loader
from joytag.data.dataset import Dataset, DatasetError
from joytag.evaluation import metrics, predictions
from joytag.models import inference, release

IMAGES = 400  # of each split, at most, which keeps the measurement short
BATCH = 32
NAMES = 5  # new tags that the summary names


def summary(before: Path, after: Path, dataset: Dataset, threshold: float, device: str = "auto") -> str:
    """Return a line on the old tags and one on the new ones, each without what cannot be measured.

    `after` is a release that was fine-tuned from the release `before` on `dataset`. The new tags are measured on the
    held-out images of `dataset`, the old ones on those of the release's own dataset if it is at hand. Otherwise the
    measure for the old tags is how far the two models agree on the images of `dataset`.
    """
    known, tags = set(release.read_tags(before)), release.read_tags(after)
    old, new = [tag for tag in tags if tag in known], [tag for tag in tags if tag not in known]
    lines = []
    if old:
        lines.append(_old_tags(before, after, dataset, old, threshold, device))
    if new:
        scores, labels = score(after, dataset, ["validation"], new, device)
        names = ", ".join(new[:NAMES]) + (" ..." if len(new) > NAMES else "")
        f1 = averages(scores, labels, threshold)["macro_f1"]
        line = f"new tags: macro F1 {f1:.3f} on {len(scores)} held-out {plural(len(scores), 'image')} ({names})"
        if labels.nnz == labels.shape[0] * labels.shape[1]:
            line += "; all of them have these tags, so false alarms do not count"
        lines.append(line)
    return "\n".join(lines)


def _old_tags(before: Path, after: Path, dataset: Dataset, tags: list[str], threshold: float, device: str) -> str:
    own = own_dataset(before)
    if own is not None:
        scores, labels = score(before, own, ["validation"], tags, device)
        later_scores, _ = score(after, own, ["validation"], tags, device)
        first, last = (averages(s, labels, threshold)["micro_f1"] for s in (scores, later_scores))
        images = f"{len(scores)} validation {plural(len(scores), 'image')} of {own.directory}"
        return f"old tags: micro F1 {first:.3f} -> {last:.3f} on {images}"
    scores, _ = score(before, dataset, ["validation", "train"], tags, device)
    later_scores, _ = score(after, dataset, ["validation", "train"], tags, device)
    own_tags = metrics.predicted(scores, threshold)
    if not own_tags.nnz:
        return f"old tags: not measured; the original model finds none on {len(scores)} of your images"
    agreement = averages(later_scores, own_tags, threshold)["micro_f1"]
    return f"old tags: micro F1 {agreement:.3f} against the original model's own tags, on {len(scores)} of your images"


def own_dataset(directory: Path) -> Dataset | None:
    """Return the dataset that a release was evaluated on, if it is at hand and has images."""
    try:
        provenance = predictions.read_provenance(directory / predictions.DIRECTORY)
        dataset = Dataset.open(Path(str(provenance.get("dataset"))))
        has_images = dataset.image_path(dataset.posts("validation").hashes[0].tobytes()).exists()
    except (predictions.PredictionsError, DatasetError):
        return None
    return dataset if has_images and dataset.tags.names == release.read_tags(directory) else None


def score(
    directory: Path, dataset: Dataset, splits: Sequence[str], tags: Sequence[str], device: str = "auto"
) -> tuple[NDArray[np.float16], csc_array]:
    """Return a release's scores and the labels of some tags, [P, tags], for up to IMAGES images of each split.

    The images are a random choice, the same each time. Those that cannot be decoded are left out.
    """
    chosen = devices.pick_device(device)
    model, names = release.load(directory)
    dtype = devices.pick_dtype("auto", chosen)
    model.to(chosen)
    scores, labels = [], []
    for split in splits:
        images = loader.ImageDataset(dataset, split, model.config.image_size)
        rows = np.random.default_rng(0).permutation(len(images))[:IMAGES]
        keys = [[(0, int(row)) for row in rows[start : start + BATCH]] for start in range(0, len(rows), BATCH)]
        for batch in loader.batches(images, keys, 0, pin=False):
            scores.append(inference.predict(model, batch.images, chosen, dtype).sigmoid().half().cpu().numpy())
            labels.append(batch.labels.numpy())
    outputs, columns = ([having.index(tag) for tag in tags] for having in (names, dataset.tags.names))
    return np.concatenate(scores)[:, outputs], csc_array(np.concatenate(labels)[:, columns])


def averages(scores: NDArray[np.float16], labels: csc_array, threshold: float) -> dict[str, float]:
    """Return the averages of `metrics.averages` at a threshold."""
    return metrics.averages(metrics.count(labels, metrics.predicted(scores, threshold)))

"""Speed of tagging and of computing metrics, side by side with references."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.sparse import csc_array, csr_array, vstack

from joytag.benchmarks.stored_images import TAGS, TAGS_PER_IMAGE
from joytag.core.timing import side_by_side
from joytag.data import images, preprocessing
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation.curves import choose_thresholds, compute_curves
from joytag.models import matmul, release
from joytag.models.architectures import Model
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging import engines
from joytag.tagging.tagger import Tagger


def published_example(
    model: Model, tags: list[str], path: Path, device: torch.device, threshold: float = DEFAULT_THRESHOLD
) -> set[str]:
    """Tag an image as the released model's published example does: one image at a time, with a dict of all scores.

    It computes in float32 on a CPU, in fp16 by autocast on CUDA.
    """
    image = Image.open(path).convert("RGB")
    side = max(image.size)
    square = ImageOps.pad(image, (side, side), color=images.WHITE)
    pixels = np.asarray(square.resize((model.config.image_size,) * 2, Image.Resampling.BICUBIC))
    batch = preprocessing.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]).to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
        scores = model(batch).sigmoid().cpu()
    by_tag = {tag: scores[0][i] for i, tag in enumerate(tags)}
    return {tag for tag, score in by_tag.items() if score > threshold}


def random_release(directory: Path, seed: int = 0, config: ViTConfig | None = None) -> None:
    """Write a release with random weights, by default of the published size: 448 px and 5,813 tags."""
    torch.manual_seed(seed)
    config = config or ViTConfig(n_tags=TAGS)
    release.save(directory, ViT(config), [f"tag_{i}" for i in range(config.n_tags)], "focal2")


def random_images(directory: Path, count: int, seed: int = 0, size: tuple[int, int] = (1200, 800)) -> list[Path]:
    """Write JPEG images of coloured blots."""
    rng = np.random.default_rng(seed)
    paths = [directory / f"{number}.jpg" for number in range(count)]
    for path in paths:
        blots = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        blots.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


ALL = "all"  # engines


def compare_tagging(
    n_images: int, rounds: int, device: str, precision: str, engine: str = engines.TORCH, model: Path | None = None
) -> str:
    """Compare `Tagger.stream` with the published example on the same images: images per second, and decisions.

    `engine` is one, or ALL for each in its precisions beside torch in the given one and in float32. Without a release,
    `model`, one of the published size has random weights.
    """
    choices = [(engine, precision)]
    if engine == ALL:
        others = [(name, choice) for name, row in engines.ENGINES.items() for choice in row.precisions]
        choices = [(engines.TORCH, precision), (engines.TORCH, "fp32"), *others]
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            random_release(Path(folder))
        directory, paths = model or Path(folder), random_images(Path(folder), n_images)
        loaded = [Tagger.load(directory, device, choice, name) for name, choice in choices]
        taggers = list({str(tagger): tagger for tagger in loaded}.values())  # auto may be fp32
        lines = [_compare(tagger, directory, paths, rounds) for tagger in taggers]
    size, n_tags = taggers[0].size, len(taggers[0].tags)
    name = "ViT-B/16, random weights" if model is None else str(model)
    return "\n".join(
        [
            f"tag: {name}, {size} px, {n_tags:,} tags; {n_images} JPEGs of 1200x800, {rounds} rounds",
            f"  {'Tagger':36} images/s   times the published example       same decisions and tags",
            *lines,
        ]
    )


def _compare(tagger: Tagger, directory: Path, paths: list[Path], rounds: int) -> str:
    """Compare a tagger with the published example on images; return a line of the table."""
    model, tags = release.load(directory)
    model = model.to(tagger.device)
    tagged: dict[str, list[set[str]]] = {}

    def ours() -> None:
        tagged["ours"] = [set(result.tags) for result in tagger.stream(paths)]

    def reference() -> None:
        matmul.use(matmul.DEFAULT)  # as torch would, not as the tagger
        tagged["reference"] = [published_example(model, tags, path, tagger.device) for path in paths]

    timings = side_by_side(ours, reference, rounds)
    pairs = list(zip(tagged["ours"], tagged["reference"], strict=True))
    same = 1 - sum(len(a ^ b) for a, b in pairs) / len(pairs) / len(tags)
    either = sum(len(a | b) for a, b in pairs)
    common = sum(len(a & b) for a, b in pairs) / either if either else 1
    rate = timings.rates(len(paths))[0]
    return f"  {str(tagger).partition(',')[0]:36} {rate:8.2f}   {timings!s:32}  {same:.4%} {common:.2%}"


def random_predictions(path: Path, n_images: int, tags: int, seed: int = 0) -> tuple[np.ndarray, csc_array]:
    """Draw scores, float16 [P, N], in a file at `path`, and labels by Zipf's law, 32 an image.

    Each tag has its own skill: the distance between the scores of its positives and negatives.
    """
    rng = np.random.default_rng(seed)
    share = np.arange(1, tags + 1) ** -0.9
    share = np.clip(share * TAGS_PER_IMAGE / share.sum(), 5 / n_images, 0.7)
    skill, base = rng.uniform(2, 5, tags), np.log(share / (1 - share))
    scores = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n_images, tags))
    labels = []
    for start in range(0, n_images, 1024):
        block = rng.random((min(1024, n_images - start), tags)) < share
        logits = base + skill * (rng.standard_normal(block.shape, dtype=np.float32) + skill * (block - 0.5))
        scores[start : start + len(block)] = 1 / (1 + np.exp(-0.6 * logits))
        labels.append(csr_array(block))
    return np.load(path, mmap_mode="r"), vstack(labels).tocsc()


def compare_metrics(n_images: int, tags: int, rounds: int) -> str:
    """Compare exact metrics with scikit-learn: AP, best F1 and its threshold of every tag, thresholds of averages.

    scikit-learn computes them tag by tag: average_precision_score, and precision_recall_curve for the best F1.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        scores, labels = random_predictions(Path(folder) / "scores.npy", n_images, tags)
        by_tag = np.asfortranarray(scores, dtype=np.float32)  # the layout that suits it best, prepared outside its time

        def ours() -> None:
            curves = compute_curves(scores, labels)
            choose_thresholds(curves)
            results["ours"] = np.stack([curves.ap, curves.best_f1])

        def reference() -> None:
            rows = []
            for i in range(tags):
                positive = np.zeros(n_images, dtype=bool)
                positive[labels.indices[labels.indptr[i] : labels.indptr[i + 1]]] = True
                precision, recall, _ = precision_recall_curve(positive, by_tag[:, i])
                f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
                rows.append((average_precision_score(positive, by_tag[:, i]), f1.max()))
            results["reference"] = np.array(rows).T

        timings = side_by_side(ours, reference, rounds)
        differ = np.abs(results["ours"] - results["reference"]).max()
    rates = timings.rates(tags)
    return (
        f"metrics: AP, best F1 and thresholds of {n_images:,} images and {tags:,} tags, {rounds} rounds\n"
        f"  from histograms of all scores      {rates[0]:8.0f} tags/s\n"
        f"  scikit-learn, tag by tag           {rates[1]:8.0f} tags/s\n"
        f"  ratio {timings}\n"
        f"  largest difference {differ:.1e}"
    )

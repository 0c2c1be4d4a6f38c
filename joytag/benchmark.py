"""What things cost, always as a ratio to a reference that runs side by side with them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from joytag import image, release
from joytag.model import Model, ViT, ViTConfig
from joytag.tagger import Tagger
from joytag.timing import side_by_side


def published_example(
    model: Model, tags: list[str], path: Path, device: torch.device, threshold: float = 0.4
) -> set[str]:
    """Tag a picture as the released model's published example does: alone, eagerly, a dict of all its scores.

    float32 on a CPU, autocast to fp16 on CUDA.
    """
    picture = Image.open(path).convert("RGB")
    side = max(picture.size)
    square = ImageOps.pad(picture, (side, side), color=image.WHITE)
    pixels = np.asarray(square.resize((model.config.image_size,) * 2, Image.Resampling.BICUBIC))
    batch = image.normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]).to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
        scores = model(batch).sigmoid().cpu()
    by_tag = {tag: scores[0][i] for i, tag in enumerate(tags)}
    return {tag for tag, score in by_tag.items() if score > 0.4}


def random_release(directory: Path, seed: int = 0) -> None:
    """Write a release of the published size, 448 px and 5,813 tags, with random weights."""
    torch.manual_seed(seed)
    config = ViTConfig(n_tags=5813)
    release.save(directory, ViT(config), [f"tag_{i}" for i in range(config.n_tags)])


def random_pictures(directory: Path, count: int, seed: int = 0) -> list[Path]:
    """Write JPEG pictures of coloured blots, 1200x800 pixels."""
    rng = np.random.default_rng(seed)
    paths = [directory / f"{number}.jpg" for number in range(count)]
    for path in paths:
        blots = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        blots.resize((1200, 800), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def tag(pictures: int, rounds: int, device: str, precision: str) -> str:
    """Pictures a second of `Tagger.stream` and of the published example, and how many decisions agree.

    Each round both tag the same pictures; the ratio is the rounds' median.
    """
    with tempfile.TemporaryDirectory() as folder:
        random_release(Path(folder))
        paths = random_pictures(Path(folder), pictures)
        tagger = Tagger.load(folder, device, precision)
        model, tags = release.load(Path(folder))
        model = model.to(tagger.device)
        found: dict[str, list[set[str]]] = {}

        def ours() -> None:
            found["ours"] = [set(result.tags) for result in tagger.stream(paths)]

        def reference() -> None:
            found["reference"] = [published_example(model, tags, path, tagger.device) for path in paths]

        timings = side_by_side(ours, reference, rounds)
    differ = sum(len(a ^ b) for a, b in zip(found["ours"], found["reference"], strict=True))
    positive = sum(map(len, found["reference"]))
    rates = timings.rates(pictures)
    return (
        f"tag: ViT-B/16, 448 px, {len(tags):,} tags, random weights; {pictures} JPEGs of 1200x800, {rounds} rounds\n"
        f"  Tagger ({tagger})    {rates[0]:8.2f} pictures/s\n"
        f"  published example    {rates[1]:8.2f} pictures/s\n"
        f"  ratio {timings}\n"
        f"  same decisions {1 - differ / (pictures * len(tags)):.4%}, of which {positive / (pictures * len(tags)):.0%} "
        "above the threshold"
    )

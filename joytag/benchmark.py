"""What things cost, always as a ratio to a reference that runs side by side with them."""

from __future__ import annotations

import io
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import count
from json import dumps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.sparse import csc_array, csr_array, vstack
from torch.utils.data import DataLoader

from joytag import augment, data, distributed, image, metrics, optim, plan, records, reference, release, state, train
from joytag.config import RunSettings
from joytag.model import Model, ViT, ViTConfig, training_flop
from joytag.tagger import Tagger
from joytag.timing import Comparison, side_by_side, table

SIZES = (224, 448)  # of the recipe's stages, pixels
OPTIMIZER: dict[str, Any] = dict(name="lamb", lr=0.004, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)


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


def random_predictions(path: Path, pictures: int, tags: int, seed: int = 0) -> tuple[np.ndarray, csc_array]:
    """Scores, float16 [P, N], from a file, and labels by Zipf's law, 32 a picture; each tag with its own skill."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, tags + 1) ** -0.9
    share = np.clip(share * 32 / share.sum(), 5 / pictures, 0.7)
    skill, base = rng.uniform(2, 5, tags), np.log(share / (1 - share))
    scores = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(pictures, tags))
    labels = []
    for start in range(0, pictures, 1024):
        block = rng.random((min(1024, pictures - start), tags)) < share
        logits = base + skill * (rng.standard_normal(block.shape, dtype=np.float32) + skill * (block - 0.5))
        scores[start : start + len(block)] = 1 / (1 + np.exp(-0.6 * logits))
        labels.append(csr_array(block))
    return np.load(path, mmap_mode="r"), vstack(labels).tocsc()


def measuring(pictures: int, tags: int, rounds: int) -> str:
    """Exact AP, best F1 and its threshold of every tag, and all thresholds of averages, against scikit-learn.

    scikit-learn goes tag by tag: average_precision_score, and precision_recall_curve for the best F1.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        scores, labels = random_predictions(Path(folder) / "scores.npy", pictures, tags)
        by_tag = np.asfortranarray(scores, dtype=np.float32)  # what suits it best; not in its time

        def ours() -> None:
            curves = metrics.curves(table for _, table in metrics.histograms(scores, labels))
            metrics.thresholds(curves)
            found["ours"] = np.stack([curves.ap, curves.best_f1])

        def reference() -> None:
            rows = []
            for i in range(tags):
                carried = np.zeros(pictures, dtype=bool)
                carried[labels.indices[labels.indptr[i] : labels.indptr[i + 1]]] = True
                precision, recall, _ = precision_recall_curve(carried, by_tag[:, i])
                f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
                rows.append((average_precision_score(carried, by_tag[:, i]), f1.max()))
            found["reference"] = np.array(rows).T

        timings = side_by_side(ours, reference, rounds)
        differ = np.abs(found["ours"] - found["reference"]).max()
    rates = timings.rates(tags)
    return (
        f"metrics: AP, best F1 and thresholds of {pictures:,} pictures and {tags:,} tags, {rounds} rounds\n"
        f"  from histograms of all scores      {rates[0]:8.0f} tags/s\n"
        f"  scikit-learn, tag by tag           {rates[1]:8.0f} tags/s\n"
        f"  ratio {timings}\n"
        f"  largest difference {differ:.1e}"
    )


# What bounds training: how fast pictures come, and how fast a step eats them.


def training(
    subject: str, copies: Sequence[Image.Image], device: str, batch: int, rounds: int, quick: bool, json: Path | None
) -> str:
    """The comparisons of a subject (`loader`, `augment`, `step`, `optimizer` or `all`) as a table.

    `copies` are pictures of 512 px. `all` also leaves what `plan` reckons with in its RATES.
    """
    pictures, rounds = (448, 2) if quick else (1024, rounds)
    found: list[Comparison] = []
    chosen = distributed.pick_device(device)
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if chosen.type == "cuda":
        machine = f"{torch.cuda.get_device_name(chosen)}, {machine}"
    notes = [f"{date.today()}, {machine}, torch {torch.__version__}"]
    if subject in ("loader", "all"):
        found += loader(_encoded(copies), SIZES, pictures, rounds)
    if subject in ("augment", "all"):
        found.append(augmentation(copies, 448, 64, rounds))
    if subject in ("optimizer", "all"):
        found.append(optimizer(rounds))
    if subject in ("step", "all"):
        taken, apart = step(SIZES[0], batch, rounds, device)
        found.append(taken)
        notes.append(f"the losses of each step are {apart:.1%} apart on average")
    facts = {"date": str(date.today()), "comparisons": [comparison.figures() for comparison in found]}
    if json is not None:
        records.write_text(json, dumps(facts, indent=1) + "\n")
    if subject == "all":
        plan.write_rates(
            machine,
            data.default_workers(chosen, 1),
            {size: found[2 * i].timings.rates(pictures)[0] for i, size in enumerate(SIZES)},
            taken.timings.rates(batch)[0] * training_flop(ViTConfig(n_tags=5813), SIZES[0]),
        )
        notes.append(f"rates for --dry-run in {plan.RATES}")
    return "\n".join([table(found), *notes])


def _encoded(copies: Sequence[Image.Image]) -> dict[str, list[bytes]]:
    """The files of two stores: JPEGs of quality 90, and the original's WebPs.

    Of those, 45 % have quality 90, 45 % quality 100, and 10 % are lossless.
    """
    kinds = [dict(quality=90)] * 9 + [dict(quality=100)] * 9 + [dict(lossless=True)] * 2
    files: dict[str, list[bytes]] = {"JPEG": [], "WebP": []}
    for number, copy in enumerate(copies):
        for kind, options in (("JPEG", dict(quality=90)), ("WebP", kinds[7 * number % 20])):
            buffer = io.BytesIO()
            copy.save(buffer, kind, **options)
            files[kind].append(buffer.getvalue())
    return files


@dataclass(frozen=True)
class Stored(records.Dataset):
    """A dataset of picture files that lie anywhere, with made-up tags."""

    files: Sequence[Path]

    @classmethod
    def of(cls, files: Sequence[Path], n_tags: int = 5813) -> Stored:
        """With the recipe's vocabulary, if not another."""
        counts = np.full(n_tags, max(1, 32 * len(files) // n_tags))
        names = [f"tag_{i}" for i in range(n_tags)]
        return cls(Path(), ["files"], "jpg", records.TagTable(names, counts.astype(np.int8), counts, counts), files)

    def posts(self, split: str) -> records.Posts:
        """The files, each with 32 random tags and its number as hash."""
        rows = np.arange(len(self.files))
        tags = np.random.default_rng(0).integers(0, len(self.tags), 32 * len(rows)).astype(np.int16)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        hashes[:, :8] = rows[:, None].view(np.uint8)
        return records.Posts(rows, 32 * np.arange(len(rows) + 1), tags, hashes, np.zeros_like(rows), rows)

    def image_path(self, sha256: bytes) -> Path:
        """The file of a number."""
        return self.files[int.from_bytes(sha256[:8], "little")]


def loader(stores: dict[str, list[bytes]], sizes: Sequence[int], pictures: int, rounds: int) -> list[Comparison]:
    """One process that loads and augments pictures of each size, ours from JPEG files.

    `stores` holds the same pictures as `JPEG` and as `WebP` files, which the references read.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: _write(Path(folder), kind, files) for kind, files in stores.items()}
        asked = {kind: [some[i % len(some)] for i in range(pictures)] for kind, some in paths.items()}
        found = []
        for size in sizes:

            def ours(size: int = size) -> None:
                ready = data.Pictures(Stored.of(asked["JPEG"]), "train", size, (0, 0), "trivial")
                keys = [
                    [(0, row) for row in range(start, min(start + 32, pictures))] for start in range(0, pictures, 32)
                ]
                for _ in data.batches(ready, keys, 1, pin=False):
                    pass

            for kind in stores:

                def theirs(size: int = size, kind: str = kind) -> None:
                    for _ in DataLoader(reference.PillowPictures(asked[kind], size), 32, num_workers=1):
                        pass

                timings = side_by_side(ours, theirs, rounds)
                found.append(Comparison(f"load {size} px", f"Pillow, from {kind}", pictures, "pictures", timings))
    return found


def _write(folder: Path, kind: str, files: list[bytes]) -> list[Path]:
    paths = [folder / f"{number}.{kind.lower()}" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def augmentation(copies: Sequence[Image.Image], size: int, pictures: int, rounds: int) -> Comparison:
    """TrivialAugment of a batch, on one core."""
    squares = [image.square(copies[i % len(copies)], size) for i in range(pictures)]
    batch = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)
    draws = augment.draw([(0, row) for row in range(pictures)], augment.SPACES["trivial"], size)
    theirs = reference.trivial_augment()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timings = side_by_side(
        lambda: augment.apply(batch, draws[0]), lambda: [theirs(square) for square in squares], rounds
    )
    torch.set_num_threads(threads)
    return Comparison(f"augment {pictures} at {size} px", "torchvision on Pillow's", pictures, "pictures", timings)


def optimizer(rounds: int) -> Comparison:
    """A step of LAMB over the released model's parameters."""
    models = [ViT(ViTConfig(n_tags=5813)) for _ in range(2)]
    for parameter in [*models[0].parameters(), *models[1].parameters()]:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    ours = optim.build(models[0].parameters(), **OPTIMIZER)
    theirs = reference.LoopedLamb(models[1].parameters(), OPTIMIZER["lr"])
    timings = side_by_side(lambda: ours.step(), theirs.step, rounds)
    return Comparison("LAMB, 91.5M parameters", "a loop over tensors", 1, "steps", timings)


def step(size: int, batch: int, rounds: int, device: str) -> tuple[Comparison, float]:
    """A training step of the released model, ours and the eager one each in a process of its own; from equal weights.

    The reference in fp16 on CUDA, else in float32; ours as training would choose. Also says how far, on average, the
    two losses of a round lie apart, as a share.
    """
    with _Remote(_our_steps, size, batch, device) as ours, _Remote(_reference_steps, size, batch, device) as theirs:
        timings = side_by_side(ours, theirs, rounds)
    apart = float(np.mean([abs(a / b - 1) for a, b in zip(ours.results, theirs.results, strict=True)]))
    return Comparison(f"step of {batch} at {size} px", "eager, looped LAMB", batch, "pictures", timings), apart


class _Remote:
    """A generator in a process of its own; each call gets its next value."""

    def __init__(self, function: Callable[..., Iterator[float]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function, arguments), daemon=True)
        self.results: list[float] = []

    def __enter__(self) -> _Remote:
        self.process.start()
        return self

    def __call__(self) -> None:
        try:
            self.pipe.send(True)
            self.results.append(self.pipe.recv())
        except (EOFError, BrokenPipeError):
            raise ValueError("a benchmark's process has died; see its message above") from None

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, function: Callable[..., Iterator[float]], arguments: tuple[object, ...]) -> None:
    values = function(*arguments)
    while pipe.recv():
        pipe.send(next(values))


def _run(size: int, batch: int, device: str) -> state.Run:
    values = {"output": "unused", "data": {"directory": "unused"}, "stages": [{"image_size": size, "samples": 10**8}],
              "batch_size": batch, "device": device}  # fmt: skip
    config, chosen = RunSettings.model_validate(values), distributed.pick_device(device)
    dtype = distributed.pick_dtype("auto", chosen, config.model.d_model)
    return state.Run(config, Stored.of([Path()] * 1000), chosen, dtype)


def _batch(run: state.Run, number: int) -> data.Batch:
    random = torch.Generator().manual_seed(number)
    shape = run.config.batch_size, 3, run.stages[0].image_size, run.stages[0].image_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    rows = torch.arange(run.config.batch_size)
    labels = torch.from_numpy(run.pictures.labels(rows.numpy() + number, len(run.dataset.tags)))
    return data.Batch(images.contiguous(memory_format=torch.channels_last), labels, rows, rows, [])


def _our_steps(size: int, batch: int, device: str) -> Iterator[float]:
    run = _run(size, batch, device)
    if run.device.type == "cpu":
        distributed.keep_memory()
    current = state.initial_state(run)
    current.model.train()
    for number in count():
        yield train.train_step(current, current.model, iter([_batch(run, number)]), run).loss


def _reference_steps(size: int, batch: int, device: str) -> Iterator[float]:
    run = _run(size, batch, device)
    initial = state.initial_state(run).model
    assert isinstance(initial, ViT)
    model = reference.EagerViT(initial.config).to(run.device)
    model.load_state_dict(initial.state_dict())
    lamb = reference.LoopedLamb(model.parameters(), OPTIMIZER["lr"])
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    for number in count():
        taken = _batch(run, number)
        images = image.normalize(taken.images.to(run.device)).contiguous()
        yield float(reference.train_step(model, lamb, scaler, images, taken.labels.to(run.device).float()))

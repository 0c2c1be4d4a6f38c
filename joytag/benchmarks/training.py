"""How fast training goes: what brings images and what eats them, each side by side with a reference."""

from __future__ import annotations

import io
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import cycle, islice, product
from json import dumps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from joytag.benchmarks import baselines
from joytag.core import devices, progress, settings
from joytag.core.files import write_text
from joytag.core.timing import Comparison, Timings, side_by_side, table
from joytag.data import augment, dataset
from joytag.data import images as image
from joytag.data import loader as data
from joytag.models.architectures import training_flop
from joytag.models.vit import ViT, ViTConfig
from joytag.training import dry_run, optimizers, state, trainer
from joytag.training.config import RunSettings
from joytag.training.monitor import peak_flops
from joytag.training.run import Run
from joytag.training.step import train_step

SIZES = (224, 448)  # of the recipe's stages, pixels
TURNS = 4  # batches that a measured step gets in turn, so that no time goes into making them
SETTLING = 20  # steps until a GPU, its kernels and the gradient scaler have settled; those after them are measured
LOADED = 32  # images of a batch where loading is measured
AHEAD = data.PREFETCH + 1  # batches of a loading process that may be there already, or nearly so
OPTIMIZER: dict[str, Any] = dict(name="lamb", lr=0.004, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)


@dataclass(frozen=True)
class Case:
    """A training step to be measured: pixels, samples, device, and `key=value` settings that replace the recipe's."""

    size: int
    batch: int
    device: str
    settings: tuple[str, ...] = ()


def measure(
    subject: str,
    copies: Sequence[Image.Image],
    device: str,
    batch: int | None,
    rounds: int,
    quick: bool,
    json: Path | None,
    settings: Sequence[str] = (),
) -> str:
    """The comparisons of a subject (`loader`, `augment`, `optimizer`, `step`, `feed` or `all`) as a table.

    `copies` are images of 512 px. `all` also leaves what `plan` reckons with in its RATES. Raises SettingsError for
    `settings` that the recipe cannot have.
    """
    n_images, rounds = (384, 2) if quick else (1024, rounds)
    chosen = devices.pick_device(device)
    on_gpu, workers = chosen.type == "cuda", data.default_workers(chosen)
    often = 10 * rounds if on_gpu else rounds  # a GPU's steps are short
    cases = [Case(size, batch or (64 * (448 // size) ** 2 if on_gpu else 8), device, tuple(settings))
             for size in (SIZES if on_gpu else SIZES[:1])]  # fmt: skip
    for case in cases:
        _run(case)
    measures: dict[str, Callable[[], list[Comparison]]] = {
        "loader": lambda: loader(_encoded(copies), SIZES, n_images, rounds),
        "augment": lambda: (
            [on_device(case, often) for case in cases] if on_gpu else [augmentation(copies, 448, 64, rounds)]
        ),
        "optimizer": lambda: [optimizer(often, chosen)],
        "step": lambda: [step(case, often) for case in cases],
        "feed": lambda: [feed(copies, case, max(1, workers), rounds) for case in cases],
    }
    wanted = [subject] if subject != "all" else [name for name in measures if name != "feed" or on_gpu]
    found = {name: measures[name]() for name in progress.track(wanted, "Measure", len(wanted), "subjects")}
    comparisons = [comparison for some in found.values() for comparison in some]
    machine = f"{torch.cuda.get_device_name(chosen)}, " if on_gpu else ""
    machine += f"{os.cpu_count()} CPU cores ({platform.machine()})"
    notes = [f"{date.today()}, {machine}, torch {torch.__version__}"]
    notes += [f"{comparison.work}: {comparison.note}" for comparison in comparisons if comparison.note]
    if json is not None:
        facts = {"date": str(date.today()), "comparisons": [comparison.summary() for comparison in comparisons]}
        write_text(json, dumps(facts, indent=1) + "\n")
    if subject == "all":
        loading = {size: found["loader"][2 * i].rates()[0] for i, size in enumerate(SIZES)}
        if on_gpu:
            loading = {case.size: fed.rates()[0] / workers for case, fed in zip(cases, found["feed"], strict=True)}
        flop = {case.size: taken.rates()[0] * _flop(case) for case, taken in zip(cases, found["step"], strict=True)}
        dry_run.write_rates(machine, workers, loading, flop)
        notes.append(f"rates for --dry-run in {dry_run.RATES}")
    return "\n".join([table(comparisons), *notes])


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
class Stored(dataset.Dataset):
    """A dataset of image files that lie anywhere, with made-up tags."""

    files: Sequence[Path]

    @classmethod
    def of(cls, files: Sequence[Path], n_tags: int = 5813) -> Stored:
        """With the recipe's vocabulary, if not another."""
        counts = np.full(n_tags, max(1, 32 * len(files) // n_tags))
        names = [f"tag_{i}" for i in range(n_tags)]
        return cls(Path(), ["files"], "jpg", dataset.TagTable(names, counts.astype(np.int8), counts, counts), files)

    def posts(self, split: str) -> dataset.Posts:
        """The files, each with 32 random tags and its number as hash."""
        rows = np.arange(len(self.files))
        tags = np.random.default_rng(0).integers(0, len(self.tags), 32 * len(rows)).astype(np.int16)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        hashes[:, :8] = rows[:, None].view(np.uint8)
        return dataset.Posts(rows, 32 * np.arange(len(rows) + 1), tags, hashes, np.zeros_like(rows))

    def image_path(self, sha256: bytes) -> Path:
        """The file of a number."""
        return self.files[int.from_bytes(sha256[:8], "little")]


def loader(stores: dict[str, list[bytes]], sizes: Sequence[int], n_images: int, rounds: int) -> list[Comparison]:
    """One process that loads and augments images of each size, ours from JPEG files; without its start.

    `stores` holds the same images as `JPEG` and as `WebP` files, which the references read.
    """
    batches = n_images // LOADED
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: _write(Path(folder), kind, files) for kind, files in stores.items()}
        asked = {kind: [some[i % len(some)] for i in range(LOADED * (batches + AHEAD))] for kind, some in paths.items()}
        found = []
        for size, kind in product(sizes, stores):
            ours, theirs = [], []
            for _ in range(rounds + 1):
                reading = DataLoader(baselines.PillowImages(asked[kind], size), LOADED, num_workers=1)
                theirs.append(batches * _pace(iter(reading), AHEAD, batches))
                ready = data.ImageDataset(Stored.of(asked["JPEG"]), "train", size, (0, 0), "trivial")
                keys = data.training_keys(0, 0, len(ready), 0, LOADED, LOADED, 0, 1)
                ours.append(batches * _pace(data.batches(ready, keys, 1, pin=False), AHEAD, batches))
            timings = Timings(ours[1:], theirs[1:])  # the first round reads the files from the disk
            work = f"load {size} px"
            found.append(Comparison(work, f"Pillow, from {kind}", LOADED * batches, "images", timings))
    return found


def _pace(loaded: Iterator[object], ahead: int, batches: int) -> float:
    """Seconds that a batch takes, once those that were made ahead are gone."""
    sum(1 for _ in islice(loaded, ahead))
    start = time.perf_counter()
    sum(1 for _ in islice(loaded, batches))
    return (time.perf_counter() - start) / batches


def _write(folder: Path, kind: str, files: list[bytes]) -> list[Path]:
    paths = [folder / f"{number}.{kind.lower()}" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def augmentation(copies: Sequence[Image.Image], size: int, n_images: int, rounds: int) -> Comparison:
    """TrivialAugment of a batch, on one core."""
    squares = [image.square(copies[i % len(copies)], size) for i in range(n_images)]
    batch = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)
    draws = augment.draw([(0, row) for row in range(n_images)], augment.SPACES["trivial"], size)
    theirs = baselines.trivial_augment()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timings = side_by_side(
        lambda: augment.apply(batch, draws[0]), lambda: [theirs(square) for square in squares], rounds
    )
    torch.set_num_threads(threads)
    return Comparison(f"augment {n_images} at {size} px", "torchvision on Pillow's", n_images, "images", timings)


def optimizer(rounds: int, device: torch.device) -> Comparison:
    """A step of LAMB over the released model's parameters."""
    models = [ViT(ViTConfig(n_tags=5813)).to(device) for _ in range(2)]
    for parameter in [*models[0].parameters(), *models[1].parameters()]:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    ours = optimizers.build(models[0].parameters(), **OPTIMIZER)
    theirs = baselines.LoopedLamb(models[1].parameters(), OPTIMIZER["lr"])
    ends = [model.head.bias for model in models]  # reading it, one waits for a GPU
    timings = side_by_side(lambda: (ours.step(), ends[0][0].item()), lambda: (theirs.step(), ends[1][0].item()), rounds)
    return Comparison("LAMB, 91.5M parameters", "a loop over tensors", 1, "steps", timings)


def on_device(case: Case, rounds: int) -> Comparison:
    """TrivialAugment of a batch on its device, against the training step that follows it there."""
    with _Remote(_augmenting, case) as ours, _Remote(_our_steps, case) as theirs:
        timings = side_by_side(ours, theirs, rounds)
    return Comparison(f"augment {case.batch} at {case.size} px", "a training step", case.batch, "images", timings)


def step(case: Case, rounds: int) -> Comparison:
    """A training step of the released model, ours and the eager one each in a process of its own; from equal weights.

    The reference in fp16 on CUDA, else in float32; ours as training would choose. The note says how far, on average,
    the two losses of a round lie apart, and, if that is known, what shares of the device's peak the steps reach.
    """
    with _Remote(_our_steps, case) as ours, _Remote(_reference_steps, case) as theirs:
        timings = side_by_side(ours, theirs, rounds)
    apart = float(np.mean([abs(a / b - 1) for a, b in zip(ours.results, theirs.results, strict=True)]))
    note, peak = f"losses {apart:.1%} apart on average", peak_flops(devices.pick_device(case.device))
    if peak is not None:
        shares = [rate * _flop(case) / peak for rate in timings.rates(case.batch)]
        note += f"; {shares[0]:.1%} of the peak of {peak / 1e12:.0f} TFLOP/s, the reference {shares[1]:.1%}"
    work = f"step of {case.batch} at {case.size} px"
    return Comparison(work, "eager, looped LAMB", case.batch, "images", timings, note)


def _flop(case: Case) -> int:
    run = _run(case)
    return training_flop(run.config.architecture(len(run.dataset.tags), case.size), case.size)


def feed(copies: Sequence[Image.Image], case: Case, workers: int, rounds: int) -> Comparison:
    """Batches for a step from so many processes that load images, against what the step takes."""
    device, ahead = _run(case).device, workers * AHEAD
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, _Remote(_our_steps, case) as steps:
        paths = _write(Path(folder), "JPEG", _encoded(copies)["JPEG"])
        stored = Stored.of([paths[i % len(paths)] for i in range(4096)])
        stored_images = data.ImageDataset(stored, "train", case.size, (0, 0), "trivial", deferred=device.type != "cpu")
        keys = data.training_keys(0, 0, len(stored_images), 0, case.batch, case.batch, 0, 1)
        loaded = data.batches(stored_images, keys, workers, pin=device.type == "cuda")
        steps()
        for _ in range(rounds):
            ours.append(_pace(loaded, ahead, 2 * ahead))
            start = time.perf_counter()
            steps()
            theirs.append(time.perf_counter() - start)
        loaded.close()
    work = f"feed {case.size} px by {workers} processes"
    return Comparison(work, "what a training step takes", case.batch, "images", Timings(ours, theirs))


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


def _run(case: Case) -> Run:
    """The recipe, on made-up images. Raises SettingsError."""
    given = ["output=unused", "data.directory=unused", f"device={case.device}", f"batch_size={case.batch}"]
    given += ["micro_batch=null", f"stages.0.image_size={case.size}", *case.settings]
    config = settings.load(RunSettings, settings.find("b16_448.yaml"), given)
    if config.micro_batch == "auto" or config.model.timm is not None:
        raise ValueError(
            "a measured step takes a number as micro_batch, and no model.timm, of which there is no reference"
        )
    chosen = devices.pick_device(case.device)
    dtype = devices.pick_dtype(config.precision, chosen, config.model.d_model)
    return Run(config, Stored.of([Path()] * 1000), chosen, dtype)


def _batches(run: Run) -> Iterator[list[data.Batch]]:
    """The micro-batches of one step after the other, a few steps' over and over again."""
    micro, size = run.micro_batch, run.stages[0].image_size
    random, steps = torch.Generator().manual_seed(0), []
    for _ in range(TURNS):
        step = []
        for _ in range(run.share // micro):
            pixels = torch.randint(0, 256, (micro, size, size, 3), dtype=torch.uint8, generator=random)
            rows = torch.randint(len(run.images), (micro,), generator=random)
            labels = torch.from_numpy(run.images.labels(rows.numpy(), len(run.dataset.tags)))
            batch = data.Batch(pixels.permute(0, 3, 1, 2), labels, rows, rows, [])
            step.append(batch.pin_memory() if run.device.type == "cuda" else batch)
        steps.append(step)
    return cycle(steps)


def _our_steps(case: Case) -> Iterator[float]:
    run = _run(case)
    if run.device.type == "cpu":
        devices.keep_memory()
    current = state.initial_state(run)
    current.model.train()
    trainer.compile_parts(current.model, run)
    losses = (train_step(current, current.model, iter(batches), run).loss for batches in _batches(run))
    yield from _settled(losses, run)


def _reference_steps(case: Case) -> Iterator[float]:
    run = _run(case)
    initial = state.initial_state(run).model
    assert isinstance(initial, ViT)
    model = baselines.EagerViT(initial.config).to(run.device)
    model.load_state_dict(initial.state_dict())
    lamb = baselines.LoopedLamb(model.parameters(), OPTIMIZER["lr"])
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.device.type == "cuda")

    def inputs(batch: data.Batch) -> tuple[Tensor, Tensor]:
        images = image.normalize(batch.images.to(run.device, non_blocking=True)).contiguous()
        return images, batch.labels.to(run.device, non_blocking=True).float()

    steps = (baselines.train_step(model, lamb, scaler, list(map(inputs, batches))) for batches in _batches(run))
    yield from _settled(map(float, steps), run)


def _settled(losses: Iterator[float], run: Run) -> Iterator[float]:
    for loss in islice(losses, SETTLING if run.device.type == "cuda" else 0, None):
        if run.device.type == "cuda":
            torch.cuda.synchronize()  # for the optimizer's part, which comes after the loss
        yield loss


def _augmenting(case: Case) -> Iterator[float]:
    run = _run(case)
    space = augment.SPACES["trivial"]
    pixels = torch.randint(0, 256, (case.batch, case.size, case.size, 3), dtype=torch.uint8, device=run.device)
    pixels[:, : case.size // 2] = 255  # much of a drawing is white
    draws = [augment.draw([(n, row) for row in range(case.batch)], space, case.size)[0] for n in range(TURNS)]
    for some in cycle(draws):
        yield float(augment.apply(pixels.clone().permute(0, 3, 1, 2), some)[0, 0, 0, 0])

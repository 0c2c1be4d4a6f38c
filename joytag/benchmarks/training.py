"""Training speed: loading, augmentation, optimizer and step, each side by side with a reference."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from joytag.benchmarks import baselines, stored_images
from joytag.benchmarks.remote import Remote
from joytag.benchmarks.stored_images import StoredImages
from joytag.core import devices, progress, settings
from joytag.core.files import write_text
from joytag.core.timing import Comparison, Timings, side_by_side, table
from joytag.data import augment, decoders, loader, order, preprocessing
from joytag.models.architectures import training_flop
from joytag.models.vit import ViT, ViTConfig
from joytag.training import dry_run, optimizers, state, trainer
from joytag.training.config import RunSettings
from joytag.training.monitor import peak_flops
from joytag.training.run import Run
from joytag.training.step import train_step

SIZES = (224, 448)  # image sizes of the recipe's stages, pixels
CYCLE = 4  # batches that a measured step gets in turn, so that their creation takes none of its time
WARMUP = 20  # steps of a GPU before the measured ones: kernels are chosen, the gradient scaler finds its scale
LOADED = 32  # images of a batch where loading is measured
AHEAD = loader.PREFETCH + 1  # batches of a decoding process that may already be there, or nearly so
OPTIMIZER: dict[str, Any] = dict(name="lamb", lr=0.004, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05)


@dataclass(frozen=True)
class Case:
    """A training step to measure: image size, samples, device, `key=value` settings that replace the config's, tags."""

    size: int
    batch: int
    device: str
    settings: tuple[str, ...] = ()
    tags: int = stored_images.TAGS
    config: str = "b16_448.yaml"


@dataclass(frozen=True)
class Setup:
    """The shared inputs of all comparisons of a call: machine, images of 512 px, cases, amount of work."""

    device: torch.device
    workers: int  # decoding processes that training would start
    copies: Sequence[Image.Image]
    cases: Sequence[Case]
    n_images: int  # to load
    rounds: int

    @property
    def step_rounds(self) -> int:
        """The rounds of comparisons of steps, which are short on a GPU."""
        return 10 * self.rounds if self.device.type == "cuda" else self.rounds


class Subject(NamedTuple):
    """A subject of the benchmark: what it compares, in words and as a function."""

    description: str
    compare: Callable[[Setup], list[Comparison]]
    only_on_gpu: bool = False  # in a run of all subjects


def _compare_augmentation(setup: Setup) -> list[Comparison]:
    if setup.device.type == "cuda":
        return [compare_augmentation_on_device(case, setup.step_rounds) for case in setup.cases]
    return [compare_augmentation(setup.copies, 448, 64, setup.rounds)]


SUBJECTS = {
    "loader": Subject(
        "loading and augmenting images, against Pillow and torchvision",
        lambda setup: compare_loading(stored_images.encode(setup.copies), SIZES, setup.n_images, setup.rounds),
    ),
    "augment": Subject(
        "TrivialAugment of a batch, against torchvision's on Pillow images; on a GPU, against a training step",
        _compare_augmentation,
    ),
    "optimizer": Subject(
        "a step of LAMB, against a loop", lambda setup: [compare_optimizers(setup.step_rounds, setup.device)]
    ),
    "step": Subject(
        "a training step of the released model, against an eager one",
        lambda setup: [compare_steps(case, setup.step_rounds) for case in setup.cases],
    ),
    "feed": Subject(
        "loading with all decoding processes, against what a training step takes",
        lambda setup: [
            compare_feeding(setup.copies, case, max(1, setup.workers), setup.rounds) for case in setup.cases
        ],
        only_on_gpu=True,
    ),
}
ALL = "all"


def measure(
    subject: str,
    copies: Sequence[Image.Image],
    device: str,
    batch: int | None,
    rounds: int,
    quick: bool,
    json_file: Path | None,
    settings: Sequence[str] = (),
) -> str:
    """Run the comparisons of one of SUBJECTS, or ALL, and return them as a table.

    `copies` are images of 512 px. ALL also writes the rates that a dry run reads. Raises SettingsError for `settings`
    that the recipe cannot have.
    """
    setup = prepare(copies, device, batch, rounds, quick, settings)
    names = [subject]
    if subject == ALL:
        names = [name for name, row in SUBJECTS.items() if setup.device.type == "cuda" or not row.only_on_gpu]
    results = {name: SUBJECTS[name].compare(setup) for name in progress.track(names, "Measure", len(names), "subjects")}
    comparisons = [comparison for result in results.values() for comparison in result]
    lines = [table(comparisons), f"{date.today()}, {machine(setup.device)}, torch {torch.__version__}"]
    lines += [f"{comparison.work}: {comparison.note}" for comparison in comparisons if comparison.note]
    if json_file is not None:
        measurements = {"date": str(date.today()), "comparisons": [comparison.summary() for comparison in comparisons]}
        write_text(json_file, json.dumps(measurements, indent=1) + "\n")
    if subject == ALL:
        dry_run.write_rates(measured_rates(results, setup))
        lines.append(f"rates for dry runs in {dry_run.RATES}")
    return "\n".join(lines)


def prepare(
    copies: Sequence[Image.Image],
    device_name: str,
    batch: int | None,
    rounds: int,
    quick: bool,
    settings: Sequence[str],
) -> Setup:
    """Choose the cases and the amount of work for a device. Raises SettingsError as `measure` does."""
    device = devices.pick_device(device_name)
    on_gpu = device.type == "cuda"
    cases = []
    for size in SIZES if on_gpu else SIZES[:1]:
        default_batch = 64 * (448 // size) ** 2 if on_gpu else 8
        cases.append(Case(size, batch or default_batch, device_name, tuple(settings)))
        recipe(cases[-1])
    n_images, rounds = (384, 2) if quick else (1024, rounds)
    return Setup(device, decoders.default_workers(device), copies, cases, n_images, rounds)


def measured_rates(results: Mapping[str, Sequence[Comparison]], setup: Setup) -> dry_run.Rates:
    """Return the rates that a dry run reads, from the comparisons of all subjects."""
    ours = {name: [comparison.rates()[0] for comparison in result] for name, result in results.items()}
    if setup.device.type == "cuda":
        pairs = zip(setup.cases, ours["feed"], strict=True)
        loading = {case.size: rate / setup.workers for case, rate in pairs}
    else:
        loading = dict(zip(SIZES, ours["loader"][::2], strict=True))  # two comparisons a size, with the same of ours
    flop = {case.size: rate * step_flop(case) for case, rate in zip(setup.cases, ours["step"], strict=True)}
    return dry_run.Rates(str(date.today()), machine(setup.device), setup.workers, loading, flop)


def machine(device: torch.device) -> str:
    """Describe a device and the computer that it is in."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    return f"{gpu}{os.cpu_count()} CPU cores ({platform.machine()})"


def compare_loading(
    stores: Mapping[str, Sequence[bytes]], sizes: Sequence[int], n_images: int, rounds: int
) -> list[Comparison]:
    """Compare one process that loads and augments images of each size; without the time to start it.

    `stores` holds the same images as `JPEG` and as `WebP` files. The references read each; ours reads JPEG.
    """
    batches = n_images // LOADED
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for kind, files in stores.items():
            written = stored_images.write(Path(folder), kind, files)
            paths[kind] = [written[i % len(written)] for i in range(LOADED * (batches + AHEAD))]
        for size, kind in product(sizes, stores):
            ours, theirs = [], []
            for _ in range(rounds + 1):
                reference = DataLoader(baselines.PillowImages(paths[kind], size), LOADED, num_workers=1)
                theirs.append(batches * seconds_per_batch(iter(reference), AHEAD, batches))
                dataset = loader.ImageDataset(StoredImages.of(paths["JPEG"]), "train", size, (0, 0), "trivial")
                keys = order.training_keys(0, 0, len(dataset), 0, LOADED, LOADED, 0, 1)
                ours.append(batches * seconds_per_batch(loader.batches(dataset, keys, 1, pin=False), AHEAD, batches))
            timings = Timings(ours[1:], theirs[1:])  # the first round reads the files from the disk
            comparisons.append(
                Comparison(f"load {size} px", f"Pillow, from {kind}", LOADED * batches, "images", timings)
            )
    return comparisons


def seconds_per_batch(loaded: Iterator[object], ahead: int, batches: int) -> float:
    """Time the batches that follow those loaded ahead."""
    sum(1 for _ in islice(loaded, ahead))
    start = time.perf_counter()
    sum(1 for _ in islice(loaded, batches))
    return (time.perf_counter() - start) / batches


def compare_augmentation(copies: Sequence[Image.Image], size: int, n_images: int, rounds: int) -> Comparison:
    """Compare TrivialAugment of a batch on one CPU core."""
    squares = [preprocessing.square(copies[i % len(copies)], size) for i in range(n_images)]
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


def compare_augmentation_on_device(case: Case, rounds: int) -> Comparison:
    """Compare TrivialAugment of a batch on its device with the training step that follows it there."""
    with Remote(augmentations, case) as ours, Remote(our_steps, case) as theirs:
        timings = side_by_side(ours, theirs, rounds)
    return Comparison(f"augment {case.batch} at {case.size} px", "a training step", case.batch, "images", timings)


def compare_optimizers(rounds: int, device: torch.device) -> Comparison:
    """Compare a step of LAMB over the released model's parameters."""
    models = [ViT(ViTConfig(n_tags=stored_images.TAGS)).to(device) for _ in range(2)]
    for parameter in [*models[0].parameters(), *models[1].parameters()]:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    ours = optimizers.build(models[0].parameters(), **OPTIMIZER)
    theirs = baselines.LoopedLamb(models[1].parameters(), OPTIMIZER["lr"])
    last = [model.head.bias for model in models]  # reading a value of the last parameter waits for a GPU
    timings = side_by_side(lambda: (ours.step(), last[0][0].item()), lambda: (theirs.step(), last[1][0].item()), rounds)
    return Comparison("LAMB, 91.5M parameters", "a loop over tensors", 1, "steps", timings)


def compare_steps(case: Case, rounds: int) -> Comparison:
    """Compare a training step of the released model, each side in its own process, from equal weights.

    Ours uses the precision that training would choose; the reference uses fp16 on CUDA, else float32. The note has
    the mean difference of the two losses, and the shares of the device's peak where it is known.
    """
    with Remote(our_steps, case) as ours, Remote(reference_steps, case) as theirs:
        timings = side_by_side(ours, theirs, rounds)
    difference = float(np.mean([abs(a / b - 1) for a, b in zip(ours.results, theirs.results, strict=True)]))
    note, peak = f"losses {difference:.1%} apart on average", peak_flops(devices.pick_device(case.device))
    if peak is not None:
        shares = [rate * step_flop(case) / peak for rate in timings.rates(case.batch)]
        note += f"; {shares[0]:.1%} of the peak of {peak / 1e12:.0f} TFLOP/s, the reference {shares[1]:.1%}"
    work = f"step of {case.batch} at {case.size} px"
    return Comparison(work, "eager, looped LAMB", case.batch, "images", timings, note)


def feed(paths: Sequence[Path], case: Case, workers: int) -> Generator[loader.Batch]:
    """Load the batches of a step from these files, again and again, with so many decoding processes."""
    device = recipe(case).device
    stored = StoredImages.of([paths[i % len(paths)] for i in range(4096)])
    dataset = loader.ImageDataset(stored, "train", case.size, (0, 0), "trivial", deferred=device.type != "cpu")
    keys = order.training_keys(0, 0, len(dataset), 0, case.batch, case.batch, 0, 1)
    return loader.batches(dataset, keys, workers, pin=device.type == "cuda")


def compare_feeding(copies: Sequence[Image.Image], case: Case, workers: int, rounds: int) -> Comparison:
    """Compare how fast so many decoding processes deliver batches with how fast a training step uses them."""
    ahead = workers * AHEAD
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, Remote(our_steps, case) as steps:
        paths = stored_images.write(Path(folder), "JPEG", stored_images.encode(copies)["JPEG"])
        loaded = feed(paths, case, workers)
        steps()
        for _ in range(rounds):
            ours.append(seconds_per_batch(loaded, ahead, 2 * ahead))
            start = time.perf_counter()
            steps()
            theirs.append(time.perf_counter() - start)
        loaded.close()
    work = f"feed {case.size} px by {workers} processes"
    return Comparison(work, "what a training step takes", case.batch, "images", Timings(ours, theirs))


def recipe(case: Case) -> Run:
    """Return a run of a case on synthetic images. Raises SettingsError, or ValueError for what has no reference."""
    overrides = ["output=unused", "data.directory=unused", f"device={case.device}", f"batch_size={case.batch}"]
    overrides += ["micro_batch=null", f"stages.0.image_size={case.size}", *case.settings]
    config = settings.load(RunSettings, settings.find(case.config), overrides)
    if config.micro_batch == "auto":
        raise ValueError("micro_batch: auto cannot be measured; set a number")
    if config.model.timm is not None:
        raise ValueError("model.timm: has no reference to compare with; omit it")
    device = devices.pick_device(case.device)
    dtype = devices.pick_dtype(config.precision, device, config.model.d_model)
    return Run(config, StoredImages.of([Path()] * 1000, case.tags), device, dtype)


def step_flop(case: Case) -> int:
    """Return the floating-point operations of a training step for one image."""
    run = recipe(case)
    return training_flop(run.config.architecture(len(run.dataset.tags), case.size), case.size)


def our_steps(case: Case, change: Callable[[state.TrainState, Run], object] | None = None) -> Iterator[float]:
    """Take training steps; yield the loss after each. `change` prepares the state that they begin with."""
    run = recipe(case)
    if run.device.type == "cpu":
        devices.keep_memory()
    current = state.initial_state(run)
    current.model.train()
    trainer.choose_matmul(current, run)
    trainer.compile_parts(current.model, run)
    if change is not None:
        change(current, run)
    losses = (train_step(current, current.model, iter(batches), run).loss for batches in _batches(run))
    yield from _after_warmup(losses, run.device)


def reference_steps(case: Case) -> Iterator[float]:
    """Take steps of the reference from the same weights on the same batches; yield the loss after each."""
    run = recipe(case)
    initial = state.initial_state(run).model
    assert isinstance(initial, ViT)
    model = baselines.EagerViT(initial.config).to(run.device)
    model.load_state_dict(initial.state_dict())
    lamb = baselines.LoopedLamb(model.parameters(), OPTIMIZER["lr"])
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.device.type == "cuda")

    def inputs(batch: loader.Batch) -> tuple[Tensor, Tensor]:
        normalized = preprocessing.normalize(batch.images.to(run.device, non_blocking=True)).contiguous()
        return normalized, batch.labels.to(run.device, non_blocking=True).float()

    steps = (baselines.train_step(model, lamb, scaler, list(map(inputs, batches))) for batches in _batches(run))
    yield from _after_warmup(map(float, steps), run.device)


def augmentations(case: Case) -> Iterator[float]:
    """Augment batches on the case's device; yield a value that waits for each."""
    device = recipe(case).device
    pixels = torch.randint(0, 256, (case.batch, case.size, case.size, 3), dtype=torch.uint8, device=device)
    pixels[:, : case.size // 2] = 255  # much of a drawing is white
    keys = [[(number, row) for row in range(case.batch)] for number in range(CYCLE)]
    for draws in cycle([augment.draw(some, augment.SPACES["trivial"], case.size)[0] for some in keys]):
        yield float(augment.apply(pixels.clone().permute(0, 3, 1, 2), draws)[0, 0, 0, 0])


def _batches(run: Run) -> Iterator[list[loader.Batch]]:
    """Yield the micro-batches of one step after the other, from a cycle of a few random batches."""
    micro, size = run.micro_batch, run.stages[0].image_size
    random, steps = torch.Generator().manual_seed(0), []
    for _ in range(CYCLE):
        step = []
        for _ in range(run.share // micro):
            pixels = torch.randint(0, 256, (micro, size, size, 3), dtype=torch.uint8, generator=random)
            rows = torch.randint(len(run.images), (micro,), generator=random)
            labels = torch.from_numpy(run.images.labels(rows.numpy(), len(run.dataset.tags)))
            batch = loader.Batch(pixels.permute(0, 3, 1, 2), labels, rows, rows, [])
            step.append(batch.pin_memory() if run.device.type == "cuda" else batch)
        steps.append(step)
    return cycle(steps)


def _after_warmup(losses: Iterator[float], device: torch.device) -> Iterator[float]:
    """Yield the losses after a GPU's first steps, each when the device has done all of its step."""
    on_gpu = device.type == "cuda"
    for loss in islice(losses, WARMUP if on_gpu else 0, None):
        if on_gpu:
            torch.cuda.synchronize()  # the optimizer's part comes after the loss
        yield loss

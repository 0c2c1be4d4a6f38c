"""The parts of `joytag.benchmarks.gpu`, the most useful first: tests, training, augmentation, tagging, loading."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from joytag.benchmarks import baselines, tagging, training
from joytag.benchmarks.stored_images import TAGS
from joytag.core import devices
from joytag.core.files import write_text
from joytag.core.terminal import print
from joytag.data import decoders
from joytag.data.preprocessing import normalize
from joytag.models.vit import ViTConfig
from joytag.tagging.tagger import Tagger
from joytag.training import optimizers, state
from joytag.training.monitor import peak_flops
from joytag.training.run import Run
from joytag.training.state import TrainState

TESTS = Path(__file__).parents[2] / "tests/training/test_on_gpu.py"
BATCHES = {448: 128, 224: 256}  # samples of a step by image size: one micro-batch
REFERENCE = "eager reference"
TINY: dict[str, Any] = {"num_blocks": 1, "d_model": 32, "mlp_dim": 64, "num_heads": 2, "patch_size": 4}
TINY |= {"cnn_stem": "conv:c=8;ln;relu;conv:c=32"}
Result = dict[str, Any]  # of a part, for JSON


@dataclass(frozen=True)
class Setup:
    """What all parts share: the device's name, the file of the results, and whether to measure a tiny model."""

    device: str
    file: Path
    tiny: bool = False
    ends: float = float("inf")  # the time of `time.monotonic` after which no part begins

    @property
    def rounds(self) -> int:
        """The measured repetitions of a step."""
        return 1 if self.tiny else 8

    def case(self, size: int, settings: tuple[str, ...] = (), batch: int = 1, tags: int = TAGS) -> training.Case:
        """Return a step at an image size, on `batch` times as many samples as usual."""
        if self.tiny:
            small = tuple(f"model.{name}={value}" for name, value in TINY.items())
            return training.Case(size // 14, 8 * batch, self.device, small + settings, tags)
        return training.Case(size, BATCHES[size] * batch, self.device, settings, tags)


# Levers: other ways to take the same steps. `change` prepares a state that training would begin with.


def _channels_last(current: TrainState, run: Run) -> None:
    for parameter in current.model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _fuse_loss(current: TrainState, run: Run) -> None:
    criterion = run.criterion

    def fused(logits: Tensor, labels: Tensor) -> Tensor:
        return criterion(logits, labels)

    vars(run)["criterion"] = torch.compile(fused, dynamic=False)


def _autotune(current: TrainState, run: Run) -> None:
    for part in current.model.parts:
        part.compile(dynamic=False, mode="max-autotune-no-cudagraphs")


def _combine(current: TrainState, run: Run) -> None:
    _channels_last(current, run)
    _fuse_loss(current, run)


def _capture_graphs(current: TrainState, run: Run) -> None:
    """Record forward and backward pass once as CUDA graphs; right only with one micro-batch a step."""
    pixels = torch.zeros(run.micro_batch, 3, *[run.stages[0].image_size] * 2, dtype=torch.uint8, device=run.device)
    noise = torch.rand(run.micro_batch, current.model.noise_sites, device=run.device)
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32, cache_enabled=False):
        torch.cuda.make_graphed_callables(current.model, (normalize(pixels), noise))


@dataclass(frozen=True)
class Lever:
    """Settings of the run where there is one for it, else a change of the state, of the batch or of the tags."""

    settings: tuple[str, ...] = ()
    change: Callable[[TrainState, Run], None] | None = None
    batch: int = 1
    tags: int = TAGS
    only_on_gpu: bool = False


PADDED = 5888  # tags, the next multiple of 128
LEVERS = {
    "ours": Lever(),
    "compile": Lever(("compile=true",)),
    "together": Lever(("compile=true",), _combine, tags=PADDED),  # and channels_last, padded head, fused loss
    "CUDA graphs": Lever(change=_capture_graphs, only_on_gpu=True),
    "twice the micro-batch": Lever(batch=2),
    "channels_last": Lever(change=_channels_last),
    "padded head": Lever(tags=PADDED),
    "fused loss": Lever(change=_fuse_loss),
    "bf16": Lever(("precision=bf16",)),
    "max-autotune": Lever(change=_autotune),
}


def step(setup: Setup, size: int, name: str) -> Result:
    """Measure training steps of the eager reference, or of ours with a lever."""
    lever = LEVERS.get(name, Lever())
    if lever.only_on_gpu and devices.pick_device(setup.device).type != "cuda":
        return {"error": "needs a GPU"}
    torch._dynamo.reset()
    torch._dynamo.config.disable = setup.tiny  # compiling would take minutes on a CPU
    case = setup.case(size, lever.settings, lever.batch, lever.tags)
    steps = training.reference_steps(case) if name == REFERENCE else training.our_steps(case, lever.change)
    result = measured(steps, setup, case.batch)
    peak = peak_flops(devices.pick_device(setup.device))
    if peak is not None:
        result["mfu"] = result["images_per_s"] * training.step_flop(setup.case(size)) / peak
    return result


def measured(values: Iterator[float], setup: Setup, batch: int, warmup: int = 1) -> Result:
    """Time how long a generator takes for each value, which stands for `batch` images."""
    seconds, last = [], list(islice(values, warmup))[-1]
    for _ in range(setup.rounds):
        start = time.perf_counter()
        last = next(values)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    spread = {"ms": 1e3 * median, "least_ms": 1e3 * min(seconds), "most_ms": 1e3 * max(seconds)}
    return {"images_per_s": batch / median, "batch": batch, **spread, "loss": last}


def augmentation(setup: Setup, size: int) -> Result:
    """Measure TrivialAugment of a batch on the device."""
    case = setup.case(size)
    return measured(training.augmentations(case), setup, case.batch, training.CYCLE)


def _lamb(model: nn.Module, name: str = "lamb") -> Callable[[], object]:
    return optimizers.build(model.parameters(), **training.OPTIMIZER | {"name": name}).step


UPDATES: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
    **{name: partial(_lamb, name=name) for name in optimizers.OPTIMIZERS},
    "lamb, compiled": lambda model: torch.compile(_lamb(model)),
    "lamb, a loop over tensors": lambda model: baselines.LoopedLamb(model.parameters(), training.OPTIMIZER["lr"]).step,
    "clipping": lambda model: partial(nn.utils.clip_grad_norm_, list(model.parameters()), 1.0),
}


def update(setup: Setup, name: str) -> Result:
    """Measure an optimizer's step over the released model's parameters, or the clipping of its gradients."""
    torch._dynamo.config.disable = setup.tiny
    model = state.initial_state(training.recipe(setup.case(224))).model
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    take, last = UPDATES[name](model), list(model.parameters())[-1]

    def values() -> Iterator[float]:
        while True:
            take()
            yield float(last.detach().flatten()[0])  # waits for the device

    return measured(values(), setup, 1, warmup=3)


def loading(setup: Setup, size: int) -> Result:
    """Measure how fast all decoding processes deliver batches of stored JPEGs of 512 px."""
    case = setup.case(size)
    workers = max(1, decoders.default_workers(devices.pick_device(setup.device)))
    with tempfile.TemporaryDirectory() as folder:
        paths = tagging.random_images(Path(folder), 4 if setup.tiny else 64, size=(512, 341))
        loaded = training.feed(paths, case, workers)
        seconds = training.seconds_per_batch(loaded, workers * training.AHEAD, 2 * workers * training.AHEAD)
        loaded.close()
        file_kb = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    return {"images_per_s": case.batch / seconds, "processes": workers, "file_kb": file_kb}


def tag(setup: Setup) -> Result:
    """Measure tagging beside the published example's loop, and compare its decisions with those in float32."""
    config, count = ViTConfig(n_tags=TAGS), 64
    if setup.tiny:
        config, count = ViTConfig(n_tags=TAGS, image_size=32, **TINY), 2
    with tempfile.TemporaryDirectory() as folder:
        tagging.random_release(Path(folder), config=config)
        paths = tagging.random_images(Path(folder), count)
        tagger, exact = (Tagger.load(folder, setup.device, precision) for precision in ("auto", "fp32"))
        expected = [result.scores for result in exact.stream(paths)]
        many = paths * (1 if setup.tiny else 16)
        seconds = []
        for images in (paths, many):  # the first time warms up
            start = time.perf_counter()
            scores = [result.scores for result in tagger.stream(images)]
            seconds.append(time.perf_counter() - start)
        example = partial(tagging.published_example, exact.model, exact.tags, device=exact.device)
        example(path=paths[0])
        start = time.perf_counter()
        for path in paths:
            example(path=path)
        example_rate = len(paths) / (time.perf_counter() - start)
    ours, theirs = np.stack(scores[:count]), np.stack(expected)
    threshold = tagging.DEFAULT_THRESHOLD
    return {
        "images_per_s": len(many) / seconds[1],
        "example_images_per_s": example_rate,
        "same_decisions": float(((ours > threshold) == (theirs > threshold)).mean()),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "tagger": str(tagger),
    }


def read(file: Path) -> Result:
    """Return what a file of results holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def store(file: Path, part: str, result: Result) -> None:
    """Add a part's result to the file, atomically."""
    values = read(file)
    values["parts"][part] = result
    write_text(file, json.dumps(values, indent=1) + "\n")


def summary(result: Result) -> str:
    """Format a result in one line."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())


class Recorder:
    """A plugin of pytest: stores and prints the outcome of each test as it ends, with the properties it recorded."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.outcomes: Result = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Store the outcome of a test, or of the set-up that it needs."""
        if report.when != "call" and report.passed:
            return
        outcome = {"outcome": report.outcome, "seconds": report.duration, **dict(report.user_properties)}
        if not report.passed:
            lines = report.longrepr[2:] if isinstance(report.longrepr, tuple) else report.longreprtext.splitlines()
            outcome["reason"] = next((line for line in lines if line.startswith("E ")), lines[-1])[:300]
        name = report.nodeid.rpartition("::")[2]
        self.outcomes[name] = outcome
        store(self.setup.file, "tests", self.outcomes | {"unfinished": True})
        print(f"\n  {name}: {summary(outcome)}", flush=True)


def tests(setup: Setup) -> Result:
    """Run the tests that are marked `gpu`."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that a test can ask for deterministic products
    recorder = Recorder(setup)
    options = ["--override-ini=addopts=", "--noconftest", "-q"]
    options += [f"-pno:{plugin}" for plugin in ("cacheprovider", "faulthandler", "warnings")]
    pytest.main([*options, str(TESTS)], plugins=[recorder])
    if not recorder.outcomes:
        raise ValueError(f"pytest ran no test of {TESTS}")
    return recorder.outcomes


def failed_tests(parts: dict[str, Result]) -> list[str]:
    """Return the names of the tests that failed."""
    outcomes = parts.get("tests", {}).items()
    return [name for name, test in outcomes if isinstance(test, dict) and test["outcome"] == "failed"]


def _steps(*names: str) -> dict[str, Callable[[Setup], Result]]:
    return {f"step {size}: {name}": partial(step, size=size, name=name) for name in names for size in BATCHES}


_FIRST = ("compile", "together")  # levers from which most is expected
PARTS: dict[str, Callable[[Setup], Result]] = {
    "tests": tests,
    **_steps("ours", REFERENCE),
    **{f"augmentation {size}": partial(augmentation, size=size) for size in BATCHES},
    "update: lamb": partial(update, name="lamb"),
    **_steps(*_FIRST),
    "tagging": tag,
    **{f"loading {size}": partial(loading, size=size) for size in BATCHES},
    **_steps(*(name for name in LEVERS if name not in ("ours", *_FIRST))),
    **{f"update: {name}": partial(update, name=name) for name in UPDATES if name != "lamb"},
}

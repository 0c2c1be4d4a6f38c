"""Where processor time goes, by kind of operation: of training steps, and of tagged and evaluated images."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from joytag.benchmarks.cpu import CASE, SIZES
from joytag.benchmarks.tagging import random_images, random_release
from joytag.benchmarks.training import Case, machine, our_steps, recipe
from joytag.core import devices
from joytag.models import inference
from joytag.tagging.tagger import Tagger
from joytag.training import state

# Each operation is of the first kind whose pattern is found in its name.
KINDS = {
    "products": re.compile(r"addmm|::b?mm$|linear_pointwise"),
    "attention": re.compile(r"scaled_dot_product"),
    "convolutions": re.compile(r"conv"),
    "norms": re.compile(r"layer_norm"),
    "activations": re.compile(r"gelu|relu|threshold|clamp_min"),
    "quantization": re.compile(r"aminmax|round|bitwise_xor"),
    "copies": re.compile(r"copy_$|cat$|index_select|index_add|scatter"),
}
OPTIMIZER, REST = "optimizer", "the rest"  # whatever operations the optimizer uses
COLUMNS = (*KINDS, OPTIMIZER, REST)


def measure(repetitions: int) -> str:
    """Measure on one thread, and return a table of shares in percent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            columns = {name: shares(work, repetitions) for name, work in _works(Path(folder)).items()}
    finally:
        torch.set_num_threads(threads)
    lines = [f"{'percent of processor time':32}{''.join(f'{kind:>14}' for kind in COLUMNS)}"]
    for name, found in columns.items():
        lines.append(f"{name:32}{''.join(f'{100 * found[kind]:14.0f}' for kind in COLUMNS)}")
    described = f"{date.today()}, {machine(torch.device('cpu'))}, {devices.cpu_name()}, torch {torch.__version__}"
    return "\n".join([*lines, f"{described}; one thread"])


def _works(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    cases = {f"step of 32 at {size} px": replace(CASE, size=size) for size in SIZES}
    cases["B/16, step of 8 at 224 px"] = Case(224, 8, "cpu")
    works: dict[str, Callable[[], object]] = {name: partial(next, our_steps(case)) for name, case in cases.items()}
    run = recipe(CASE)
    pixels = torch.randint(0, 256, (64, 3, CASE.size, CASE.size), dtype=torch.uint8)
    model = state.new_model(run).eval()
    works[f"predict 64 at {CASE.size} px"] = partial(inference.predict, model, pixels, run.device, run.dtype)
    random_release(folder)
    (image,) = random_images(folder, 1)
    taggers = [Tagger.load(folder, "cpu", precision) for precision in ("auto", "fp32")]
    works |= {f"B/16, tag at {tagger.size} px, {tagger.precision}": partial(tagger, image) for tagger in taggers}
    return works


def shares(work: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Return the shares of COLUMNS in the time of torch's operations; they sum to 1."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repetitions):
            work()
    times = dict.fromkeys(COLUMNS, 0.0)
    for event in profiler.events():
        times[_kind(event)] += event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in times.items()}


def _kind(event: FunctionEvent) -> str:
    caller: FunctionEvent | None = event
    while caller is not None:
        if caller.name.startswith("Optimizer.step"):
            return OPTIMIZER
        caller = caller.cpu_parent
    return next((kind for kind, pattern in KINDS.items() if pattern.search(event.name)), REST)

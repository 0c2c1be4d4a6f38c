"""Speed on a CPU, of the quickstart's model: against torch's library, plain torch and spinning threads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import date

import numpy as np
import torch

from joytag.benchmarks.remote import Remote
from joytag.benchmarks.training import Case, machine, our_steps, recipe, reference_steps
from joytag.core import devices
from joytag.core.spinning import INTERVAL, sleeping_when_busy
from joytag.core.timing import Comparison, Timings, side_by_side, table
from joytag.models import inference, matmul
from joytag.training import state

CASE = Case(64, 32, "cpu", ("precision=fp32",), tags=151, config="openmoji.yaml")
SIZES = (64, 96)
STEPS = 20  # of a round
PREDICTED = 256  # images of a round


def measure(rounds: int) -> str:
    """Measure all, and return a table."""
    cases = [replace(CASE, size=size) for size in SIZES]
    comparisons = [compare_steps(case, rounds, reference) for case in cases for reference in REFERENCES]
    comparisons += [compare_predictions(rounds), *compare_waiting(rounds)]
    run = recipe(CASE)
    library = matmul.pick(state.new_model(run), run.device, run.dtype)
    notes = [f"{comparison.work}: {comparison.note}" for comparison in comparisons if comparison.note]
    described = f"{date.today()}, {machine(run.device)}, {devices.cpu_name()}, torch {torch.__version__}"
    return "\n".join([table(comparisons), f"{described}; float32 products by {library}", *notes])


def compare_steps(case: Case, rounds: int, reference: str) -> Comparison:
    """Compare training steps with one of REFERENCES, each side in its own process, from equal weights."""
    with Remote(our_steps, case) as ours, Remote(REFERENCES[reference], case) as theirs:
        timings = side_by_side(_times(STEPS, ours), _times(STEPS, theirs), rounds)
    apart = np.mean([abs(a / b - 1) for a, b in zip(ours.results, theirs.results, strict=True)])
    work = f"step of {case.batch} at {case.size} px"
    return Comparison(work, reference, STEPS, "steps", timings, f"losses {apart:.1e} apart on average")


def _blas_steps(case: Case) -> Iterator[float]:
    return our_steps(replace(case, settings=(*case.settings, f"matmul={matmul.DEFAULT}")))


REFERENCES = {"torch's library": _blas_steps, "eager, looped LAMB": reference_steps}


def compare_predictions(rounds: int) -> Comparison:
    """Compare predictions with those of torch's own library."""
    run = recipe(CASE)
    model = state.new_model(run).eval()
    pixels = torch.randint(0, 256, (PREDICTED, 3, CASE.size, CASE.size), dtype=torch.uint8)
    library, scores = matmul.pick(model, run.device, run.dtype), dict[str, np.ndarray]()

    def predict(by: str) -> None:
        matmul.use(by, model)
        scores[by] = inference.predict(model, pixels, run.device, run.dtype).sigmoid().numpy()

    timings = side_by_side(lambda: predict(library), lambda: predict(matmul.DEFAULT), rounds)
    matmul.use(matmul.DEFAULT)
    note = f"scores at most {np.abs(scores[library] - scores[matmul.DEFAULT]).max():.1e} apart"
    return Comparison(f"predict at {CASE.size} px", "torch's library", PREDICTED, "images", timings, note)


def compare_waiting(rounds: int) -> list[Comparison]:
    """Compare steps whose threads may sleep with those whose threads spin, on idle cores and beside a busy program."""
    steps = our_steps(CASE)
    kinds: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "on idle cores": nullcontext,
        "beside a busy program": busy_program,
    }
    times: dict[str, Timings] = {where: Timings([], []) for where in kinds}
    for _ in range(rounds + 1):
        for where, program in kinds.items():
            with program():
                times[where].reference.append(_settled(nullcontext(), steps))
                times[where].ours.append(_settled(sleeping_when_busy(), steps))
    return [
        Comparison(f"step {where}", "spinning threads", STEPS, "steps", Timings(each.ours[1:], each.reference[1:]))
        for where, each in times.items()
    ]


@contextmanager
def busy_program() -> Iterator[None]:
    """Context in which another process keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def _settled(context: AbstractContextManager[None], steps: Iterator[float]) -> float:
    """Return the seconds that steps take in a context, once it has noticed what else runs."""
    with context:
        time.sleep(2.5 * INTERVAL)
        start = time.perf_counter()
        for _ in range(STEPS):
            next(steps)
        return time.perf_counter() - start


def _times(count: int, action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does something several times."""

    def repeat() -> None:
        for _ in range(count):
            action()

    return repeat

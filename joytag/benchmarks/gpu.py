"""Measure training and tagging on a GPU, part by part: each is printed and stored as it ends, the most useful first.

The parts run in a process of their own. It is replaced when a part fails, hangs or dies, so that the next ones are
measured all the same; it ends with this one. `joytag.benchmarks.gpu_report` makes a table of the results.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import multiprocessing
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

from joytag.core.errors import ExitCode
from joytag.core.files import write_text

try:
    import torch

    from joytag.benchmarks import training
    from joytag.benchmarks.gpu_parts import PARTS, Result, Setup, failed_tests, read, store, summary
    from joytag.core import devices, signals, terminal
except ImportError as error:
    if __name__ != "__main__":
        raise
    remedy = "make test installs it where there is a network, make gpu-wheels collects it for where there is none"
    sys.stderr.write(f"check-gpu: {error} (Python {platform.python_version()}); {remedy}\n")
    raise SystemExit(ExitCode.USER_ERROR) from None

LIMIT = 100  # seconds of a part
LIMITS = {"tests": 210, "step 448: max-autotune": 150}  # those that need more


def left(setup: Setup) -> list[str]:
    """Return the parts without a result, in order; those of a tiny model at one image size."""
    done = read(setup.file)["parts"]
    names = [name for name in PARTS if not (setup.tiny and "224" in name)]
    return [name for name in names if done.get(name, {"unfinished": True}).get("unfinished")]


def measure(setup: Setup) -> None:
    """Measure the parts that are left until one fails: this process may then be unable to use a GPU."""
    if setup.tiny:
        torch.set_num_threads(1)  # several would mostly wait for each other
    for name in left(setup):
        start, failed = time.monotonic(), False
        limit = LIMITS.get(name, LIMIT) * (10 if setup.tiny else 1)  # a CPU may be busy
        seconds = min(limit, setup.ends - start)
        if seconds <= 0:
            store(setup.file, name, {"error": "no time was left"})
            continue
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            result = PARTS[name](setup)
        except Exception as error:
            result, failed = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}, True
        faulthandler.cancel_dump_traceback_later()
        store(setup.file, name, result | {"seconds": time.monotonic() - start})
        shown = "done" if name == "tests" and not failed else summary(result)  # it has printed each test
        terminal.print(f"{name}: {shown}", flush=True)
        if failed or name == "tests":  # whose settings would stay
            return
        gc.collect()
        if devices.pick_device(setup.device).type == "cuda":
            torch.cuda.empty_cache()


def _measure_apart(setup: Setup, parent: int) -> None:
    """Measure in a process of its own, which ends with its parent."""
    signals.die_with_parent(parent)
    measure(setup)
    sys.stdout.flush()
    os._exit(ExitCode.DONE)  # libraries that crash at the end of a process do not cost the next part its figure


def run(setup: Setup) -> Result:
    """Measure all parts, in processes that are replaced when they fail; returns what the file holds in the end."""
    device = devices.pick_device(setup.device)
    about = {"date": str(date.today()), "machine": training.machine(device), "tiny": setup.tiny}
    about |= {"torch": torch.__version__, "python": platform.python_version(), "cpu_cores": os.cpu_count()}
    write_text(setup.file, json.dumps(about | {"parts": {}}) + "\n")
    while left(setup):
        process = multiprocessing.get_context("spawn").Process(target=_measure_apart, args=(setup, os.getpid()))
        with signals.starting_processes():
            process.start()
        try:
            process.join()
        finally:
            process.kill()
        if process.exitcode and (names := left(setup)):
            so_far = read(setup.file)["parts"].get(names[0], {})
            so_far.pop("unfinished", None)
            error = f"its process ended with code {process.exitcode}; a part may take {LIMITS.get(names[0], LIMIT)} s"
            store(setup.file, names[0], so_far | {"error": error})
            terminal.print(f"{names[0]}: {error}", flush=True)
    return read(setup.file)


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Exits with 2 without the device, with 1 when a test failed, with 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script on a CPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part goes on after these (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file of the results (default: gpu.json)")
    given = parser.parse_args(arguments)
    try:
        devices.pick_device(given.device)
    except ValueError as error:
        terminal.print(f"check-gpu: {error}; nothing was measured", file=sys.stderr)
        raise SystemExit(ExitCode.USER_ERROR) from None
    setup = Setup(given.device, given.json.absolute(), given.tiny, time.monotonic() + 60 * given.minutes)
    try:
        parts = run(setup)["parts"]
    except KeyboardInterrupt:
        terminal.print(f"check-gpu: stopped; {given.json} has what was measured", file=sys.stderr)
        raise SystemExit(ExitCode.INTERRUPTED) from None
    failed = failed_tests(parts)
    missing = [name for name, part in parts.items() if "error" in part]
    terminal.print(f"{given.json}: {len(parts)} parts; without figures: {', '.join(missing) or 'none'}")
    terminal.print(f"failed tests: {', '.join(failed) or 'none'}")
    raise SystemExit(ExitCode.FAILED if failed or "tests" in missing else ExitCode.DONE)


if __name__ == "__main__":
    main()

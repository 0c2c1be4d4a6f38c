"""Fixtures that several rooms share: a tiny dataset, run settings, taggers, commands."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import app_pages
import hypothesis
import numpy as np
import pytest
import torch
import yaml
from browser import Browser
from commands import Call, Done
from datasets import make_dataset
from exports import write_exports, write_release
from paths import ROOT
from PIL import Image
from taggers import predict_taggers, write_taggers
from training_runs import miniature

from joytag.cli import command
from joytag.core import child_process, signals
from joytag.evaluation.resampled import Resampled
from joytag.sweeps import results
from joytag.sweeps.config import Sweep
from joytag.training.config import RunSettings

# Loaded at start by `offline`: only this machine can be reached.
NO_NETWORK = """
import socket
def refuse(self, address, connect=socket.socket.connect):
    if self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1", "localhost"):
        return connect(self, address)
    raise OSError("network unreachable")
socket.socket.connect = refuse
"""

IMAGES = {"train": 50, "validation": 12}

# Folders and files whose tests must pass on every system: tagging, fine-tuning, evaluating, and what these need.
PORTABLE = """
    core data evaluation models tagging test_portable.py
    data_prep/test_build.py data_prep/test_mixed_folder.py data_prep/test_scan.py data_prep/test_sidecars.py
    training/test_monitor.py training/test_resume.py training/test_transfer.py
    cli/test_command.py cli/test_compare.py cli/test_evaluate.py cli/test_finetune.py cli/test_journeys.py
    cli/test_show.py cli/test_tag.py
"""


hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    """Heed Ctrl-C, also where the suite was started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Chromium, and those of PORTABLE that `make test` runs."""
    portable = [ROOT / "tests" / name for name in PORTABLE.split()]
    for item in items:
        if isinstance(item, pytest.Function) and {"browser", "chromium"} & set(item.fixturenames):
            item.add_marker("pages")
        is_left_out = any(item.get_closest_marker(name) for name in ("slow", "faults", "pages"))
        if not is_left_out and any(item.path.is_relative_to(path) for path in portable):
            item.add_marker("portable")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keep what is cached, such as models for engines, out of the user's directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOYTAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handlers: after an exception a run keeps its own, since its process ends."""
    before = {number: signal.getsignal(number) for number in signals.CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory) -> Path:
    """A dataset of coloured noise in the real format: 50 training and 12 validation images, 6 tags."""
    return make_dataset(tmp_path_factory.mktemp("dataset"), IMAGES)


@pytest.fixture(scope="session")
def taggers(tmp_path_factory) -> Path:
    """A directory with a dataset and four taggers; see `write_taggers`."""
    return write_taggers(tmp_path_factory.mktemp("taggers"))


@pytest.fixture(scope="session")
def predicted(taggers) -> dict[str, Path]:
    """The predictions directory of each tagger, by name."""
    return predict_taggers(taggers)


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> Path:
    """A release with the reports of an evaluation, on the dataset in data/ beside it; see `write_release`."""
    return write_release(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="session")
def exports(measured) -> Path:
    """A directory with an export of `measured` in each layout."""
    return write_exports(measured)


@pytest.fixture(scope="session")
def open_app():
    """A function that opens a client of an app with the small release; see `app_clients.opener`."""
    from app_clients import opener  # not at the top: the tests on a GPU have no fastapi

    with opener() as open_client:
        yield open_client


@pytest.fixture(scope="session")
def client(open_app):
    """A test client of the app with its default settings."""
    return open_app()


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Eight PNG files of noise, of different sizes."""
    from app_clients import picture

    return [picture(number) for number in range(8)]


@pytest.fixture(scope="module")  # not longer: while it runs, no other test of the process could run a loop of asyncio
def chromium():
    """A headless Chromium, controlled by Playwright."""
    with app_pages.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium that opens files."""
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def visit(chromium):
    """A function that opens the page of an app; see `app_pages.visits`."""
    with app_pages.visits(chromium) as visit:
        yield visit


@pytest.fixture(scope="session")
def gradients() -> dict[str, bytes]:
    """Six PNG files of gradients, by name."""
    return app_pages.gradients()


@pytest.fixture
def run_values(dataset_directory, tmp_path) -> dict:
    """Run settings of a miniature of the recipe; see `miniature`."""
    return miniature(tmp_path / "run", dataset_directory)


@pytest.fixture
def run_settings(run_values) -> RunSettings:
    return RunSettings.model_validate(run_values)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path) -> Call:
    """Run a command in a directory without configs, in this process to save the imports."""

    def run(name: str, *arguments: object) -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(warnings, "showwarning", warnings.showwarning)  # restores it afterwards
            try:
                command.run(name, [str(argument) for argument in arguments])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def ignoring_case(monkeypatch) -> None:
    """Let names that differ in case mean one file where they are looked up, as on Windows and macOS."""

    def patch(name: str) -> None:
        before = getattr(os, name)

        def look_up(path, *rest, **options):
            try:
                return before(path, *rest, **options)
            except FileNotFoundError:
                found = Path(os.sep)
                for part in Path(path).absolute().parts[1:]:
                    with os.scandir(found) as entries:
                        same = [entry.name for entry in entries if entry.name.casefold() == part.casefold()]
                    if not same:
                        raise
                    found /= same[0]
                return before(found, *rest, **options)

        monkeypatch.setattr(os, name, look_up)

    for name in ("stat", "lstat"):
        patch(name)


@pytest.fixture
def offline(tmp_path) -> Call:
    """Run a command in a process of its own, without network and with another home directory."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}

    def run(name: str, *arguments: object) -> Done:
        line = [sys.executable, "-m", "joytag", name, *map(str, arguments)]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder of four images."""
    folder = tmp_path / "my images"
    folder.mkdir()
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (30, 20), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def write_sweep(run_values, tmp_path) -> Callable[..., Path]:
    """Write a sweep over the miniature run, two rates and two seeds unless changed, and return its file."""

    def write(**changes) -> Path:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(run_values))
        values = {"base": "base.yaml", "output": str(tmp_path / "sweep"), "seeds": 2}
        values |= {"axes": {"optimizer.lr": [0.01, 0.02]}}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
        return path

    return write


def quality(file: Path) -> Resampled:
    """Read what a cheap trial has instead of predictions."""
    value = float(file.read_text())
    return Resampled(value, np.full(10, value))


@pytest.fixture
def cheap_sweep(monkeypatch, write_sweep, tmp_path) -> Callable[..., Sweep]:
    """Let trials be cheap ones, see `cheap_trial`, and return a sweep of them."""
    monkeypatch.setitem(child_process.MODULES, "joytag", "cheap_trial")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]))
    monkeypatch.setattr(results, "measure", lambda _, trial: quality(trial.results / "predictions" / "quality"))
    monkeypatch.setenv("ENOUGH", str(tmp_path / "enough"))
    return lambda **changes: Sweep(write_sweep(**changes))

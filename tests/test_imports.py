"""The layering that the tree in README.md shows, read from the source, and imports that leave no trace."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (
    "settings records image augment model loss schedule metrics distributed captions cli timing health interrupts "
    "charts swaps",
    "config data optim release quantize tracker reference predictions onnx_tagger bootstrap crossfit mistakes groups",
    "checkpoint evaluate finetune plan compare analysis",
    "state tagger page",
    "train folder report entrants benchmark",
    "pace arena compare_report",
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules.split()}
OPEN_TO_DATA_PREP = {"records", "image", "settings", "cli", "timing"}
MODULES = sorted(path for path in (ROOT / "joytag").glob("*.py") if path.stem != "__init__")
PREPARATION = sorted((ROOT / "data_prep").glob("*.py"))
OURS = {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}

IMPORT_EVERYTHING = """
import importlib, socket, sys

attempts = []

def refuse(self, address, *rest):
    attempts.append(address)
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = refuse
for module in sys.argv[1:]:
    importlib.import_module(f"joytag.{module}")
import torch
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert not attempts, f"sockets were opened to {attempts}"
"""


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, package, module) of every import of our own code, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = f"{path.parent.name}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, module, *_ = [*name.split("."), ""]
            if package in OURS:
                yield node.lineno, package, module


def length(path: Path, function: str) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_of_the_library_only_fall(path):
    assert path.stem in LEVEL, f"joytag/{path.name} has no level: give it one, here in LEVELS and in README.md's tree"
    for line, package, module in imports(path):
        place = f"joytag/{path.name}:{line} imports {package}.{module}"
        assert package == "joytag", f"{place}, but the library stands on its own"
        assert module in LEVEL, f"{place}, which is no module of the library"
        assert LEVEL[module] < LEVEL[path.stem], (
            f"{place} of level {LEVEL[module]}, but at level {LEVEL[path.stem]} it may import only lower levels"
        )


def test_every_module_with_a_level_exists():
    assert set(LEVEL) == {path.stem for path in MODULES}


@pytest.mark.parametrize("path", PREPARATION, ids=lambda path: path.stem)
def test_preparation_and_training_meet_at_files(path):
    for line, package, module in imports(path):
        place = f"data_prep/{path.name}:{line} imports {package}.{module}"
        assert package in ("joytag", "data_prep"), f"{place}, but preparation uses only the library"
        assert package == "data_prep" or module in OPEN_TO_DATA_PREP, (
            f"{place}, but data_prep may import only {sorted(OPEN_TO_DATA_PREP)} of joytag"
        )


def test_imports_are_seen_in_every_form(tmp_path):
    path = tmp_path / "joytag" / "example.py"
    path.parent.mkdir()
    path.write_text(
        "import os, joytag.model as m\nfrom joytag import data, image\nfrom joytag.model import ViT\n"
        "from . import loss\nfrom .optim import build\ndef f():\n    from data_prep.tags import canonicalise\n"
    )
    modules = [module for _, _, module in imports(path)]
    assert modules == ["model", "data", "image", "model", "loss", "optim", "tags"]


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_stay_thin(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 60, f"scripts/{path.name} has {lines} lines; move what it does into the library"


@pytest.mark.parametrize(("function", "limit"), [("train", 45), ("train_step", 30)])
def test_the_loop_fits_on_a_screen(function, limit):
    lines = length(ROOT / "joytag" / "train.py", function)
    assert lines < limit, f"joytag.train.{function} has {lines} lines; keep it under {limit}"


def test_importing_the_library_touches_no_gpu_no_network_and_no_file(tmp_path):
    folders = {name: tmp_path / name for name in ("here", "home")}
    for folder in folders.values():
        folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL"))} | {
        "HOME": str(folders["home"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", IMPORT_EVERYTHING, *(path.stem for path in MODULES)]
    done = subprocess.run(command, cwd=folders["here"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = [path.relative_to(tmp_path).as_posix() for folder in folders.values() for path in folder.rglob("*")]
    assert not left, f"importing joytag wrote {left}"

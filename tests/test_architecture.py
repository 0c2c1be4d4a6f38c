"""The laws of docs/architecture.md: allowed imports, the command line, and the side effects of importing."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

PACKAGES = (  # a package imports only packages above it
    "core",
    "data",
    "models",
    "evaluation",
    "training",
    "tagging",
    "reports",
    "export",
    "sweeps",
    "app",
    "benchmarks",
    "cli",
)
OPEN_TO_DATA_PREP = {"core", "data"}
MAY_NAME_RUN_SETTINGS = {"training", "sweeps", "benchmarks", "cli"}
MODULES = sorted((ROOT / "joytag").rglob("*.py"))
PREPARATION = sorted((ROOT / "data_prep").rglob("*.py"))

IMPORT_EVERYTHING = """
import importlib, socket, sys

attempts = []

def refuse(self, address, *rest):
    attempts.append(address)
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = refuse
for module in sys.argv[1:]:
    importlib.import_module(module)
import torch
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert not attempts, f"sockets were opened to {attempts}"
"""


def dotted(path: Path) -> str:
    """`joytag/core/files.py` to `joytag.core.files`; a package's `__init__.py` to the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of one of `modules`, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write the module's whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            module = name if name in modules else name.rpartition(".")[0]
            if module in modules:
                yield node.lineno, module


OURS = {dotted(path) for path in [*MODULES, *PREPARATION]}


def package(module: str) -> str:
    """`joytag.core.files` to `core`; "" for `joytag` itself."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_of_the_library_only_fall(path):
    own = package(dotted(path))
    if own in ("", "__main__"):
        return  # what users import and run
    assert own in PACKAGES, f"joytag/{own} has no position: give it one in PACKAGES and in README.md's tree"
    for line, module in imports(path, OURS):
        location = f"{dotted(path)}:{line} imports {module}"
        if own != "cli":
            assert module.startswith("joytag."), f"{location}, but the library stands on its own"
        if module.startswith("joytag."):
            order = PACKAGES.index(package(module)), PACKAGES.index(own)
            assert order[0] <= order[1], f"{location}, but a package imports only packages above it: {PACKAGES}"


def test_documents_list_the_packages_in_their_order():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("\n\n## Laws")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == PACKAGES
    tree = re.findall(r"^joytag/(\w+)/", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in tree if name in PACKAGES] == list(PACKAGES)


@pytest.mark.parametrize("files", [MODULES, PREPARATION], ids=["joytag", "data_prep"])
def test_no_modules_import_each_other_in_a_circle(files):
    graph = {dotted(path): {module for _, module in imports(path, OURS)} - {dotted(path)} for path in files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"circular imports: {' <- '.join(error.args[1])}") from None


@pytest.mark.parametrize("path", PREPARATION, ids=dotted)
def test_preparation_and_training_meet_at_files(path):
    for line, module in imports(path, OURS):
        assert module.startswith("data_prep") or package(module) in OPEN_TO_DATA_PREP, (
            f"{dotted(path)}:{line} imports {module}, but data_prep may import only {OPEN_TO_DATA_PREP} of joytag"
        )


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_training_and_what_starts_it_know_the_run_settings(path):
    if package(dotted(path)) not in MAY_NAME_RUN_SETTINGS:
        for line, module in imports(path, OURS):
            assert module != "joytag.training.config", (
                f"{dotted(path)}:{line} imports {module}; take plain arguments instead"
            )


def test_imports_are_seen_in_every_form(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        "import os, joytag.models.vit as m\nfrom joytag.data import loader, images\n"
        "from joytag.models.vit import ViT\ndef f():\n    from data_prep.tags import resolve_aliases\n"
    )
    modules = [module.rpartition(".")[2] for _, module in imports(path, OURS)]
    assert modules == ["vit", "loader", "images", "vit", "tags"]


@pytest.mark.parametrize("path", [*MODULES, *PREPARATION], ids=dotted)
def test_the_library_does_not_know_the_command_line(path):
    if package(dotted(path)) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            text = node.value.replace("docker run --shm-size", "")
            named = re.search(r"(?<![\w-])--[a-z]\S*|\.venv|scripts/", text)
            assert not named, (
                f"{dotted(path)}:{node.lineno} names {named[0]}; name the setting, or let joytag/cli add it"
            )


@pytest.mark.parametrize("path", [*MODULES, *PREPARATION], ids=dotted)
def test_modules_print_without_control_characters(path):
    """By joytag.core.terminal.print: names of files and tags may hold anything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    if any(call.func.id == "print" for call in calls if isinstance(call.func, ast.Name)):
        froms = [
            node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "joytag.core.terminal"
        ]
        imported = {alias.name for node in froms for alias in node.names}
        assert "print" in imported or dotted(path) == "joytag.core.terminal", "import print from joytag.core.terminal"
    if package(dotted(path)) != "core":
        assert not list(imports(path, {"rich.console"})), "print tables by joytag.core.terminal.show"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_only_run_a_command(path):
    name = "tag" if path.stem == "predict" else path.stem
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if line] == [
        f'"""`joytag {name}`."""',
        "from joytag.cli.command import run",
        'if __name__ == "__main__":',
        f'    run("{name}")',
    ]


@pytest.mark.parametrize(("function", "limit"), [("trainer.train", 45), ("step.train_step", 30)])
def test_the_loop_fits_on_a_screen(function, limit):
    module, function = function.split(".")
    path = ROOT / "joytag" / "training" / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    assert lines < limit, f"{dotted(path)}.{function} has {lines} lines; keep it under {limit}"


def test_importing_the_library_touches_no_gpu_no_network_and_no_file(tmp_path):
    folders = {name: tmp_path / name for name in ("here", "home")}
    for folder in folders.values():
        folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL"))} | {
        "HOME": str(folders["home"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", IMPORT_EVERYTHING, *(dotted(path) for path in MODULES)]
    done = subprocess.run(command, cwd=folders["here"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = [path.relative_to(tmp_path).as_posix() for folder in folders.values() for path in folder.rglob("*")]
    assert not left, f"importing joytag wrote {left}"

"""The installed package: what the wheel holds, what runs without the extras, what importing it costs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image

from joytag.cli import command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
HIDE = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(',')))\n"
TAG = f"""
{HIDE}
import joytag
assert "torch" not in sys.modules
from joytag import Tagger
from joytag.cli.command import main
main()
print(*(name for name, module in sys.modules.items() if module), file=sys.stderr)
"""
EVERY_COMMAND = """
from joytag.cli import command
for name in command.COMMANDS:
    try:
        command.run(name, ["--help"])
    except SystemExit as end:
        print(f"exit {end.code}", file=sys.stderr)
"""


def modules(extra: str) -> set[str]:
    """The names to import of the packages of an extra, or of the base install."""
    requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names = [re.split(r"[>\[]", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names if name != "joytag"}


def python(code: str, *arguments: object, cwd: Path = ROOT, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python code that imports from `path`, and not from the working directory."""
    environment = os.environ | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy of the packages."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("joytag", "data_prep", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    done = python(BUILD, output, cwd=copy, path=copy)
    assert done.returncode == 0, done.stderr
    [path] = output.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    expected = {path.relative_to(ROOT).as_posix() for name in ("joytag", "data_prep") for path in files(ROOT / name)}
    expected |= {f"joytag/{path.relative_to(ROOT).as_posix()}" for path in files(ROOT / "configs")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"joytag/py.typed", "joytag/configs/data/blacklist.txt", "data_prep/tools/openmoji.csv"} <= names


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc"]


def test_the_installed_package_finds_its_configs_from_any_directory(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    arguments = ["train", "--config", "b16_448.yaml", "--dry-run", "data.tags=5813"]
    code = "from joytag.cli.command import main; main()"
    done = python(code, *arguments, cwd=tmp_path / "elsewhere", path=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "91,491,509" in done.stdout


def test_tagging_works_without_the_extras_and_imports_none_of_them(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    extras = set[str]().union(*map(modules, PROJECT["optional-dependencies"])) - modules("")
    arguments = ["--model", ROOT / "tests/fixtures/release_tiny", "--output", "print", "--threshold", "0.01", tmp_path]
    done = python(TAG, ",".join(extras), "tag", *arguments)
    assert done.returncode == 0, done.stderr
    assert "red.png" in done.stdout
    assert not {name.partition(".")[0] for name in done.stderr.split()} & (extras | {"sympy"})  # a second to import


def test_a_command_without_its_extra_names_it_in_one_line():
    done = python(HIDE + EVERY_COMMAND, ",".join(modules("train")))
    lines = done.stderr.splitlines()
    endings = {"exit 0": 0, "exit 2": 0}
    for line in lines:
        if line in endings:
            endings[line] += 1
        else:
            assert re.fullmatch(r"joytag \w+: \w+ is not installed; run: pip install 'joytag\[train\]'", line)
    assert endings["exit 2"] == len(lines) - len(command.COMMANDS) > 0


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"].keys() - {"dev"}))
def test_the_error_for_a_missing_package_names_its_extra(extra):
    for package in modules(extra):
        assert command.missing(package) == f"{package} is not installed; run: pip install 'joytag[{extra}]'"

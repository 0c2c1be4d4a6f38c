"""README.md and docs/: links exist, the tree is true, commands and examples work."""

import ast
import re
import shlex
import shutil
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paths import ROOT
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

import joytag
from data_prep.config import BuildSettings
from data_prep.sources.registry import KINDS
from joytag.cli import finetune
from joytag.cli.command import COMMANDS
from joytag.core import settings
from joytag.core.errors import ExitCode
from joytag.sweeps.config import Sweep
from joytag.training.config import RunSettings

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SCRIPTS = {"predict": "tag"}  # scripts whose command has another name
FOREIGN = {"--help", "--max-restarts", "--requeue", "--shm-size"}  # flags of all commands and of other programs
SHORT = ["stages.0.samples=32", "tracking.wandb=disabled"]  # settings that cut training short
TAGS = ["happy", "hand", "animal", "white"]  # in configs/groups/openmoji.yaml

pytestmark = pytest.mark.filterwarnings("ignore:groups")  # most of its tags are not in such a small dataset


def name(path: Path) -> str:
    """A page's path within the project."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in a language."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, kind, code in blocks if kind == language]


def commands(path: Path) -> list[list[str]]:
    """The words of each command in a page's shell blocks, or in the comments that open a config."""
    if path.suffix == ".yaml":
        code = "\n".join(re.findall(r"^#   +(.*)", path.read_text(encoding="utf-8"), re.MULTILINE))
    else:
        code = "\n".join(blocks(path, "sh"))
    lines = re.sub(r"\\\n", " ", code).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline(path: Path) -> list[str]:
    """The pieces of code within a page's sentences and tables."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def listed() -> list[list[str]]:
    """The beginnings of the commands that docs/commands.md lists as not run."""
    table = (ROOT / "docs/commands.md").read_text(encoding="utf-8").partition("| why it is not run |")[2]
    return [row.split() for row in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)]


def subcommand(words: list[str]) -> list[str] | None:
    """The words after `joytag` of a command in any of its spellings; None for other programs."""
    if words[0] == "torchrun":
        launch = parse_torchrun(words[1:])
        start = ["-m"] if launch.module else []
        return subcommand(["python", *start, launch.training_script, *launch.training_script_args])
    if words[:3] == ["python", "-m", "joytag"]:
        return words[3:]
    if words[0] == "python" and (script := re.fullmatch(r"scripts/(\w+)\.py", words[1])):
        assert (ROOT / words[1]).exists(), words[1]
        return [SCRIPTS.get(script[1], script[1]), *words[2:]]
    return words[1:] if words[0] == "joytag" else None


def check(words: list[str]) -> None:
    """Parse a command with its own parser, and its config and settings with theirs. Raises ValueError."""
    name_and_arguments = subcommand(words)
    if name_and_arguments is not None:
        assert name_and_arguments[0] in COMMANDS, f"{name_and_arguments[0]} is not a command"
        given = import_module(f"joytag.cli.{name_and_arguments[0]}").parse(name_and_arguments[1:])
        if name_and_arguments[0] == "train":
            settings.load(RunSettings, settings.find(given.config), given.overrides)
        if name_and_arguments[0] == "finetune":
            finetune.build_settings(given, Path(given.model))
            of_run = [override for override in given.overrides if not finetune.is_of_dataset(override)]
            settings.load(RunSettings, settings.find(given.config), of_run)
        if name_and_arguments[0] == "sweep":
            Sweep(settings.find(given.config, "sweeps"), given.overrides)
        if name_and_arguments[0] == "build":
            settings.load(BuildSettings, settings.find(given.config, "data"), given.overrides)
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), f"no target {words[1]}"
    else:
        assert words[:2] == ["pip", "install"], f"{words[0]}: this test knows no such program"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra in re.findall(r"\[(.*?)\]", words[-1]):
            assert set(extra.split(",")) <= project["optional-dependencies"].keys(), words[-1]


def run(words: list[str]) -> None:
    """Run a command in this process, training cut short."""
    command, *arguments = subcommand(words) or [""]
    if command == "finetune" or (command == "train" and "--dry-run" not in arguments):
        arguments += SHORT
    import_module(f"joytag.cli.{command}").main(arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A directory with what the pages refer to, in miniature: images, datasets, runs with releases and reports."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for folder in ("my_images", "more_images", "emoji"):
        (root / folder).mkdir()
        for number in range(40 if folder == "emoji" else 12):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            path = root / folder / f"{number}.png"
            Image.fromarray(pixels).resize((60, 48), Image.Resampling.BICUBIC).save(path)
            if folder != "more_images":
                tags = [TAGS[number % 4], TAGS[number // 2 % 4], *(["my tag"] if folder == "my_images" else [])]
                path.with_suffix(".txt").write_text(", ".join(tags))
    shutil.copy(root / "emoji/0.png", root / "image.png")
    with Image.open(root / "emoji/0.png") as image:  # a copy, for the sheet of copies
        image.save(root / "emoji/40.jpg", quality=95)
    shutil.copy(root / "emoji/0.txt", root / "emoji/40.txt")
    (root / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        build = "joytag build --config configs/data/folder.yaml sources.0.path=emoji output=data/openmoji"
        train = "joytag train --config openmoji.yaml"
        evaluate = "joytag evaluate --model runs/openmoji/release --data data/openmoji"
        for command in (build, train, evaluate):
            run(command.split())
    shutil.copytree(root / "data/openmoji", root / "data/danbooru2021")
    for copy in ("a", "b", "b16_448"):
        shutil.copytree(root / "runs/openmoji", root / "runs" / copy, ignore=shutil.ignore_patterns("checkpoints"))
    return root


@pytest.fixture
def stage(template, tmp_path, monkeypatch) -> Path:
    """A copy of the template, which is the working directory."""
    root = tmp_path / "stage"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_tree_repeats_the_sentences_of_the_packages():
    tree = next(block for block in blocks(README, "") if "joytag/core/" in block)
    written = dict(line.split(maxsplit=1) for line in tree.splitlines())
    for directory in written:
        assert (ROOT / directory).is_dir(), directory
    sentences = {}
    for path in [*(ROOT / "joytag").rglob("__init__.py"), *(ROOT / "data_prep").rglob("__init__.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sentences[f"{name(path.parent)}/"] = docstring.splitlines()[0]
    assert {path: text for path, text in written.items() if path in sentences} == sentences


def anchors(path: Path) -> set[str]:
    """The fragments that links to a page may have, as GitHub forms them from headings."""
    headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_images_exist(page):
    for image, text, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert text or not image, f"{target}: an image needs a description"
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(there), f"{target}: no such heading"


def test_every_page_is_linked_from_the_readme():
    text = README.read_text(encoding="utf-8")
    assert [path for path in PAGES[1:] if f"]({name(path)})" not in text] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name)
def test_every_command_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_and_settings_in_sentences_exist(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    known = FOREIGN.copy()
    for command in COMMANDS:
        known |= flags(command, capsys)
    for code in inline(page):
        words = code.split()
        if words[0] == "joytag" and len(words) > 1:
            assert words[1] in (*COMMANDS, "COMMAND", "--help"), f"`{code}`: no such command"
        for word in words:
            if word.startswith("--"):
                assert word in known, f"`{code}`: no command has {word}"
        if re.fullmatch(r"[a-z_]+(\.\w+)*=[^\s=]+", code) and code != "section.key=value":
            assert is_setting(code), f"`{code}`: no such setting"


def flags(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that a command's help names, those of its subjects included."""
    subjects: list[list[str]] = [[]]
    if command == "benchmark":
        subjects = [["step"], ["metadata"], ["groups"], ["tag"]]
    for subject in subjects:
        with pytest.raises(SystemExit):
            import_module(f"joytag.cli.{command}").parse([*subject, "--help"])
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def is_setting(override: str) -> bool:
    """Whether an override fits a run or a dataset."""
    schemas: list[tuple[Any, str]] = [(RunSettings, "finetune"), (RunSettings, "b16_448")]
    for schema, config in [*schemas, (BuildSettings, "data/folder")]:
        try:
            settings.load(schema, Path(f"configs/{config}.yaml"), [override])
        except ValueError:
            continue
        return True
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_run_in_the_order_of_the_page(page, stage):
    for words in commands(page):
        if not any(words[: len(start)] == start for start in listed()):
            run(words)


def test_only_commands_that_occur_are_listed_as_not_run():
    written = [words for page in PAGES for words in commands(page)]
    for start in listed():
        assert any(words[: len(start)] == start for words in written), f"{shlex.join(start)} is in no page"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_examples_run(page, stage):
    for code in blocks(page, "python"):
        exec(compile(code, name(page), "exec"), {})


def test_all_kinds_of_sources_are_described():
    table = (ROOT / "docs/datasets.md").read_text(encoding="utf-8").partition("| kind |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == KINDS.keys()


def test_all_exit_codes_are_explained():
    codes = re.findall(r"^\| (\d+) \|", (ROOT / "docs/long-runs.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in codes] == list(ExitCode)


def test_variants_of_the_recipe_exist():
    table = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("| `configs/` |")[2].partition("\n\n")[0]
    names = [name for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert names
    assert [name for name in names if not (ROOT / f"configs/{name}.yaml").exists()] == []


def test_all_commands_are_in_the_list():
    table = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `joytag (\w+)` \| \[", table, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("joytag tag --modle x my_images", "--model"),
        ("joytag train --config openmojo.yaml", "openmojo.yaml"),
        ("joytag train --config openmoji.yaml optimizer.lrr=1", "optimizer.lrr"),
        ("joytag build --config openmoji.yaml outputt=x", "outputt"),
        ("python scripts/predict.py my_images", "--model"),
        ("torchrun --nproc-per-node 8 -m joytag evaluate --modell x", "--modell"),
    ],
)
def test_a_mistyped_command_is_noticed(command, wrong, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=wrong):
        check(command.split())


def test_pre_commit_runs_what_make_test_runs():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ntest:")[2].split("\n\n")[0]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert re.findall(r"^\t\$\(BIN\)/(.*)", recipe, re.MULTILINE) == [
        hook["entry"].removeprefix(".venv/bin/") for hook in hooks
    ]


def test_the_workflow_runs_the_checks_on_all_supported_versions_of_python():
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_citation_and_changelog_name_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == joytag.__version__
    assert f"## [{joytag.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_files_to_touch_exist_and_are_at_most_four():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("| to add |")[2]
    for row in re.findall(r"^\| an? .*", table, re.MULTILINE):
        addition, touched, tables = (cell.strip() for cell in row.strip("| ").split(" | "))
        paths = re.findall(r"`([^`]+)`", touched)
        assert len(paths) <= 4, addition
        known = [ROOT / path for path in paths if "NAME" not in path]
        assert all(path.exists() for path in known), addition
        assert any(tables.strip("`") in path.read_text(encoding="utf-8") for path in known), f"{addition}: no {tables}"

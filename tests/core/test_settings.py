"""Configurations are read strictly, and every error is one line that helps."""

from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from pydantic import Field

from data_prep.build import BuildSettings
from joytag.core import settings
from joytag.core.settings import Choice, PathText, Settings, SettingsError
from joytag.training.config import RunSettings

CONFIGS = ROOT / "configs"
SHIPPED: list[tuple[type[Settings], Path]] = [(RunSettings, path) for path in sorted(CONFIGS.glob("*.yaml"))]
SHIPPED += [(BuildSettings, path) for path in sorted((CONFIGS / "data").glob("*.yaml"))]
shipped = pytest.mark.parametrize(("schema", "path"), SHIPPED, ids=[path.name for _, path in SHIPPED])

RUN = "output: runs/x\ndata: {directory: data/x}\nstages: [{image_size: 224, samples: 220_000_000}]\n"


class Row(Settings):
    size: int
    label: str = ""


class Inner(Settings):
    rate: float = 0.1
    steps: int | None = None


class Example(Settings):
    name: str
    inner: Inner = Inner()
    rows: list[Row] = []
    words: list[str] = []
    count: int = Field(default=1, ge=1)


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "example.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def mistake(schema: type[Settings], path: Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.load(schema, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@shipped
def test_every_shipped_config_loads(schema, path):
    assert isinstance(settings.load(schema, path), schema)


@shipped
def test_every_shipped_config_opens_with_its_description(schema, path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@shipped
@pytest.mark.parametrize("section", ["", "inside.", "list."])
def test_unknown_keys_of_every_shipped_config_are_refused(schema, path, section):
    run = schema is RunSettings
    prefix = {"": "", "inside.": "data." if run else "tags.", "list.": "stages.0." if run else "sources.0."}[section]
    key = {"": "output", "inside.": "directory" if run else "min_count", "list.": "samples" if run else "path"}[section]
    message = mistake(schema, path, f"{prefix}{key}x=1")
    assert message == f"{path}: {prefix}{key}x: unknown key; did you mean {prefix}{key}?"


@shipped
def test_wrong_types_in_every_shipped_config_are_refused(schema, path):
    wrong = {"output": "3", "stages.0.samples" if schema is RunSettings else "validation.seed": "'3'"}
    for key, value in wrong.items():
        message = mistake(schema, path, f"{key}={value}")
        assert message.startswith(f"{path}: {key}: input should be a valid ")
        assert value in message


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{!r}", "{:e}", "{:.3e}", "{:.0e}"]))
def test_every_notation_of_a_float_is_read(number, form):
    text = form.format(number)
    values: dict = {}
    settings._override(values, f"rate={text}")
    assert isinstance(values["rate"], float)
    assert values["rate"] == float(text)


def test_numbers_are_read_as_numbers(write):
    path = write("small: 1e-6\nlarge: 220_000_000\nnegative: -2E3\nword: 1e\nplain: 3\n")
    values = {"small": 1e-6, "large": 220_000_000, "negative": -2000.0, "word": "1e", "plain": 3}
    read = settings.read(path)
    assert read == values
    assert {k: type(v) for k, v in read.items()} == {k: type(v) for k, v in values.items()}


def test_settings_cannot_be_changed(write):
    example = settings.load(Example, write("name: x"))
    with pytest.raises(ValueError, match="frozen"):
        Settings.__setattr__(example, "name", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: name: given twice; keep one"),
        ("name: a\ninner:\n  rate: 0.1\n  rate: 0.1\n", "line 4: rate: given twice; keep one"),
        ("- name\n", "must hold `key: value` lines, not a list"),
        ("just words", "must hold `key: value` lines, not a str"),
        ("name: [\n", "not valid YAML: "),
        ("name: !!python/name:os.system\n", "not valid YAML: "),
        ("name: 2020-13-45\n", ""),
        ("[1, 2]: 3\n", ""),
        ("", "name: field required"),
        ("inner: {}\n", "name: field required"),
        ("name: 3\n", "name: input should be a valid string (given: 3)"),
        ("name: a\ncount: 2.0\n", "count: input should be a valid integer (given: 2.0)"),
        ("name: a\ncount: true\n", "count: input should be a valid integer (given: True)"),
        ("name: a\ncount: 0\n", "count: input should be greater than or equal to 1 (given: 0)"),
        ("name: a\ninner: {rate: .nan}\n", "inner.rate: input should be a finite number (given: nan)"),
        ("name: a\ninner: {rate: fast}\n", "inner.rate: input should be a valid number (given: 'fast')"),
        ("name: a\ninner: {steps: '1'}\n", "inner.steps: input should be a valid integer (given: '1')"),
        ("name: a\ninner: 3\n", "inner: input should be a valid dictionary"),
        ("name: a\nrows: [{label: x}]\n", "rows.0.size: field required"),
        ("name: a\nrows: [{size: 1}, {size: x}]\n", "rows.1.size: input should be a valid integer (given: 'x')"),
        ("name: a\nwords: [a, 3]\n", "words.1: input should be a valid string (given: 3)"),
        ("name: a\n1: 2\n", "1: "),
        ("nam: a\n", "nam: unknown key; did you mean name?"),
        ("name: a\ninner: {rat: 1.0}\n", "inner.rat: unknown key; did you mean inner.rate?"),
        ("name: a\nzzzzzz: 1\n", "zzzzzz: unknown key; known: name, inner, rows, words, count"),
        ("name: a\nrows: [{size: 1}, {sise: 1}]\n", "rows.1.sise: unknown key; did you mean rows.1.size?"),
        ('name: a\n"two\\nlines": 1\n', "two"),
    ],
)
def test_an_error_is_one_line_that_names_file_and_key(write, text, message):
    path = write(text)
    assert mistake(Example, path).startswith(f"{path}: {message}")


COLOURS = {"red": 1, "green": 2}


class Painted(Settings):
    colour: Annotated[str, Choice(COLOURS)] = "red"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: gren\n", "colour: 'gren' is unknown; did you mean green?"),
        ("colour: zzz\n", "colour: 'zzz' is unknown; known: red, green"),
        ("colour: 3\n", "colour: input should be a valid string (given: 3)"),
    ],
)
def test_a_choice_is_a_key_of_its_table(write, text, message):
    path = write(text)
    assert mistake(Painted, path) == f"{path}: {message}"
    assert settings.load(Painted, write("colour: green\n")).colour == "green"


def test_a_json_schema_lists_the_keys_of_a_choice():
    assert Painted.model_json_schema()["properties"]["colour"]["enum"] == ["red", "green"]


def test_an_unreadable_file_is_named(write, tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff")
    for path in (tmp_path / "missing.yaml", binary):
        assert mistake(Example, path).startswith(f"{path}: cannot be read")


def test_base_files_merge_key_by_key_over_a_chain(write):
    write("name: bottom\ninner: {rate: 0.5, steps: 3}\nrows: [{size: 1}, {size: 2}]\n", "deep/bottom.yaml")
    write("base: bottom.yaml\ninner: {steps: 4}\ncount: 2\n", "deep/middle.yaml")
    top = write("base: deep/middle.yaml\nname: top\nrows: [{size: 3}]\n", "top.yaml")
    expected = Example(name="top", inner=Inner(rate=0.5, steps=4), rows=[Row(size=3)], count=2)
    assert settings.load(Example, top) == expected


def test_base_files_that_include_each_other_are_refused(write):
    first = write("base: second.yaml\n", "first.yaml")
    write("base: first.yaml\n", "second.yaml")
    alone = write("base: alone.yaml\n", "alone.yaml")
    for path in (first, alone):
        message = mistake(Example, path)
        assert message.startswith(f"{path}: base: ")
        assert "include each other" in message


@pytest.mark.parametrize("base", ["nowhere.yaml", "3", "[a.yaml]", "."])
def test_a_missing_base_file_is_refused(write, base):
    path = write(f"base: {base}\nname: a\n")
    assert mistake(Example, path).startswith(f"{path}: base: no such file")


def test_a_mistake_in_a_base_file_names_that_file(write):
    base = write("name: [\n", "base.yaml")
    assert mistake(Example, write("base: base.yaml\n")).startswith(f"{base}: not valid YAML")


def test_overrides_reach_into_sections_and_lists_in_order(write):
    path = write("name: a\nrows: [{size: 1}, {size: 2}]\nwords: [x, y]\n")
    overrides = ["inner.rate=1e-6", "rows.1.size=220_000", "words.0=z", "name=b=c", "count=5", "count=6"]
    overrides += ["inner.steps=null"]
    expected = Example(
        name="b=c", inner=Inner(rate=1e-6), rows=[Row(size=1), Row(size=220_000)], words=["z", "y"], count=6
    )
    assert settings.load(Example, path, overrides) == expected


@pytest.mark.parametrize(("text", "value"), [("runs/try #2", "runs/try #2"), ("'a #b'", "a #b"), ("~/x", "HOME/x")])
def test_an_override_with_a_path_means_what_a_shell_means(write, monkeypatch, text, value):
    class Paths(Settings):
        """A path."""

        output: PathText

    monkeypatch.setenv("HOME", "HOME")
    monkeypatch.setenv("USERPROFILE", "HOME")
    assert settings.load(Paths, write("output: a"), [f"output={text}"]).output == value


def test_an_override_replaces_a_whole_section_or_list(write):
    path = write("name: a\ninner: {rate: 0.5}\nrows: [{size: 1}]\n")
    example = settings.load(Example, path, ["inner={steps: 2}", "rows=[{size: 7}, {size: 8}]"])
    assert example == Example(name="a", inner=Inner(steps=2), rows=[Row(size=7), Row(size=8)])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count", "count: write an override as section.key=value"),
        ("=3", "=3: write an override as section.key=value"),
        ("count=[", "count: '[' is not a YAML value"),
        ("inner={rate: 1.0, rate: 2.0}", "inner: '{rate: 1.0, rate: 2.0}' is not a YAML value"),
        ("inner={[1]: 2}", "inner: '{[1]: 2}' is not a YAML value"),
        ("rows.2.size=1", "rows.2.size: '2' is not an index into a list of 2; use 0 to 1"),
        ("rows.-1.size=1", "rows.-1.size: '-1' is not an index"),
        ("rows.size=1", "rows.size: 'size' is not an index"),
        ("words.2=z", "words.2: '2' is not an index into a list of 2"),
        ("words.0.length=1", "words.0.length: words.0 is a single value, it has no 'length'"),
        ("count.x=1", "count.x: count is a single value, it has no 'x'"),
    ],
)
def test_an_override_that_cannot_apply_is_refused(write, override, message):
    path = write("name: a\nrows: [{size: 1}, {size: 2}]\nwords: [x, y]\ncount: 3\n")
    assert mistake(Example, path, override).startswith(message)


def test_an_override_of_an_unknown_key_names_the_nearest(write):
    path = write("name: a\nrows: [{size: 1}]\n")
    assert mistake(Example, path, "iner.rate=1.0") == f"{path}: iner: unknown key; did you mean inner?"
    assert mistake(Example, path, "inner.rte=1.0") == f"{path}: inner.rte: unknown key; did you mean inner.rate?"
    assert mistake(Example, path, "rows.0.sze=1") == f"{path}: rows.0.sze: unknown key; did you mean rows.0.size?"


def test_a_config_is_found_by_path_or_by_name(write, tmp_path, monkeypatch):
    path = write("", "configs/b16_448.yaml")
    monkeypatch.chdir(tmp_path)
    assert settings.find(path) == path
    for name in ("configs/b16_448.yaml", "b16_448.yaml", "b16_448"):
        assert settings.find(name) == Path("configs/b16_448.yaml"), "the working directory's comes first"


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("b16_448.yaml", "", "b16_448.yaml"),
        ("configs/b16_448.yaml", "", "b16_448.yaml"),
        ("data/folder", "", "data/folder.yaml"),
        ("folder", "data", "data/folder.yaml"),
        ("configs/data/blacklist.txt", "data", "data/blacklist.txt"),
        ("openmoji.yaml", "groups", "groups/openmoji.yaml"),
    ],
)
def test_installed_configs_are_found_from_any_directory(tmp_path, monkeypatch, name, folder, expected):
    monkeypatch.chdir(tmp_path)
    assert settings.find(name, folder).samefile(CONFIGS / expected)


def test_the_error_for_a_missing_config_names_the_nearest(write, tmp_path, monkeypatch):
    write("", "configs/mine.yaml")
    write("", "configs/data/raw.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "SHIPPED", tmp_path / "installed")
    for name, folder, hint in (
        ("mien.yaml", "", "nor in configs/; did you mean mine.yaml?"),
        ("data/rwa", "", "nor in configs/; did you mean data/raw.yaml?"),
        ("zzz", "", "nor in configs/; known: data/raw.yaml, mine.yaml"),
        ("zzz", "data", "nor in configs/data/; known: raw.yaml"),
        ("zzz.txt", "data", "nor in configs/data/"),
    ):
        with pytest.raises(SettingsError) as caught:
            settings.find(name, folder)
        assert str(caught.value) == f"{name}: no such file, {hint}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["micro_batch=48", "batch_size=128"], "micro_batch: 48 does not divide batch_size 128"),
        (["stages.0.image_size=225"], "stages.0.image_size: 225 is not a multiple of patch_size 16"),
        (["model.num_heads=7"], "model.num_heads: 7 does not divide d_model 768"),
        (
            ["model.use_sine=false", "stages=[{image_size: 224, samples: 5000}, {image_size: 448, samples: 5000}]"],
            "model.use_sine: learned positions fit one image size, the stages have several",
        ),
        (["stages.0.samples=4095"], "stages.0.samples: 4095 is less than one batch_size 4096"),
        (["model.cnn_stem=conv:c=768"], "model.cnn_stem: its strides multiply to 2, not to patch_size 16"),
        (["model.cnn_stem=conv:c=64,s=16"], "model.cnn_stem: the last conv must have c=768 channels"),
        (["model.cnn_stem=pool"], "model.cnn_stem: unknown item 'pool'"),
        (["model.patch_size=0"], "model.patch_size: 0 is not positive"),
        (["model.stochdepth_rate=1.0"], "model.stochdepth_rate: 1.0 is not in [0, 1)"),
        (["stages=[]"], "stages: list should have at least 1 item"),
        (["optimizer.name=lam"], "optimizer.name: 'lam' is unknown; did you mean lamb?"),
        (["optimizer.betas=[0.9]"], "optimizer.betas.1: field required"),
        (["loss.name=bce", "loss.gamma=1.0"], "loss.gamma: only for name: focal, not bce"),
        (["loss.frequency_power=0.5"], "loss.frequency_power: only for name: bce, not focal"),
        (["model.timm=convnext_bse"], "model.timm: 'convnext_bse' is not a model of timm; nearest: convnext_base"),
        (["model.timm=test_vit", "model.num_blocks=3"], "model.num_blocks: not for a timm backbone"),
        (["model.timm=test_vit", "stages.0.image_size=225"], "stages: test_vit does not take these image sizes"),
        (
            [
                "model.timm=hiera_tiny_224",
                "stages=[{image_size: 224, samples: 5000}, {image_size: 448, samples: 5000}]",
            ],
            "stages: hiera_tiny_224 does not take these image sizes",
        ),
        (["micro_batch=most"], "micro_batch"),
    ],
)
def test_run_settings_that_cannot_work_are_refused(write, overrides, message):
    path = write(RUN)
    assert mistake(RunSettings, path, *overrides).startswith(f"{path}: {message}")


def test_run_settings_that_are_only_unusual_are_accepted(write):
    path = write(RUN)
    for overrides in (
        ["micro_batch=64", "batch_size=128"],
        ["model.use_sine=false", "stages=[{image_size: 224, samples: 5000}, {image_size: 224, samples: 5000}]"],
        ["model.cnn_stem=null", "model.patch_size=14"],
        ["model.timm=test_vit", "stages=[{image_size: 96, samples: 5000}, {image_size: 160, samples: 5000}]"],
        ["micro_batch=auto"],
    ):
        assert isinstance(settings.load(RunSettings, path, overrides), RunSettings)


def test_a_plan_counts_whole_batches(write):
    run = settings.load(RunSettings, write(RUN))
    assert [stage.samples % run.batch_size for stage in run.plan()] == [0]
    assert run.plan()[0].image_size == 224


def test_settings_are_flattened_without_those_of_a_mark():
    often, never = settings.MayChange("often"), settings.MayChange("never")

    class Marked(Settings):
        name: Annotated[str, often]
        size: Annotated[int | None, never] = Field(default=None, ge=0)
        inner: Inner = Inner()
        other: Annotated[Inner, often] = Inner()
        rows: list[Row] = []
        pair: tuple[int, int] = (1, 2)

    marked = Marked(name="x", rows=[Row(size=3), Row(size=4)])
    rest = {
        "size": None,
        "inner.rate": 0.1,
        "inner.steps": None,
        "rows.0.size": 3,
        "rows.0.label": "",
        "rows.1.size": 4,
        "rows.1.label": "",
        "pair": [1, 2],
    }
    assert settings.flatten(marked, {often}) == rest
    assert settings.flatten(marked) == rest | {"name": "x", "other.rate": 0.1, "other.steps": None}
    assert settings.flatten(Marked(name="x"), {often, never}).keys() == {"inner.rate", "inner.steps", "rows", "pair"}

"""The files that `make docs` writes are current."""

import json

import pytest
import yaml
from paths import ROOT

from data_prep.config import BuildSettings
from joytag.cli import command
from joytag.cli.arguments import settings_reference
from joytag.core.settings import Settings
from joytag.sweeps.config import SweepSettings
from joytag.training.config import RunSettings

REMEDY = "is not current; run: make docs"
SCHEMAS: dict[str, type[Settings]] = {
    "configs": RunSettings,
    "configs/data": BuildSettings,
    "configs/sweeps": SweepSettings,
}


def test_the_settings_documentation_is_current():
    parts = [settings_reference(schema, "markdown") for schema in SCHEMAS.values()]
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == "\n".join(parts), REMEDY


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_every_setting_has_a_description(schema):
    document = schema.model_json_schema()
    for section in [document, *document["$defs"].values()]:
        for name, value in section["properties"].items():
            nested = "$ref" in value or "$ref" in value.get("items", {})  # described by its class
            assert nested or "description" in value, f"{section['title']}.{name}: add a string below the field"


@pytest.mark.parametrize(("folder", "schema"), SCHEMAS.items())
def test_the_json_schema_is_current(folder, schema):
    assert (ROOT / folder / "schema.json").read_text(encoding="utf-8") == settings_reference(schema, "json"), REMEDY


@pytest.mark.parametrize("path", [path for folder in SCHEMAS for path in sorted((ROOT / folder).glob("*.yaml"))])
def test_a_config_names_its_schema_and_uses_only_keys_of_it(path):
    text = path.read_text(encoding="utf-8")
    assert "\n# yaml-language-server: $schema=schema.json\n" in text
    schema = json.loads((path.parent / "schema.json").read_text(encoding="utf-8"))
    assert set(yaml.safe_load(text)) <= set(schema["properties"])


@pytest.mark.parametrize(
    ("name", "schema"), [("train", RunSettings), ("build", BuildSettings), ("sweep", SweepSettings)]
)
def test_a_command_prints_its_settings(name, schema, capsys):
    for arguments, form in (["--settings"], "markdown"), (["--settings", "json"], "json"):
        with pytest.raises(SystemExit) as ended:
            command.run(name, arguments)
        assert ended.value.code == 0
        assert capsys.readouterr().out == settings_reference(schema, form)

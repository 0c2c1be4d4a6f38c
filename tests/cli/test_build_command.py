"""Errors about a missing dataset or source name the command that creates it."""

import pytest

from joytag.cli.command import report_errors, run
from joytag.core.errors import ExitCode
from joytag.core.terminal import quote
from joytag.data.dataset import CONFIG, Dataset


def message(directory, capsys) -> str:
    """Return the error message about a dataset that cannot be opened."""
    with pytest.raises(SystemExit) as end:
        report_errors("test", lambda: print(Dataset.open(directory)))
    assert end.value.code == ExitCode.USER_ERROR
    return capsys.readouterr().err


def test_a_dataset_of_another_version_is_built_from_its_own_config(tmp_path, capsys):
    directory = tmp_path / "my dataset"
    directory.mkdir()
    (directory / "dataset.json").write_text('{"version": 0}')
    (directory / CONFIG).touch()
    expected = f"build the dataset again with: joytag build --config {quote(directory / CONFIG)}\n"
    assert message(directory, capsys).endswith(f"remove the file and {expected}")


@pytest.mark.parametrize(("name", "config"), [("openmoji", "configs/data/openmoji.yaml"), ("nowhere", "CONFIG")])
def test_a_missing_dataset_is_built_from_the_config_of_its_name(tmp_path, capsys, name, config):
    line = message(tmp_path / name, capsys)
    assert line.count("\n") == 1
    assert f"{name}: no dataset here (dataset.json is missing); build it" in line
    assert line.endswith(f"; build it with: joytag build --config {config}\n")


def test_missing_emoji_are_created_by_their_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run("build", ["--config", "openmoji"])
    assert end.value.code == ExitCode.USER_ERROR
    expected = "sources.0.path: data/raw/openmoji: no such folder; create it with: joytag openmoji\n"
    assert capsys.readouterr().err.endswith(expected)

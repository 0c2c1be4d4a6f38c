"""Remedies that commands add to errors of an evaluation."""

import warnings

import pytest

from joytag.cli import command
from joytag.cli.remedies import EVALUATION_REMEDIES
from joytag.core.errors import ExitCode
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions_writer import OutputError
from joytag.evaluation.runner import Unfinished, VocabularyError


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (DatasetRequired("a: no labels"), "a: no labels; add --data", ExitCode.USER_ERROR),
        (OutputError("a: the disk is full"), "a: the disk is full; set it with --output", ExitCode.USER_ERROR),
        (VocabularyError("a: other tags"), "a: other tags; use joytag compare", ExitCode.USER_ERROR),
        (
            Unfinished("stopped", ExitCode.REQUEUE),
            "stopped; run the same command again to continue",
            ExitCode.REQUEUE,
        ),
        (ValueError("a: damaged"), "a: damaged", ExitCode.USER_ERROR),
    ],
)
def test_errors_name_the_option_or_command_that_helps(error, message, code, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restores it afterwards

    def fail() -> None:
        with command.add_remedies(EVALUATION_REMEDIES):
            raise error

    with pytest.raises(SystemExit) as end:
        command.report_errors("joytag x", fail)
    assert end.value.code == code
    assert capsys.readouterr().err == f"joytag x: {message}\n"

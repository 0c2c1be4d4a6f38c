"""Remedies that commands add to errors of the library."""

import pytest

from joytag.cli.remedies import add_remedies
from joytag.core.errors import Exit, ExitCode
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions_writer import OutputError
from joytag.evaluation.runner import Unfinished, VocabularyError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatasetRequired("a: no labels"), "a: no labels (--data)"),
        (OutputError("a: the disk is full"), "a: the disk is full (--output)"),
        (VocabularyError("a: other tags"), "a: other tags (joytag compare)"),
        (ValueError("a: damaged"), "a: damaged"),
    ],
)
def test_errors_name_the_option_or_command_that_helps(error, message):
    with pytest.raises(ValueError, match=r"^a: ") as raised, add_remedies():
        raise error
    assert str(raised.value) == message


def test_a_stopped_evaluation_says_how_to_continue_and_keeps_its_exit_code():
    with pytest.raises(Exit, match=r"^stopped; run the same command again to continue$") as raised, add_remedies():
        raise Unfinished("stopped", ExitCode.REQUEUE)
    assert raised.value.code == ExitCode.REQUEUE

"""What users of the commands can do about errors of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from joytag.core.errors import Exit
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions_writer import OutputError
from joytag.evaluation.runner import Unfinished, VocabularyError

REMEDIES: dict[type[ValueError], str] = {
    DatasetRequired: " (--data)",
    OutputError: " (--output)",
    VocabularyError: " (joytag compare)",
}


@contextmanager
def add_remedies() -> Iterator[None]:
    """Add the option or the command that helps to errors from the `with` block."""
    try:
        yield
    except tuple(REMEDIES) as error:
        raise ValueError(f"{error}{REMEDIES[type(error)]}") from None
    except Unfinished as error:
        raise Exit(f"{error}; run the same command again to continue", error.code) from None

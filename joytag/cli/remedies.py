"""Remedies for errors, shared by several commands."""

from __future__ import annotations

from joytag.cli.command import OUTPUT_REMEDIES
from joytag.core.lock import InUse
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions_writer import OutputError
from joytag.evaluation.runner import Unfinished, VocabularyError
from joytag.models.checkpoint import UnknownDataset
from joytag.training.dry_run import RatesError

AGAIN = "run the same command again to continue"
RUN_REMEDIES: dict[type[Exception], str] = {  # of commands that take the settings of runs
    InUse: "set it with output=DIR",
    RatesError: "or measure again with joytag benchmark all",
}
EVALUATION_REMEDIES: dict[type[Exception], str] = {
    **OUTPUT_REMEDIES,
    DatasetRequired: "add --data",
    OutputError: "set it with --output",
    VocabularyError: "use joytag compare",
    UnknownDataset: "add --data",
    Unfinished: AGAIN,
}

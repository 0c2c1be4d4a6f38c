"""Remedies for errors of an evaluation, shared by several commands."""

from __future__ import annotations

from joytag.cli.command import OUTPUT_REMEDIES
from joytag.evaluation.contenders import DatasetRequired
from joytag.evaluation.predictions_writer import OutputError
from joytag.evaluation.runner import Unfinished, VocabularyError
from joytag.models.checkpoint import UnknownDataset

REMEDIES: dict[type[Exception], str] = {
    **OUTPUT_REMEDIES,
    DatasetRequired: "add --data",
    OutputError: "set it with --output",
    VocabularyError: "use joytag compare",
    UnknownDataset: "add --data",
    Unfinished: "run the same command again to continue",
}

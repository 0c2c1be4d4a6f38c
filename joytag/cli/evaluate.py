"""Evaluate a model on a dataset: predictions and reports, or reports alone, such as at another threshold."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from joytag.cli.arguments import Parser, fraction, positive
from joytag.cli.remedies import add_remedies
from joytag.core import settings
from joytag.data.dataset import SPLITS, Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import analysis, runner, tag_groups
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(
        prog="joytag evaluate",
        description=__doc__,
        epilog="Run it under torchrun to use several processes. Stop it at any time; the same command continues.",
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint or release directory")
    add("--predictions", type=Path, help="write reports alone, from the predictions in this directory")
    add(
        "--data",
        type=Path,
        help="a dataset directory; with --predictions, for the images in the report (default: the dataset of the "
        "predictions, if it still exists)",
    )
    add(
        "--output",
        type=Path,
        help="directory for reports and predictions/ (default: the model's directory, or the parent of --predictions)",
    )
    add("--split", default="validation", choices=SPLITS)
    add(
        "--threshold",
        type=fraction,
        default=DEFAULT_THRESHOLD,
        help="a tag is predicted when its score is above this (default: %(default)s)",
    )
    add("--groups", type=Path, metavar="FILE", help="YAML, {name: [tag, tag]}: groups of tags to compare")
    add("--batch-size", type=positive, default=64, help="images per forward pass (default: %(default)s)")
    add("--workers", type=positive, help="decoding processes (default: depends on the device)")
    add("--device", default="auto")
    add("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    given = parser.parse_args(arguments)
    if (given.model is None) == (given.predictions is None):
        raise ValueError("give either --model and --data, or --predictions; see --help")
    if given.data is None and given.model is not None:
        raise ValueError("--model: needs --data, a dataset directory; see --help")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    groups = {} if given.groups is None else tag_groups.read(settings.find(given.groups, "groups"))
    dataset = None if given.data is None else Dataset.open(given.data)
    output = given.output or given.model or given.predictions.absolute().parent
    directory = given.predictions or output / "predictions"
    with add_remedies():
        if dataset is not None and given.model is not None:
            options = (given.split, given.batch_size, given.workers, given.device, given.precision)
            if not runner.predict_release(directory, given.model, dataset, *options):
                return  # the first process alone writes the reports
        predictions = Predictions.open(directory)
    if dataset is None:
        dataset = runner.find_dataset(predictions)
    findings = analysis.analyse(predictions, given.threshold, groups)
    evaluation.write_reports(output, findings, predictions, dataset)
    Console().print(evaluation.metrics_table(findings))
    print(f"Written: {output / 'report.html'}, metrics.json, full-metrics.txt, per_tag.csv, thresholds.csv ...")

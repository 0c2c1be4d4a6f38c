"""Measure a model on a dataset, or write reports from stored predictions, such as at another threshold."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from joytag.cli.arguments import Parser, fraction, positive
from joytag.core import settings
from joytag.data.dataset import SPLITS, Dataset
from joytag.evaluation import analysis, runner, tag_groups
from joytag.evaluation.predictions import Predictions
from joytag.reports import evaluation


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(
        prog="joytag evaluate",
        description=__doc__,
        epilog="torchrun shares the work among processes. An interrupted command continues when it is repeated.",
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint or release directory")
    add("--predictions", type=Path, help="reports alone, from the predictions in this directory")
    add("--data", type=Path, help="a dataset directory; with --predictions, for the report's images (default: the "
        "dataset predicted, if it is still there)")  # fmt: skip
    add("--output", type=Path, help="where reports go, and predictions/ (default: the model's directory, or what "
        "holds the predictions)")  # fmt: skip
    add("--split", default="validation", choices=SPLITS)
    add("--threshold", type=fraction, default=0.4, help="a tag is predicted above it (default: 0.4)")
    add("--groups", type=Path, metavar="FILE", help="YAML, {name: [tag, tag]}: groups of tags to compare")
    add("--batch-size", type=positive, default=64, help="images computed at once (default: 64)")
    add("--workers", type=positive, help="decoding processes (default: chosen by device)")
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
    chosen = {} if given.groups is None else tag_groups.read(settings.find(given.groups, "groups"))
    dataset = None if given.data is None else Dataset.open(given.data)
    output = given.output or given.model or given.predictions.absolute().parent
    directory = given.predictions or output / "predictions"
    if dataset is not None and given.model is not None:
        computing = (given.split, given.batch_size, given.workers, given.device, given.precision)
        if not runner.predict_release(directory, given.model, dataset, *computing):
            return  # the first process alone goes on
    predictions = Predictions.open(directory)
    if dataset is None:
        dataset = runner.find_dataset(predictions)
    found = analysis.analyse(predictions, given.threshold, chosen)
    evaluation.write_reports(output, found, predictions, dataset)
    Console().print(evaluation.metrics_table(found))
    print(f"Written: {output / 'report.html'}, metrics.json, full-metrics.txt, per_tag.csv, thresholds.csv ...")

"""Evaluate a model on a dataset: predictions and reports, or reports alone, such as at another threshold."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import Parser, fraction, positive, results_directory
from joytag.cli.command import add_remedies
from joytag.cli.remedies import EVALUATION_REMEDIES
from joytag.core import settings
from joytag.core.terminal import print, show
from joytag.data.dataset import SPLITS, Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import analysis, runner, tag_groups
from joytag.evaluation.predictions import DIRECTORY, Predictions
from joytag.models import checkpoint
from joytag.reports import evaluation


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(
        prog="joytag evaluate",
        description=__doc__,
        epilog="Run it under torchrun to use several processes. Stop it at any time; the same command continues.",
    )
    add = parser.add_argument
    add("--model", type=Path, help="a release, a checkpoint, or a run: its release, else its newest checkpoint")
    add("--predictions", type=Path, help="write reports alone, from the predictions in this directory")
    add(
        "--data",
        type=Path,
        help="a dataset directory (default: that of the run or, with --predictions, whose images the report shows, of "
        "the predictions, if it still exists)",
    )
    add(
        "--output",
        type=results_directory,
        help="directory for reports and predictions/ (default: that of the release or of --predictions; for a "
        "checkpoint, evaluations/ in its run)",
    )
    add("--split", default="validation", choices=SPLITS)
    add(
        "--threshold",
        type=fraction,
        default=DEFAULT_THRESHOLD,
        help="a tag is predicted when its score is above this (default: %(default)s); without --output, reports at "
        "another one are written to at-X/",
    )
    add("--groups", type=Path, metavar="FILE", help="YAML, {name: [tag, tag]}: groups of tags to compare")
    add("--batch-size", type=positive, default=runner.BATCH, help="images per forward pass (default: %(default)s)")
    add("--workers", type=positive, help="decoding processes (default: depends on the device)")
    add("--device", default="auto")
    add("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.predictions is None):
        raise ValueError("give either --model or --predictions; see --help")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    groups = {} if options.groups is None else tag_groups.read(settings.find(options.groups, "groups"))
    with add_remedies(EVALUATION_REMEDIES):
        data = options.data or (options.model and checkpoint.dataset(options.model))
    dataset = None if data is None else Dataset.open(data)
    model = options.model and (checkpoint.newest_model(options.model) or options.model)
    output = options.output or checkpoint.results_directory(model or options.predictions.absolute().parent)
    directory = options.predictions or output / DIRECTORY
    if options.output is None and options.threshold != DEFAULT_THRESHOLD:
        output /= f"at-{options.threshold:g}"  # beside the reports at the usual threshold, which it does not replace
    with add_remedies(EVALUATION_REMEDIES):
        if dataset is not None and model is not None:
            is_first = runner.predict_release(
                directory,
                model,
                dataset,
                options.split,
                options.batch_size,
                options.workers,
                options.device,
                options.precision,
            )
            if not is_first:
                return  # the first process alone writes the reports
        predictions = Predictions.open(directory)
        if dataset is None:
            dataset = runner.find_dataset(predictions)
        findings = analysis.analyse(predictions, options.threshold, groups)
        evaluation.write_reports(output, findings, predictions, dataset)
    show(evaluation.metrics_table(findings))
    print(f"Written: {output / 'report.html'}, metrics.json, full-metrics.txt, per_tag.csv, thresholds.csv ...")

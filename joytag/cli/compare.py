"""Compare taggers on the same images: which is better, by how much, on which tags, and what is noise."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from data_prep.aliases import read_aliases
from joytag.cli.arguments import Parser, fraction, names, results_directory
from joytag.cli.command import add_remedies
from joytag.cli.remedies import EVALUATION_REMEDIES
from joytag.core.terminal import print, show
from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation import contenders
from joytag.evaluation.comparison import compare
from joytag.evaluation.contenders import TaggerEntry
from joytag.evaluation.intersection import intersect
from joytag.models import wd_onnx
from joytag.reports.comparison import REPORT, comparison_tables, write_reports

DEFAULT_OUTPUT = Path("runs/comparison")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    epilog = "Stop it at any time; the same command continues."
    parser = Parser(prog="joytag compare", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add(
        "taggers",
        nargs="+",
        type=Path,
        metavar="TAGGER",
        help="a directory: predictions, a release, a checkpoint, a run, or an ONNX tagger in the WD layout "
        "(model.onnx and selected_tags.csv)",
    )
    add(
        "--data",
        type=Path,
        help="a dataset directory, for its validation images and labels; required unless all taggers are predictions",
    )
    add(
        "--output",
        type=results_directory,
        help="directory for reports and new predictions "
        f"(default: {DEFAULT_OUTPUT}, unless another comparison is there)",
    )
    add(
        "--threshold",
        type=lambda text: [fraction(value) for value in names(text)],
        default=[],
        metavar="X[,X...]",
        help=f"one for all taggers, or one for each (default: {DEFAULT_THRESHOLD}, ONNX taggers {wd_onnx.THRESHOLD})",
    )
    add(
        "--aliases",
        type=Path,
        metavar="FILE",
        help="names that mean the same: a mirror's tag_aliases*.json, a .csv with antecedent_name and consequent_name, "
        "or a .yaml of `old: new`",
    )
    add("--device", default="auto")
    add("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    taggers = contenders.open_taggers(options.taggers, options.threshold, options.device)
    aliases = None if options.aliases is None else read_aliases(options.aliases)
    dataset = None if options.data is None else Dataset.open(options.data)
    output = options.output or default_output(taggers, options.data)
    with add_remedies(EVALUATION_REMEDIES):
        predicted = [
            contenders.predict(tagger, dataset, output, options.device, options.precision) for tagger in taggers
        ]
        common = intersect(taggers, predicted, dataset, aliases)
        comparison = compare(common.contenders, common.labels, common.tags, common.facts, families=common.families)
        write_reports(output, comparison)
    for tagger in taggers:
        print(f"{tagger.letter}: {tagger.name} ({tagger.kind}, {tagger.path})")
    images, labels = common.labels.shape[0], len(common.labels.indices)
    print(f"{labels:,} labels of {len(common.tags):,} common tags on {images:,} images")
    for table in comparison_tables(comparison):
        show(table)
    print(f"Written: {output / 'compare.html'}, compare.json, per_tag.csv, per_tag.parquet")


def default_output(taggers: Sequence[TaggerEntry], data: Path | None) -> Path:
    """Return DEFAULT_OUTPUT. Raises ValueError when it holds the reports of another comparison, or unknown ones."""
    path = DEFAULT_OUTPUT / REPORT
    if not path.exists():
        return DEFAULT_OUTPUT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        labels = str(report["facts"]["labels"])
        before = sorted((tagger["name"], float(tagger["threshold"])) for tagger in report["taggers"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not the report of a comparison; set another --output, or move the file") from None
    if before != sorted((tagger.name, tagger.threshold) for tagger in taggers) or str(data or labels) != labels:
        names = " and ".join(f"{name} at {threshold:g}" for name, threshold in before)
        raise ValueError(f"{path}: is about {names}, on {labels}; set another --output")
    return DEFAULT_OUTPUT

"""Compare taggers on the same images: which is better, by how much, on which tags, and what of it is noise."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data_prep.aliases import read_aliases
from joytag.cli.arguments import Parser, fraction, names
from joytag.data.dataset import Dataset
from joytag.evaluation import contenders
from joytag.evaluation.comparison import compare
from joytag.evaluation.intersection import intersect
from joytag.reports.comparison import comparison_tables, write_reports


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag compare", description=__doc__, epilog="Stop it at will; the same command goes on.")
    add = parser.add_argument
    add("taggers", nargs="+", type=Path, metavar="TAGGER", help="a directory: predictions, a release, a checkpoint, a "
        "run, or an ONNX tagger in the WD layout (model.onnx and selected_tags.csv)")  # fmt: skip
    add("--data", type=Path, help="a dataset directory: its validation images, and labels; needed unless all are "
        "predictions")  # fmt: skip
    add("--output", type=Path, default=Path("runs/comparison"), help="where reports and new predictions go "
        "(default: %(default)s)")  # fmt: skip
    add("--threshold", type=lambda text: [fraction(one) for one in names(text)], default=[], metavar="X[,X...]",
        help="one for all taggers, or one for each (default: 0.4, of ONNX taggers 0.35)")  # fmt: skip
    add("--aliases", type=Path, metavar="FILE", help="names that mean the same: a mirror's tag_aliases*.json, a .csv "
        "with antecedent_name and consequent_name, or a .yaml of `old: new`")  # fmt: skip
    add("--device", default="auto")
    add("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    entered = contenders.open_taggers(given.taggers, given.threshold, given.device)
    aliases = None if given.aliases is None else read_aliases(given.aliases)
    dataset = None if given.data is None else Dataset.open(given.data)
    found = [contenders.predict(one, dataset, given.output, given.device, given.precision) for one in entered]
    arena = intersect(entered, found, dataset, aliases)
    comparison = compare(arena.contenders, arena.labels, arena.tags, arena.facts)
    write_reports(given.output, comparison)
    for one in entered:
        print(f"{one.letter}: {one.name} ({one.kind}, {one.path})")
    print(
        f"{len(arena.labels.indices):,} labels of {len(arena.tags):,} common tags on {arena.labels.shape[0]:,} images"
    )
    for table in comparison_tables(comparison):
        Console().print(table)
    print(f"Written: {given.output / 'compare.html'}, compare.json, per_tag.csv, per_tag.parquet")

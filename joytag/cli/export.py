"""Export a model to the files that other programs load, each verified against the model."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import joytag
from data_prep.sources.danbooru2021 import read_categories
from joytag.cli.arguments import MODEL, Parser
from joytag.cli.command import add_remedies
from joytag.core.lock import Exists, InUse
from joytag.core.terminal import plural, print, printable, quote
from joytag.data.dataset import Dataset
from joytag.export.exporter import Exporter
from joytag.export.layouts import LAYOUTS
from joytag.export.manifest import Manifest
from joytag.export.precisions import PRECISIONS
from joytag.export.samples import drawn, validation
from joytag.export.source import Source, TagFacts
from joytag.export.verification import DifferenceError
from joytag.models import checkpoint

ALL = "all"
REMEDIES: dict[type[Exception], str] = {
    Exists: "set it with --output",
    InUse: "set it with --output",
    DifferenceError: "use --precision fp32, or report it",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag export", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help=MODEL)
    add("--to", required=True, choices=(*LAYOUTS, ALL), help="which programs shall load it; all: a folder for each")
    add("--output", required=True, type=Path, metavar="DIR", help="a directory that does not exist yet")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format of the weights (default: %(default)s)")
    add("--embedding", action="store_true", help="add the pooled features as an output")
    text = "a dataset directory: its table gives tags their categories, its validation images verify the export"
    add("--data", type=Path, metavar="DIR", help=text)
    text = "a Danbooru mirror's metadata/tags000000000000.json: gives tags their categories, instead of --data"
    add("--tags", type=Path, metavar="FILE", help=text)
    text = "compare decisions with the model's, and export nothing if they differ (default: yes)"
    add("--verify", action=argparse.BooleanOptionalAction, default=True, help=text)
    options = parser.parse_args(arguments)
    if options.verify and PRECISIONS[options.precision].needs_images and options.data is None:
        raise ValueError(f"--precision {options.precision}: needs --data, a dataset whose images verify it; see --help")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    directory = checkpoint.locate(options.model)
    dataset = None if options.data is None else Dataset.open(options.data)
    source = Source.open(directory, read_about(dataset, options.tags))
    layouts = list(LAYOUTS) if options.to == ALL else [options.to]
    with add_remedies(REMEDIES):
        samples = None
        if options.verify:
            samples = drawn(source.size) if dataset is None else validation(dataset, source.size)
        exporter = Exporter(source, options.precision, options.embedding, samples, joytag.__version__)
        manifests = exporter.export(layouts, options.output)
    for path, manifest in manifests.items():
        report(path, manifest)
    print(f"Next, publish it on the Hugging Face hub: joytag publish {quote(options.output)} --hub OWNER/NAME")


def read_about(dataset: Dataset | None, tags: Path | None) -> Mapping[str, TagFacts]:
    """Return what a dataset and, of categories, a mirror's file of tags say about tags. Raises ValueError."""
    about: dict[str, TagFacts] = {}
    if dataset is not None:
        table = dataset.tags
        columns = (table.categories.tolist(), table.totals.tolist())
        about = {name: TagFacts(*values) for name, *values in zip(table.names, *columns, strict=True)}
    if tags is not None:
        for name, category in read_categories(tags).items():
            about[name] = TagFacts(category, about[name].images if name in about else 0)
    return about


def report(path: Path, manifest: Manifest) -> None:
    """Print what a layout holds, and how it was verified; warn of what it cannot hold."""
    for note in manifest.notes:
        warnings.warn(f"{manifest.layout}: {note}", stacklevel=2)
    measured = "unmeasured: no evaluation beside the model" if manifest.evaluation is None else "with its evaluation"
    verified = "not verified"
    if (found := manifest.verification) is not None:
        images = f"{found.images:,} {plural(found.images, 'image')} ({printable(found.origin)})"
        verified = f"{found.agreement:.3%} of decisions as the model's on {images}"
    print(f"{path}: {manifest.layout}, {manifest.precision}, {manifest.tags:,} tags; {verified}; {measured}")

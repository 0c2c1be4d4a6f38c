"""Write what was decided in the app into files of tags beside the images, or into one file of JSON lines."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.sources.sidecar_style import edit
from joytag.app import applying, decisions
from joytag.app.collection import STATE, STOP_FIRST, Collection
from joytag.app.decisions import Decisions
from joytag.cli.arguments import Parser
from joytag.core.lock import sole_writer
from joytag.core.terminal import plural, print, printable, quote


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag labels", description=__doc__)
    add = parser.add_argument
    add("action", choices=("apply",), help="what to do with the decisions")
    add("images", type=Path, help="the folder, or the dataset directory, that was labelled")
    text = "decisions.jsonl of another folder with the same images (default: the folder's own)"
    add("--decisions", type=Path, metavar="FILE", help=text)
    text = "also write -tag for each tag that was rejected, so that training takes it for absent"
    add("--negatives", action="store_true", help=text)
    text = "write one file of JSON lines with tags and negatives instead, a source for joytag build"
    add("--jsonl", type=Path, metavar="FILE", help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    source = options.decisions or options.images / STATE / decisions.FILE
    if not source.is_file():
        command = f"joytag app --images {quote(options.images)} --model RELEASE"
        raise ValueError(f"{source}: no such file; label first: {command}")
    with sole_writer(options.images / STATE, STOP_FIRST):
        collection = Collection(options.images)
        if collection.dataset is not None and options.jsonl is None:
            raise ValueError(f"{options.images}: is a dataset, whose images have no files of tags; use --jsonl")
        collection.identify()
        given = applying.answers(Decisions(source).by_image())
        if options.jsonl is not None:
            done = applying.to_jsonl(collection, given, options.jsonl)
        else:
            done = applying.to_sidecars(collection, given, partial(edit, negatives=options.negatives))
    changes, here = sum(done.changed.values()), sum(bool(collection.find(image)) for image in given)
    print(f"{here:,} of {len(given):,} images with decisions are in {printable(options.images)}")
    files = f"{len(done.changed):,} {plural(len(done.changed), 'file')} changed ({changes:,} tags)"
    print(f"{files}, {len(done.right):,} right already")
    for name, reason in done.refused.items():
        print(f"Not changed: {printable(name)}: {printable(reason)}", file=sys.stderr)

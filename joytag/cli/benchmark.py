"""Measure speed as a ratio to a reference that runs side by side."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.tools import benchmark as preparation
from joytag.benchmarks import cpu, shares, tagging, training
from joytag.benchmarks.stored_images import TAGS
from joytag.cli.arguments import Parser, positive
from joytag.core.terminal import print
from joytag.tagging import engines
from joytag.tagging.tagger import PRECISIONS

Option = tuple[str, dict[str, Any]]  # a flag or the name of a positional argument, and argparse's options


class Subject(NamedTuple):
    """What `joytag benchmark NAME` measures: its help, the function that returns the text to print, its options."""

    help: str
    run: Callable[..., str]
    options: Sequence[Option]


def count(flag: str, default: int, text: str = "", **options: Any) -> Option:
    """Return an option that takes a whole number."""
    return flag, dict(type=positive, default=default, help=f"{text} (default: %(default)s)".lstrip(), **options)


def measure_training(subject: str, **options: Any) -> str:
    """Run a subject of training, on originals where it loads images."""
    copies = [] if subject in ("step", "optimizer") else preparation.copies_of_originals(32)
    return training.measure(subject, copies, **options)


DEVICE = ("--device", dict(default="auto"))
TRAINING = (
    DEVICE,
    ("--batch", dict(type=positive, help="samples of a step (default: 8; GPU: 256 or 64, by size)")),
    count("--rounds", 5),
    ("--quick", dict(action="store_true", help="fewer images and rounds, in under three minutes")),
    ("--json", dict(dest="json_file", type=Path, metavar="FILE", help="write the measurements there, too")),
    ("settings", dict(nargs="*", metavar="key=value", help="of the steps, such as compile=true")),
)
SUBJECTS = {
    **{
        name: Subject(subject.description, partial(measure_training, name), TRAINING)
        for name, subject in training.SUBJECTS.items()
    },
    training.ALL: Subject(
        "these, on a CPU without feed; also writes the rates that joytag train --dry-run estimates times from",
        partial(measure_training, training.ALL),
        TRAINING,
    ),
    "cpu": Subject(
        "what a CPU decides, on the quickstart's model: the library of products, and how threads wait",
        cpu.measure,
        (count("--rounds", 5),),
    ),
    "shares": Subject(
        "where a CPU's time goes, by kind of operation: in training steps and in predictions",
        shares.measure,
        (count("--repetitions", 3),),
    ),
    "tag": Subject(
        "tagging images, against the released model's published example",
        tagging.compare_tagging,
        (
            DEVICE,
            ("--precision", dict(default="auto", choices=PRECISIONS)),
            ("--engine", dict(default="torch", choices=(*engines.NAMES, tagging.ALL), help="(default: %(default)s)")),
            ("--model", dict(type=Path, help="a release (default: random weights of the published size)")),
            count("--images", 8, "in a round", dest="n_images"),
            count("--rounds", 5),
        ),
    ),
    "metrics": Subject(
        "exact metrics of stored scores, against scikit-learn tag by tag",
        tagging.compare_metrics,
        (count("--images", 32_768, dest="n_images"), count("--tags", TAGS), count("--rounds", 1)),
    ),
    "scan": Subject(
        "judging, hashing and resizing originals, against three passes over each",
        preparation.scanning,
        (count("--images", 40, "in a round", dest="n_images"), count("--rounds", 3)),
    ),
    "formats": Subject(
        "storing and decoding training copies, against JPEG",
        preparation.formats,
        (count("--images", 40, "in a round", dest="n_images"), count("--rounds", 3)),
    ),
    "metadata": Subject(
        "from a mirror's JSON to tags and splits, against dicts of sets",
        preparation.metadata,
        (
            count("--posts", 500_000, "of a synthetic mirror"),
            ("--mirror", dict(type=Path, help="use this mirror instead")),
        ),
    ),
    "groups": Subject(
        "finding look-alikes among pHashes, against all pairs",
        preparation.grouping,
        (count("--hashes", 4_900_000, dest="count"), count("--few", 50_000, "for all pairs")),
    ),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag benchmark", description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        options = subjects.add_parser(name, help=subject.help)
        for flag, keywords in subject.options:
            options.add_argument(flag, **keywords)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = vars(parse(arguments))
    print(SUBJECTS[options.pop("subject")].run(**options))

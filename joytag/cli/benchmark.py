"""Measure speed as a ratio to a reference that runs side by side."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.tools import benchmark as preparation
from joytag.benchmarks import tagging
from joytag.benchmarks.training import measure
from joytag.cli.arguments import Parser, positive

TRAINING = {
    "loader": "loading and augmenting images, against Pillow and torchvision",
    "augment": "TrivialAugment of a batch, against torchvision's on Pillow images; on a GPU, against a training step",
    "optimizer": "a step of LAMB, against a loop",
    "step": "a training step of the released model, against the eager one",
    "feed": "loading with as many processes as there are cores, against what a training step takes",
    "all": "these, on a CPU without feed; also writes the rates that --dry-run of train.py reckons with",
}

OTHERS: dict[str, Callable[..., object]] = dict(tag=tagging.tag, metrics=tagging.measuring, scan=preparation.scanning,
              formats=preparation.formats, metadata=preparation.metadata, groups=preparation.grouping)  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag benchmark", description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for subject, text in TRAINING.items():
        training = subjects.add_parser(subject, help=text)
        training.add_argument("--device", default="auto")
        training.add_argument("--batch", type=positive, help="samples of a step (default: 8; GPU: 256 or 64, by size)")
        training.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
        training.add_argument("--quick", action="store_true", help="fewer images and rounds, in under three minutes")
        training.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
        training.add_argument("settings", nargs="*", metavar="key=value", help="of the steps, such as compile=true")
    tag = subjects.add_parser("tag", help="tagging images, against the released model's published example")
    tag.add_argument("--device", default="auto")
    tag.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16", "int8"))
    metrics = subjects.add_parser("metrics", help="exact figures of stored scores, against scikit-learn tag by tag")
    metrics.add_argument("--images", dest="n_images", type=positive, default=32_768, help="default: %(default)s")
    metrics.add_argument("--tags", type=positive, default=5813, help="default: %(default)s")
    metrics.add_argument("--rounds", type=positive, default=1, help="default: %(default)s")
    scan = subjects.add_parser("scan", help="judging, hashing and resizing originals, against three passes over each")
    formats = subjects.add_parser("formats", help="storing and decoding training copies, against JPEG")
    for one, images, rounds in ((tag, 8, 5), (scan, 40, 3), (formats, 40, 3)):
        one.add_argument(
            "--images", dest="n_images", type=positive, default=images, help="in a round (default: %(default)s)"
        )
        one.add_argument("--rounds", type=positive, default=rounds, help="default: %(default)s")
    metadata = subjects.add_parser("metadata", help="from a mirror's JSON to tags and splits, against dicts of sets")
    metadata.add_argument("--posts", type=positive, default=500_000, help="of a synthetic mirror (%(default)s)")
    metadata.add_argument("--mirror", type=Path, help="use this one")
    groups = subjects.add_parser("groups", help="finding look-alikes among pHashes, against all pairs")
    groups.add_argument("--hashes", dest="count", type=positive, default=4_900_000, help="default: %(default)s")
    groups.add_argument("--few", type=positive, default=50_000, help="for all pairs (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = vars(parse(arguments))
    subject = given.pop("subject")
    if subject in TRAINING:
        copies = [] if subject in ("step", "optimizer") else preparation.copies_of_originals(32)
        print(measure(subject, copies, **given))
    else:
        print(OTHERS[subject](**given))

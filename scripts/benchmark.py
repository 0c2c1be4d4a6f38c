"""Measure speed as a ratio to a reference that runs side by side."""

from pathlib import Path

import data_prep.benchmark
import joytag.benchmark
from joytag.cli import Parser, command_line, positive


def main() -> None:
    parser = Parser(description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    tag = subjects.add_parser("tag", help="tagging pictures, against the released model's published example")
    tag.add_argument("--device", default="auto")
    tag.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16", "int8"))
    scan = subjects.add_parser("scan", help="judging, hashing and resizing originals, against three passes over each")
    formats = subjects.add_parser("formats", help="storing and decoding training copies, against JPEG")
    for subject, pictures, rounds in ((tag, 8, 5), (scan, 40, 3), (formats, 40, 3)):
        subject.add_argument("--pictures", type=positive, default=pictures, help="in a round (default: %(default)s)")
        subject.add_argument("--rounds", type=positive, default=rounds, help="default: %(default)s")
    metadata = subjects.add_parser("metadata", help="from a mirror's JSON to tags and splits, against dicts of sets")
    metadata.add_argument(
        "--posts", type=positive, default=500_000, help="of a synthetic mirror (default: %(default)s)"
    )
    metadata.add_argument("--mirror", type=Path, help="use this one")
    groups = subjects.add_parser("groups", help="finding look-alikes among pHashes, against all pairs")
    groups.add_argument("--hashes", type=positive, default=4_900_000, help="default: %(default)s")
    groups.add_argument("--few", type=positive, default=50_000, help="for all pairs (default: %(default)s)")
    given = parser.parse_args()
    if given.subject == "tag":
        print(joytag.benchmark.tag(given.pictures, given.rounds, given.device, given.precision))
    elif given.subject == "scan":
        print(data_prep.benchmark.scanning(given.pictures, given.rounds))
    elif given.subject == "formats":
        print(data_prep.benchmark.formats(given.pictures, given.rounds))
    elif given.subject == "metadata":
        print(data_prep.benchmark.metadata(given.posts, given.mirror))
    else:
        print(data_prep.benchmark.grouping(given.hashes, given.few))


if __name__ == "__main__":
    command_line(main)

"""Measure speed as a ratio to a reference that runs side by side."""

from joytag import benchmark
from joytag.cli import Parser, command_line, positive


def main() -> None:
    parser = Parser(description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    tag = subjects.add_parser("tag", help="tagging pictures, against the released model's published example")
    tag.add_argument("--pictures", type=positive, default=8, help="in a round (default: %(default)s)")
    tag.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    tag.add_argument("--device", default="auto")
    tag.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16", "int8"))
    given = parser.parse_args()
    print(benchmark.tag(given.pictures, given.rounds, given.device, given.precision))


if __name__ == "__main__":
    command_line(main)

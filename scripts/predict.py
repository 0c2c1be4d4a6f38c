"""Print the tags of pictures, best first."""

from pathlib import Path

from joytag import image
from joytag.cli import Parser, command_line, fraction
from joytag.tagger import Tagger


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="a release or checkpoint directory")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PATH", help="picture files or folders of them")
    parser.add_argument("--threshold", type=fraction, default=0.4, help="print tags that score above it (default: 0.4)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    tagger = Tagger.load(arguments.model, arguments.device)
    failed = []
    paths = [picture for given in arguments.pictures for picture in image.find(given)]
    if not paths:
        raise ValueError(f"{arguments.pictures[0]}: no pictures here ({', '.join(image.SUFFIXES)})")
    for path in paths:
        try:
            tags = tagger(path, arguments.threshold)
        except image.ImageError as error:
            failed.append(error)
            continue
        print(path)
        for tag, score in tags:
            print(f"  {score:.3f}  {tag}")
    if failed:
        raise ValueError(f"{failed[0]}" + (f" (and {len(failed) - 1} more pictures)" if len(failed) > 1 else ""))


if __name__ == "__main__":
    command_line(main)

"""Print the tags of pictures, best first."""

import argparse
from pathlib import Path

from joytag import image
from joytag.cli import command_line
from joytag.tagger import Tagger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a release or checkpoint directory")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PATH", help="picture files or folders of them")
    parser.add_argument("--threshold", type=float, default=0.4, help="print tags that score above it (default: 0.4)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    tagger = Tagger.load(arguments.model, arguments.device)
    failed = []
    for path in (picture for given in arguments.pictures for picture in image.find(given)):
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

"""Tag images, folders of them or glob patterns: into a text beside each image, a table, or the terminal."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joytag.cli.arguments import Parser, batch_size, fraction, names, positive, replacements, separator
from joytag.tagging.captions import Captions, read_thresholds
from joytag.tagging.folder import Job
from joytag.tagging.tagger import Tagger


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    # fmt: off
    parser = Parser(description=__doc__, epilog="The flags are also understood as sd-scripts spells them.")
    add = parser.add_argument
    listed: dict[str, Any] = {"type": names, "action": "extend", "default": [], "metavar": "TAG,TAG"}
    add("inputs", nargs="+", metavar="PATH", help="an image, a folder, or a pattern such as 'art/*.png'")
    add("--model", required=True, help="a release or checkpoint directory, or a model's id on the Hugging Face hub")
    add("--recursive", action="store_true", help="also folders within the folders")
    add("--output", choices=("txt", "json", "jsonl", "csv", "print"), default="txt",
        help="a .txt or .json beside each image (default: txt), one tags.jsonl or tags.csv, or print")
    add("--threshold", "--thresh", type=fraction, default=0.4, help="of a tag's score (default: 0.4)")
    add("--thresholds", type=Path, metavar="FILE", help='of single tags: thresholds.csv, or JSON {"1girl": 0.5}')
    add("--max-tags", type=positive, metavar="N", help="only the N best")
    add("--sort", choices=("score", "vocabulary"), default="score", help="order of the tags (default: score)")
    add("--underscores", choices=("keep", "space"), default="keep", help="space: 'blue hair', but ^_^ stays as it is")
    add("--remove_underscore", dest="underscores", action="store_const", const="space", help="--underscores space")
    add("--escape-parentheses", action="store_true", help=r"write \( and \), as prompts need them")
    add("--exclude", "--undesired_tags", **listed, help="tags to leave out")
    add("--always-first", "--always_first_tags", **listed, help="tags to put in front, where they are found")
    add("--replace", "--tag_replacement", type=replacements, action="extend", default=[], metavar="OLD=NEW",
        help="rename a tag (several times: several tags)")
    add("--separator", "--caption_separator", type=separator, default=", ", help="between tags (default: ', ')")
    add("--extension", "--caption_extension", help="of the files beside the images (default: .txt or .json)")
    add("--append", "--append_tags", action="store_true", help="merge into the texts that are there")
    add("--overwrite", action="store_true", help="tag again what has tags, which is else left as it is")
    add("--batch-size", "--batch_size", type=batch_size, metavar="auto|N", help="images computed at once")
    add("--workers", "--max_data_loader_n_workers", type=positive, metavar="N", help="threads that decode ahead")
    add("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1 ... (default: auto)")
    add("--precision", choices=("auto", "fp32", "fp16", "bf16", "int8"), default="auto", help="to compute in")
    add("--frequency_tags", action="store_true", help="count all tags in the end, not only the 20 commonest")
    add("--dry-run", action="store_true", help="only say what would be done")
    return parser.parse_args(arguments)
    # fmt: on


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    captions = Captions(given.exclude, dict(given.replace), given.always_first, given.max_tags, given.sort,
                        given.underscores, given.escape_parentheses, given.separator)  # fmt: skip
    job = Job.plan(given.inputs, given.recursive, given.output, captions, given.extension, given.append,
                   given.overwrite)  # fmt: skip
    say = print if given.output != "print" else lambda *_: None  # tags alone, for whatever reads them
    say(job)
    if not job.pending and not given.dry_run:
        job.output.finish()
    elif not given.dry_run:
        tagger = Tagger.load(given.model, given.device, given.precision)
        say(f"{given.model}: {len(tagger.tags):,} tags, {tagger}")
        threshold = read_thresholds(given.thresholds, tagger.tags, given.threshold)
        job.run(tagger, threshold, given.batch_size, given.workers, None if given.frequency_tags else 20)

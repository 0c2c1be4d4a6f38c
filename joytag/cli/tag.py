"""Tag images, folders of them or glob patterns: into a text file beside each image, a table, or the terminal."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import (
    MODEL,
    Parser,
    Refused,
    add_tagger_options,
    batch_size,
    fraction,
    names,
    positive,
    replacement,
    separator,
    tag_replacement,
    workers,
)
from joytag.core.errors import FULL_DISK, describe
from joytag.core.terminal import plural, print, printable
from joytag.data.images import ImageError
from joytag.data.tag_names import DEFAULT_THRESHOLD, describe_unknown, matcher
from joytag.tagging.captions import CaptionStyle, OptionError, read_thresholds
from joytag.tagging.folder import Job, common_folder, find_images
from joytag.tagging.table import real_path, relative_name
from joytag.tagging.tagger import Tagger

SD_SCRIPTS = r"""Flags of sd-scripts' tagger (--undesired_tags, --remove_underscore ...) are accepted and mean what they
mean there, with these differences: images that have tags are skipped without --overwrite; tags are sorted by score
without --sort vocabulary; names of tags may have any spelling; --remove_underscore keeps all kaomoji, not only those of
three characters; \n in a separator is a line break. docs/tagging.md has a table."""
NO_CATEGORIES = "the model's tags have no categories; use --threshold or --thresholds"
REFUSED = {
    "--general_threshold": NO_CATEGORIES,
    "--character_threshold": NO_CATEGORIES,
    "--character_tags_first": "the model's tags have no categories; use --always-first",
    "--character_tag_expand": "the model's tags have no categories; use --replace",
    "--use_rating_tags": "the model has no ratings; leave it out",
    "--use_rating_tags_as_last_tag": "the model has no ratings; leave it out",
    "--repo_id": "use --model",
    "--model_dir": "use --model",
    "--force_download": "use --model; leave it out",
    "--onnx": "the model is no ONNX file; leave it out",
    "--pin_memory": "chosen by device; leave it out",
    "--debug": "use --output print",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag tag", description=__doc__, epilog=SD_SCRIPTS)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="PATH", help="an image, a folder, or a pattern such as 'art/*.png'")
    add("--model", required=True, help=MODEL)
    add("--recursive", action="store_true", help="also search subfolders")
    add("--dry-run", action="store_true", help="only print how many images there are to tag")
    _add_output(parser.add_argument_group("output"))
    _add_choice(parser.add_argument_group("choice of tags"))
    _add_spelling(parser.add_argument_group("order and spelling of tags"))
    _add_evidence(parser.add_argument_group("evidence"))
    _add_computation(parser.add_argument_group("computation"))
    for flag, reason in REFUSED.items():
        add(flag, action=Refused, reason=reason)
    return parser.parse_args(arguments)


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    kinds = ("txt", "json", "jsonl", "csv", "print")
    text = "a .txt or .json beside each image, one tags.jsonl or tags.csv, or print to the terminal (default: txt)"
    add("--output", choices=kinds, default="txt", help=text)
    flags = ("--extension", "--caption_extension", "--caption_extention")
    add(*flags, help="extension of the files beside the images (default: .txt or .json)")
    add("--append", "--append_tags", action="store_true", help="add the tags to existing .txt files")
    add("--overwrite", action="store_true", help="tag images again that have tags; without it they are skipped")
    add("--frequency_tags", action="store_true", help="list all tags with their counts at the end, not only the top 20")


def _add_choice(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = f"score above which a tag is written (default: {DEFAULT_THRESHOLD})"
    add("--threshold", "--thresh", type=fraction, default=DEFAULT_THRESHOLD, help=text)
    text = 'thresholds of single tags: thresholds.csv, or JSON such as {"1girl": 0.5}'
    add("--thresholds", type=Path, metavar="FILE", help=text)
    add("--max-tags", type=positive, metavar="N", help="write only the N tags with the highest scores")
    text = "tags to leave out, after renaming; * stands for any characters: '*_request'"
    add("--exclude", type=names, action="extend", default=[], metavar="TAG,TAG", help=text)
    text = "the same, but split by the separator, as in sd-scripts"
    add("--undesired_tags", default="", metavar="TAG,TAG", help=text)


def _add_spelling(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--sort", choices=("score", "vocabulary"), default="score", help="order of the tags (default: score)")
    text = "tags to write first if an image has them, in this order"
    add("--always-first", type=names, action="extend", default=[], metavar="TAG,TAG", help=text)
    text = "the same, but split by the separator, and with the last tag first, as in sd-scripts"
    add("--always_first_tags", default="", metavar="TAG,TAG", help=text)
    text = r"rename a tag; NEW is written unchanged; may be given several times; \= is an equals sign within a tag"
    add("--replace", type=replacement, action="append", default=[], metavar="OLD=NEW", help=text)
    text = r"the same, as in sd-scripts; \, and \; are part of a tag"
    add("--tag_replacement", type=tag_replacement, default=[], metavar="OLD,NEW;OLD,NEW", help=text)
    text = "space writes 'blue hair' for blue_hair, but keeps ^_^ (default: keep)"
    add("--underscores", choices=("keep", "space"), default="keep", help=text)
    add("--remove_underscore", dest="underscores", action="store_const", const="space", help="--underscores space")
    add("--escape-parentheses", action="store_true", help=r"write \( and \), as image generators' prompts need them")
    add(
        "--separator",
        "--caption_separator",
        type=separator,
        default=", ",
        help=r"between tags (default: ', '); \n: a line break",
    )


def _add_evidence(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "instead of tagging, draw where each image speaks for these tags and where against them, a PNG for each"
    add("--evidence", type=names, action="extend", default=[], metavar="TAG,TAG", help=text)
    text = "folder for these drawings (default: %(default)s)"
    add("--evidence-folder", type=Path, default=Path("evidence"), metavar="FOLDER", help=text)


def _add_computation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_tagger_options(add)
    text = "images computed at once, at most as many as memory allows (default: auto)"
    add("--batch-size", "--batch_size", type=batch_size, metavar="auto|N", help=text)
    text = "threads that decode images ahead (default: chosen by device)"
    add("--workers", "--max_data_loader_n_workers", type=workers, metavar="N", help=text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    if options.evidence:
        draw_evidence(options)
        return
    try:
        job = plan(options)
    except OptionError as error:
        raise ValueError(f"--{error.option}: {error.reason}") from None
    quiet = options.output == "print"  # standard output has the tags alone, for a program that reads them
    if not quiet:
        print(f"{job} (--overwrite tags all)" if len(job.pending) < len(job.paths) else job)
    if options.dry_run:
        return
    if not job.pending:
        job.output.finish()
        return
    tagger = Tagger.load(options.model, options.device, options.precision, options.engine)
    if not quiet:
        print(f"{options.model}: {len(tagger.tags):,} tags, {tagger}")
    threshold = read_thresholds(options.thresholds, tagger.tags, options.threshold)
    job.run(tagger, threshold, options.batch_size, options.workers, None if options.frequency_tags else 20)


def draw_evidence(options: argparse.Namespace) -> None:
    """Draw the evidence for the named tags, an image at a time. Images that cannot be used are named and left out."""
    from joytag.reports import evidence  # not at the top: it needs matplotlib

    drawings = options.evidence_folder
    paths = find_images(options.inputs, options.recursive).images
    paths = [path for path in paths if drawings.resolve() not in real_path(path).parents]
    if not paths:
        raise ValueError(f"{options.inputs[0]}: no images besides the drawings in {drawings}")
    folder = common_folder(options.inputs, paths)
    if options.dry_run:
        print(f"{len(paths):,} {plural(len(paths), 'image')} to draw into {drawings}")
        return
    tagger = Tagger.load(options.model, options.device, options.precision)
    print(f"{options.model}: {len(tagger.tags):,} tags, {tagger}")
    if unknown := describe_unknown(options.evidence, tagger.tags):
        raise ValueError(f"--evidence: the model has no tag {unknown}")
    is_chosen = matcher(options.evidence, tagger.tags)
    tags = [tag for tag in tagger.tags if is_chosen(tag) is not None]
    failed = []
    for image in paths:
        drawing = drawings / f"{relative_name(image, folder)}.png"
        try:
            scores = evidence.write(tagger, image, tags, drawing)
        except ImageError as error:
            failed.append(str(error))
            continue
        except OSError as error:  # such as a name that is too long
            if error.errno in FULL_DISK:
                raise
            failed.append(describe(error))
            continue
        best = ", ".join(f"{tag} {score:.2f}" for tag, score in list(scores.items())[:5])
        print(printable(f"{drawing}: {best}"))
    if len(failed) == len(paths):
        raise ValueError(failed[0])
    for reason in failed:
        print(f"Not drawn: {printable(reason)}", file=sys.stderr)


def plan(options: argparse.Namespace) -> Job:
    """Return the job that the flags describe. Raises OptionError for flags that exclude each other."""

    def split(text: str) -> list[str]:
        return [name.strip() for name in text.split(options.separator.strip() or ",") if name.strip()]

    replace: dict[str, str] = {}
    for old, new in [*options.replace, *options.tag_replacement]:
        replace.setdefault(old, new)
    style = CaptionStyle(
        exclude=[*options.exclude, *split(options.undesired_tags)],
        replace=replace,
        always_first=[*options.always_first, *reversed(split(options.always_first_tags))],
        max_tags=options.max_tags,
        sort=options.sort,
        underscores=options.underscores,
        escape=options.escape_parentheses,
        separator=options.separator,
    )
    return Job.plan(
        options.inputs, options.recursive, options.output, style, options.extension, options.append, options.overwrite
    )

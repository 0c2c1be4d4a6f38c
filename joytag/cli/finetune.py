"""Fine-tune a released model on a folder of images with .txt sidecars: build the dataset, then train."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from data_prep.build import BuildSettings, Outdated, build
from data_prep.sources.sidecar import NoSidecars
from joytag.cli.arguments import MODEL, Parser
from joytag.cli.command import OUTPUT_REMEDIES, add_remedies
from joytag.cli.remedies import AGAIN
from joytag.core import settings
from joytag.core.errors import Diverged, Exit, ExitCode, ProcessLost, Stopped
from joytag.core.terminal import plural, print, quote
from joytag.data import tag_names
from joytag.data.dataset import Dataset, Posts
from joytag.evaluation import forgetting
from joytag.models import checkpoint, release
from joytag.training import launch, transfer
from joytag.training.config import RunSettings
from joytag.training.state import RunChanged

CONFIG = "finetune.yaml"
DATASET = "dataset"  # in the run's directory
REMEDIES = {
    **OUTPUT_REMEDIES,
    Stopped: AGAIN,
    ProcessLost: AGAIN,
    RunChanged: "change them back to continue, or start again with another --output",
    Outdated: "start again with another --output",
    NoSidecars: "write them first: joytag tag",
    Diverged: "start again with another --output and a lower optimizer.lr",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag finetune", description=__doc__)
    parser.add_argument("images", type=Path, help="a folder of images, each with a .txt of tags beside it")
    parser.add_argument("--model", required=True, help=MODEL.replace("a run", "a finished run"))
    parser.add_argument("--output", required=True, type=Path, help="the new run's directory, with release/ in it")
    parser.add_argument(
        "--only-new-tags", action="store_true", help="leave out the release's tags that these images do not use"
    )
    parser.add_argument(
        "--config",
        default=CONFIG,
        help="a YAML file (default: %(default)s, with samples and rate that follow from the number of images)",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    options = parser.parse_intermixed_args(arguments)
    for text in options.overrides:
        if "=" not in text:
            raise ValueError(f"{text}: give one folder, which is searched with its subfolders")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    released = options.output / release.DIRECTORY
    if release.is_complete(released):
        raise ValueError(f"{options.output}: holds a finished run; choose another --output, or remove it")
    if not options.images.is_dir():
        raise ValueError(f"{options.images}: no such folder")
    model = release.locate(options.model)
    run_settings(options, model, [])  # a mistake ends here, before anything is written
    with add_remedies(REMEDIES):
        dataset = Dataset.open(build(build_settings(options, model)))
        posts = dataset.posts("train")
        images = len(posts)
        print_tags_without_negatives(dataset, posts, set(release.read_tags(model)))
        chosen = transfer.chosen_settings(images, release.read_config(model)) if options.config == CONFIG else []
        config = run_settings(options, model, chosen)
        samples, rate = sum(stage.samples for stage in config.stages), config.optimizer.lr
        schedule = f"{samples:,} samples, peak rate {rate:g}, retain {config.retain:g}"
        print(f"{images:,} training {plural(images, 'image')}: {schedule}")
        launch.start(config, "auto" if checkpoint.checkpoints(options.output / checkpoint.DIRECTORY) else None)
    try:
        print(forgetting.summary(model, released, dataset, config.threshold, config.device))
    except KeyboardInterrupt:
        raise Exit(f"interrupted; the model in {released} is whole, but not measured", ExitCode.INTERRUPTED) from None
    print("Next, tag with the model, or measure it on the images that were held out:")
    print(f"  joytag tag --model {quote(released)} IMAGES")
    print(f"  joytag evaluate --model {quote(released)} --data {quote(dataset.directory)}")


def print_tags_without_negatives(dataset: Dataset, posts: Posts, known: Collection[str]) -> None:
    """Print which tags, but the known ones, no training image lacks or rejects, and the remedy."""
    names = [dataset.tags.names[i] for i in np.flatnonzero(dataset.tags_without_negatives(posts))]
    if new := [name for name in names if name not in known]:
        print(
            f"No training image lacks {', '.join(new)}, so the model will find it everywhere. Add images without it, "
            f"tagged by joytag tag, or reject it in some: -{new[0]} in their .txt, with sources.0.negatives=true"
        )


def build_settings(options: argparse.Namespace, model: Path) -> BuildSettings:
    """Return the settings of the dataset. Raises SettingsError."""
    overrides = [text for text in options.overrides if is_of_dataset(text)]
    base = settings.load(BuildSettings, settings.find("folder.yaml", "data"), overrides)
    source = base.sources[0].model_copy(update={"path": str(options.images)})
    tags = base.tags.model_copy(update={"keep": None if options.only_new_tags else str(model / tag_names.FILE)})
    return base.model_copy(update={"output": str(options.output / DATASET), "sources": [source], "tags": tags})


def run_settings(options: argparse.Namespace, model: Path, chosen: list[str]) -> RunSettings:
    """Return the settings of the run; those on the command line win over the `chosen` ones. Raises SettingsError."""
    overrides = [text for text in options.overrides if not is_of_dataset(text)]
    config = settings.load(RunSettings, settings.find(options.config), [*chosen, *overrides])
    data = config.data.model_copy(update={"directory": str(options.output / DATASET)})
    paths = {"output": str(options.output), "init_from": str(model), "data": data}
    return config.model_copy(update=paths).fitted_to(release.read_config(model))


def is_of_dataset(override: str) -> bool:
    """Whether a setting on the command line is one of the dataset, not of the run."""
    section = override.partition("=")[0].partition(".")[0]
    return section in BuildSettings.model_fields and section not in RunSettings.model_fields

"""Fine-tune a released model on a folder of images with .txt sidecars: build the dataset, then train."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.build import BuildSettings, build
from joytag.cli.arguments import Parser
from joytag.cli.command import OUTPUT_REMEDIES, add_remedies
from joytag.core import settings
from joytag.core.errors import Diverged, ProcessLost, Stopped
from joytag.data import tag_names
from joytag.models import checkpoint, release
from joytag.training import launch
from joytag.training.config import RunSettings

REMEDIES = {
    **OUTPUT_REMEDIES,
    Stopped: "run the same command again to continue",
    ProcessLost: "run the same command again to continue",
    Diverged: "start again with another --output and a lower optimizer.lr",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag finetune", description=__doc__)
    parser.add_argument("images", type=Path, help="a folder of images, each with a .txt of tags beside it")
    parser.add_argument("--model", required=True, help="a release directory, or a model's id on the Hugging Face hub")
    parser.add_argument("--output", required=True, type=Path, help="the new run's directory, with release/ in it")
    parser.add_argument(
        "--only-new-tags", action="store_true", help="leave out the release's tags that these images do not use"
    )
    parser.add_argument("--config", default="finetune.yaml", help="a YAML file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    if (options.output / release.DIRECTORY).exists():
        raise ValueError(f"{options.output}: holds a finished run; choose another --output, or remove it")
    model, dataset = release.locate(options.model), options.output / "dataset"
    config = settings.load(RunSettings, settings.find(options.config), options.overrides)
    data = config.data.model_copy(update={"directory": str(dataset)})
    paths = {"output": str(options.output), "init_from": str(model), "data": data}
    config = config.model_copy(update=paths).fitted_to(release.read_config(model))

    base = settings.load(BuildSettings, settings.find("folder.yaml", "data"))
    source = base.sources[0].model_copy(update={"path": str(options.images)})
    tags = base.tags.model_copy(update={"keep": None if options.only_new_tags else str(model / tag_names.FILE)})
    with add_remedies(REMEDIES):
        build(base.model_copy(update={"output": str(dataset), "sources": [source], "tags": tags}))
        launch.start(config, "auto" if checkpoint.checkpoints(options.output / checkpoint.DIRECTORY) else None)
    print(f"Next: joytag tag --model {options.output / release.DIRECTORY} IMAGES")

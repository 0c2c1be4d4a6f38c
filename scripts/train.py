"""Train a tagger, from scratch or from a checkpoint."""

from pathlib import Path

from joytag import checkpoint, distributed, plan, records, settings
from joytag.cli import Parser, command_line
from joytag.config import RunSettings
from joytag.train import Run, train


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, looked for as given, then in configs/")
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from the run's newest checkpoint, or from PATH")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, without data")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the config's")
    arguments = parser.parse_intermixed_args()

    config = settings.load(RunSettings, settings.find(arguments.config), arguments.overrides)
    if arguments.dry_run:
        print(plan.describe(config))
        return
    dataset = records.Dataset.open(Path(config.data.directory))
    device = distributed.pick_device(config.device)
    with distributed.process_group(device):
        run = Run(config, dataset, device, distributed.pick_dtype(config.precision, device))
        if arguments.resume == "auto":
            resume = checkpoint.newest(run.root)
        else:
            resume = Path(arguments.resume) if arguments.resume else None
            if resume is None and checkpoint.checkpoints(run.root):
                raise ValueError(f"{run.root}: holds checkpoints; add --resume auto, or output=DIR for a new run")
        train(run, resume)


if __name__ == "__main__":
    command_line(main)

"""Draw a contact sheet and the training curves of a run, finished or not, and summarize its results."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import Parser, fraction, positive
from joytag.core.files import replacing
from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.models import checkpoint
from joytag.models.release import FILES
from joytag.reports import evaluation
from joytag.reports.contact_sheet import draw_validation_sample
from joytag.reports.training_plots import plot_curves
from joytag.tagging.tagger import Tagger


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag show", description=__doc__)
    add = parser.add_argument
    add("--run", required=True, type=Path, help="a run's directory")
    add("--data", required=True, type=Path, help="a dataset directory")
    add("--images", type=positive, default=15, help="images on the contact sheet (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed that chooses the images (default: %(default)s)")
    add(
        "--threshold",
        type=fraction,
        default=DEFAULT_THRESHOLD,
        help="score above which a tag is predicted (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    run = options.run
    model = checkpoint.newest_model(run)
    if model is None:
        raise ValueError(f"{run}: contains neither a release nor a checkpoint yet")
    sample = draw_validation_sample(
        Tagger.load(model), Dataset.open(options.data), options.images, options.seed, options.threshold
    )
    with replacing(run / "contact-sheet.png") as partial:
        sample.sheet.save(partial, "PNG")
    plot_curves(run / "log.jsonl", run / "curves.png")
    if model.parent == run / checkpoint.DIRECTORY:
        print(f"Written: {run}/contact-sheet.png (tagged by {model}), {run}/curves.png")
        return
    print(f"""
{evaluation.summarize(model / "metrics.json")}

  {model}/report.html        metrics of every tag and group of tags; open it in a browser
  {run}/contact-sheet.png          validation images with right, wrong and missed tags
  {run}/curves.png                 training curves
  {model}/                   the model: {", ".join(FILES)}
  {model}/full-metrics.txt   precision, recall and F1 of every tag

Next, tag this image or a folder of your own:
  joytag tag --model {model} --output print {sample.best}
or change the recipe and train again: see "Train and measure" in README.md.""")

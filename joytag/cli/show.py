"""Draw a contact sheet and the training curves of a run, finished or not, and summarize its results."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from joytag.cli.arguments import Parser, fraction, positive, results_directory
from joytag.cli.command import add_remedies
from joytag.cli.remedies import EVALUATION_REMEDIES
from joytag.core import jsonl
from joytag.core.files import ABANDONED, remove_partials, replacing
from joytag.core.terminal import print, quote
from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.models import checkpoint
from joytag.models.release import FILES
from joytag.reports import evaluation
from joytag.reports.contact_sheet import draw_validation_sample
from joytag.reports.training_plots import plot_curves
from joytag.tagging.tagger import Tagger
from joytag.training.tracker import LOG


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag show", description=__doc__)
    add = parser.add_argument
    add("--run", required=True, type=results_directory, help="a run's directory")
    add("--data", type=Path, help="a dataset directory (default: the run's, if it still has a checkpoint)")
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
    run, model = options.run, checkpoint.newest_model(options.run)
    if model is None and not (run / LOG).exists():
        raise ValueError(f"{run}: not a run: it contains neither {LOG} nor a release nor a checkpoint")
    remove_partials(run, ABANDONED)
    if jsonl.read(run / LOG):
        plot_curves(run / LOG, run / "curves.png")
        print(f"Written: {run}/curves.png, the training curves")
    else:
        print(f"No curves: {run / LOG} has no lines")
    if model is None:
        print("No contact sheet: the run has not saved a checkpoint yet")
        return
    with add_remedies(EVALUATION_REMEDIES):
        data = options.data or checkpoint.dataset(run)
    dataset = Dataset.open(data)
    sample = draw_validation_sample(Tagger.load(model), dataset, options.images, options.seed, options.threshold)
    with replacing(run / "contact-sheet.png") as partial:
        sample.sheet.save(partial, "PNG")
    print(f"Written: {run}/contact-sheet.png, validation images tagged by {model}")
    if model.parent != run / checkpoint.DIRECTORY:
        describe_release(model, data, sample.best)


def describe_release(model: Path, data: Path, image: Path) -> None:
    """Print a finished model's results, if it has been evaluated, and what to do next with it."""
    metrics = model / "metrics.json"
    if metrics.exists():
        print(f"""
{evaluation.summarize(metrics)}

  {model}/report.html        metrics of every tag and group of tags; open it in a browser
  {model}/full-metrics.txt   precision, recall and F1 of every tag
  {model}/                   the model: {", ".join(FILES)}""")
    else:
        print(f"\nNext, measure the model:\n  joytag evaluate --model {quote(model)} --data {quote(data)}")
    print(f"""
Next, tag this image or a folder of your own:
  joytag tag --model {quote(model)} --output print {quote(image)}
or change the recipe and train again: see "Train and measure" in README.md.""")

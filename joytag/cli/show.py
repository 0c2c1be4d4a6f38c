"""Draw a run, finished or not: a contact sheet of validation images, its training curves, a short summary."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from joytag.cli.arguments import Parser, fraction, positive
from joytag.data import images
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.reports import evaluation, training_plots
from joytag.tagging.tagger import Tagger


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="a run's directory")
    parser.add_argument("--data", required=True, type=Path, help="a dataset directory")
    parser.add_argument("--images", type=positive, default=15)
    parser.add_argument("--seed", type=int, default=0, help="chooses the images")
    parser.add_argument("--threshold", type=fraction, default=0.4)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    given = parse(arguments)
    dataset = Dataset.open(given.data)
    released = given.run / "release"
    model = released if released.is_dir() else checkpoint.newest(given.run / "checkpoints")
    if model is None:
        raise ValueError(f"{given.run}: holds neither a release nor a checkpoint yet")
    tagger = Tagger.load(model)
    posts = dataset.posts("validation")
    rows = np.random.default_rng(given.seed).choice(len(posts), min(given.images, len(posts)), replace=False)
    paths = [dataset.image_path(posts.hashes[row].tobytes()) for row in rows]
    decoded, labels = [images.decode(path) for path in paths], posts.labels(rows, len(dataset.tags))
    scores = np.stack([result.scores for result in tagger.stream(decoded)])
    sheet = training_plots.contact_sheet(decoded, labels, scores, tagger.tags, given.threshold)
    sheet.save(given.run / "contact-sheet.png")
    training_plots.plot_curves(given.run / "log.jsonl", given.run / "curves.png")

    if model != released:
        print(f"Drawn: {given.run}/contact-sheet.png, by the model of {model}, and {given.run}/curves.png")
        return
    found = scores > given.threshold
    f1 = 2 * (found & labels).sum(axis=1) / np.maximum(1, found.sum(axis=1) + labels.sum(axis=1))
    print(f"""
{evaluation.summary(model / "metrics.json")}

  {given.run}/release/report.html        how well it does, tag by tag and group by group: open it in a browser
  {given.run}/contact-sheet.png          validation images: tags right, wrong and missed
  {given.run}/curves.png                 how the training went
  {given.run}/release/                   the model: config.json, model.safetensors, top_tags.txt
  {given.run}/release/full-metrics.txt   precision, recall and F1 of every tag

Next, tag images, this one or a folder of your own:
  .venv/bin/python scripts/predict.py --model {given.run}/release --output print {paths[f1.argmax()]}
or change the recipe and train again: see "Train" in README.md.""")

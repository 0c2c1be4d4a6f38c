"""Draw a run, finished or not: a contact sheet of validation pictures, its training curves, a short summary."""

from pathlib import Path

import numpy as np

from joytag.core.errors import Parser, command_line, fraction, positive
from joytag.data import images
from joytag.data.dataset import Dataset
from joytag.models import checkpoint
from joytag.reports import evaluation
from joytag.tagging.tagger import Tagger


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="a run's directory")
    parser.add_argument("--data", required=True, type=Path, help="a dataset directory")
    parser.add_argument("--pictures", type=positive, default=15)
    parser.add_argument("--seed", type=int, default=0, help="chooses the pictures")
    parser.add_argument("--threshold", type=fraction, default=0.4)
    arguments = parser.parse_args()

    dataset = Dataset.open(arguments.data)
    released = arguments.run / "release"
    model = released if released.is_dir() else checkpoint.newest(arguments.run / "checkpoints")
    if model is None:
        raise ValueError(f"{arguments.run}: holds neither a release nor a checkpoint yet")
    tagger = Tagger.load(model)
    posts = dataset.posts("validation")
    rows = np.random.default_rng(arguments.seed).choice(len(posts), min(arguments.pictures, len(posts)), replace=False)
    paths = [dataset.image_path(posts.hashes[row].tobytes()) for row in rows]
    pictures, labels = [images.decode(path) for path in paths], posts.labels(rows, len(dataset.tags))
    scores = np.stack([result.scores for result in tagger.stream(pictures)])
    sheet = evaluation.contact_sheet(pictures, labels, scores, tagger.tags, arguments.threshold)
    sheet.save(arguments.run / "contact-sheet.png")
    evaluation.plot_curves(arguments.run / "log.jsonl", arguments.run / "curves.png")

    if model != released:
        print(f"Drawn: {arguments.run}/contact-sheet.png, by the model of {model}, and {arguments.run}/curves.png")
        return
    found = scores > arguments.threshold
    f1 = 2 * (found & labels).sum(axis=1) / np.maximum(1, found.sum(axis=1) + labels.sum(axis=1))
    print(f"""
{evaluation.summary(model / "metrics.json")}

  {arguments.run}/release/report.html        how well it does, tag by tag and group by group: open it in a browser
  {arguments.run}/contact-sheet.png          validation pictures: tags right, wrong and missed
  {arguments.run}/curves.png                 how the training went
  {arguments.run}/release/                   the model: config.json, model.safetensors, top_tags.txt
  {arguments.run}/release/full-metrics.txt   precision, recall and F1 of every tag

Next, tag pictures, this one or a folder of your own:
  .venv/bin/python scripts/predict.py --model {arguments.run}/release --output print {paths[f1.argmax()]}
or change the recipe and train again: see "Train" in README.md.""")


if __name__ == "__main__":
    command_line(main)

"""A dataset directory as a table and an image: how many posts went where and why, which tags, which sizes.

joytag describe data/danbooru2021
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from joytag.data import dataset

COLOURS = {"general": "#4269d0", "artist": "#a463f2", "copyright": "#ff725c", "character": "#3ca951", "meta": "#9c6b4e"}


def table(description: dict[str, Any]) -> Table:
    """What became of each source's posts. Raises DatasetError for a description without counts."""
    counts = description.get("counts")
    if not isinstance(counts, dict):
        raise dataset.DatasetError("dataset.json: counts: missing, as in datasets of old builds; build it again")
    found = Table("posts", *counts, *["all"] * (len(counts) > 1))
    for column in found.columns[1:]:
        column.justify = "right"
    reasons = sorted(
        {r for source in counts.values() for r in source["rejected"]},
        key=lambda reason: -sum(source["rejected"].get(reason, 0) for source in counts.values()),
    )

    def row(title: str, values: list[int], **style: Any) -> None:
        total = [sum(values)] * (len(values) > 1)
        found.add_row(title, *(f"{value:,}" for value in [*values, *total]), **style)

    row("in the sources", [source["posts"] for source in counts.values()], end_section=True)
    for reason in reasons:
        row(
            reason, [source["rejected"].get(reason, 0) for source in counts.values()], end_section=reason == reasons[-1]
        )
    for split in dataset.SPLITS:
        row(split, [source[split] for source in counts.values()])
    return found


def draw(directory: Path) -> Path:
    """Draw `dataset.png`: tag frequencies, shares of categories, tags an image, and sizes where the scan is there."""
    tags = pq.read_table(directory / "tags.parquet", columns=["category", "count"])
    category, count = tags.column("category").to_numpy(), tags.column("count").to_numpy()
    from matplotlib.figure import Figure  # here, since importing matplotlib writes a font cache

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    by_rank = np.argsort(-count, kind="stable")
    for number, name in dataset.CATEGORIES.items():
        ranks = np.flatnonzero(category[by_rank] == number)
        if len(ranks):
            axes[0, 0].plot(ranks + 1, count[by_rank][ranks], ".", markersize=3, color=COLOURS[name], label=name)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="rank", ylabel="images", title=f"{len(count):,} tags by use")
    axes[0, 0].legend(markerscale=4)
    _shares(axes[0, 1], category, count)
    _tags_a_image(axes[1, 0], directory)
    _sizes(axes[1, 1], directory)
    path = directory / "dataset.png"
    figure.savefig(path, dpi=110)
    return path


def _shares(axes: Any, category: np.ndarray, count: np.ndarray) -> None:
    from matplotlib.ticker import PercentFormatter

    names = [name for number, name in dataset.CATEGORIES.items() if (category == number).any()]
    numbers = [number for number in dataset.CATEGORIES if (category == number).any()]
    shares = [
        ("of tags", [float((category == number).mean()) for number in numbers]),
        ("of their uses", [float(count[category == number].sum() / max(1, count.sum())) for number in numbers]),
    ]
    for offset, (label, values) in enumerate(shares):
        places = np.arange(len(names)) + 0.4 * offset - 0.2
        bars = axes.barh(places, values, 0.36, label=label, color=[COLOURS[n] for n in names], alpha=1 - 0.5 * offset)
        axes.bar_label(bars, [f"{value:.1%} {label}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title="categories", xlim=(0, 1.25 * max(max(values) for _, values in shares)))
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _tags_a_image(axes: Any, directory: Path) -> None:
    for split, colour in zip(dataset.SPLITS, ("#4269d0", "#ff725c"), strict=True):
        offsets = (
            pq.read_table(directory / f"{split}.parquet", columns=["tags"]).column("tags").combine_chunks().offsets
        )
        lengths = np.diff(offsets.to_numpy())
        bins = np.arange(0, min(100, lengths.max(initial=1)) + 2)
        label = f"{split}: {len(lengths):,} images, {lengths.mean():.1f} tags"
        axes.hist(lengths, bins=bins, density=True, histtype="step", color=colour, label=label)
    axes.set(title="tags an image", xlabel="tags", ylabel="share")
    axes.legend(loc="upper right", fontsize=8)


def _sizes(axes: Any, directory: Path) -> None:
    files = sorted((directory / "work").glob("*/scan/*.parquet"))
    axes.set(title="sizes of the originals", xlabel="width, px", ylabel="height, px")
    if not files:
        axes.text(0.5, 0.5, "work/ is not here", ha="center", transform=axes.transAxes)
        return
    sizes = [pq.read_table(file, columns=["width", "height"]).drop_null() for file in files]
    width, height = (np.concatenate([s.column(name).to_numpy() for s in sizes]) for name in ("width", "height"))
    axes.hexbin(width, height, gridsize=40, xscale="log", yscale="log", bins="log", cmap="Blues", mincnt=1)
    low, high = min(width.min(), height.min()) * 0.9, max(width.max(), height.max()) * 1.1
    axes.set(xlim=(low, high), ylim=(low, high))

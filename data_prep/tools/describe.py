"""Describe a dataset directory: a table of its posts, and plots of its tags and image sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from data_prep.image_table import work_directory
from joytag.data import dataset

if TYPE_CHECKING:  # importing matplotlib writes a font cache
    from matplotlib.axes import Axes

COLOURS = {"general": "#4269d0", "artist": "#a463f2", "copyright": "#ff725c", "character": "#3ca951", "meta": "#9c6b4e"}


def table(description: dict[str, Any]) -> Table:
    """Tabulate how many posts of each source were rejected, and why, and how many are in each split.

    Raises DatasetError for a description without counts.
    """
    counts = description.get("counts")
    if not isinstance(counts, dict):
        raise dataset.DatasetError("dataset.json: counts: missing, as in datasets of old builds; build it again")
    result = Table("posts", *counts, *["all"] * (len(counts) > 1))
    for column in result.columns[1:]:
        column.justify = "right"
    reasons = sorted(
        {reason for source in counts.values() for reason in source["rejected"]},
        key=lambda reason: -sum(source["rejected"].get(reason, 0) for source in counts.values()),
    )

    def add(title: str, values: list[int], *, end_section: bool = False) -> None:
        total = [sum(values)] * (len(values) > 1)
        result.add_row(title, *(f"{value:,}" for value in [*values, *total]), end_section=end_section)

    add("in the sources", [source["posts"] for source in counts.values()], end_section=True)
    for reason in reasons:
        values = [source["rejected"].get(reason, 0) for source in counts.values()]
        add(reason, values, end_section=reason == reasons[-1])
    for split in dataset.SPLITS:
        add(split, [source[split] for source in counts.values()])
    return result


def draw(directory: Path) -> Path:
    """Draw `dataset.png` into a dataset directory: tag frequencies, categories, tags per image, and image sizes.

    The sizes need the scan in `work/`. Returns the path.
    """
    from matplotlib.figure import Figure

    tags = pq.read_table(directory / "tags.parquet", columns=["category", "count"])
    category, count = tags["category"].to_numpy(), tags["count"].to_numpy()
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_frequencies(axes[0, 0], category, count)
    _plot_categories(axes[0, 1], category, count)
    _plot_tags_per_image(axes[1, 0], directory)
    _plot_sizes(axes[1, 1], directory)
    path = directory / "dataset.png"
    figure.savefig(path, dpi=110)
    return path


def _plot_frequencies(axes: Axes, category: np.ndarray, count: np.ndarray) -> None:
    by_rank = np.argsort(-count, kind="stable")
    for number, name in dataset.CATEGORIES.items():
        ranks = np.flatnonzero(category[by_rank] == number)
        if len(ranks):
            axes.plot(ranks + 1, count[by_rank][ranks], ".", markersize=3, color=COLOURS[name], label=name)
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="images", title=f"{len(count):,} tags by frequency")
    axes.legend(markerscale=4)


def _plot_categories(axes: Axes, category: np.ndarray, count: np.ndarray) -> None:
    from matplotlib.ticker import PercentFormatter

    present = {number: name for number, name in dataset.CATEGORIES.items() if (category == number).any()}
    shares = {
        "of tags": [float((category == number).mean()) for number in present],
        "of their uses": [float(count[category == number].sum() / max(1, count.sum())) for number in present],
    }
    colours = [COLOURS[name] for name in present.values()]
    for offset, (label, values) in enumerate(shares.items()):
        positions = np.arange(len(present)) + 0.4 * offset - 0.2
        bars = axes.barh(positions, values, 0.36, label=label, color=colours, alpha=1 - 0.5 * offset)
        axes.bar_label(bars, [f"{value:.1%} {label}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(present)), list(present.values()))
    axes.invert_yaxis()
    axes.set(title="categories", xlim=(0, 1.25 * max(max(values) for values in shares.values())))
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _plot_tags_per_image(axes: Axes, directory: Path) -> None:
    for split, colour in zip(dataset.SPLITS, ("#4269d0", "#ff725c"), strict=True):
        lists = pq.read_table(directory / f"{split}.parquet", columns=["tags"])["tags"].combine_chunks()
        lengths = np.diff(lists.offsets.to_numpy())
        bins = list(range(min(100, lengths.max(initial=1)) + 2))
        label = f"{split}: {len(lengths):,} images, {lengths.mean():.1f} tags"
        axes.hist(lengths, bins=bins, density=True, histtype="step", color=colour, label=label)
    axes.set(title="tags per image", xlabel="tags", ylabel="share of images")
    axes.legend(loc="upper right", fontsize=8)


def _plot_sizes(axes: Axes, directory: Path) -> None:
    sources = dataset.read_description(directory)["sources"]
    files = [path for source in sources for path in work_directory(directory, source).scans()]
    axes.set(title="sizes of the originals", xlabel="width, px", ylabel="height, px")
    if not files:
        axes.text(0.5, 0.5, "no scan in work/", ha="center", transform=axes.transAxes)
        return
    sizes = [pq.read_table(file, columns=["width", "height"]).drop_null() for file in files]
    width, height = (np.concatenate([size[name].to_numpy() for size in sizes]) for name in ("width", "height"))
    axes.hexbin(width, height, gridsize=40, xscale="log", yscale="log", bins="log", cmap="Blues", mincnt=1)
    low, high = min(width.min(), height.min()) * 0.9, max(width.max(), height.max()) * 1.1
    axes.set(xlim=(low, high), ylim=(low, high))

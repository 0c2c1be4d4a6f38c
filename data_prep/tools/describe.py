"""Describe a dataset directory: a table of its posts, and plots of its tags and image sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from data_prep.dataset import describe_giants
from data_prep.image_table import work_directory
from joytag.core.files import ABANDONED, remove_partials, replacing
from joytag.data import dataset

if TYPE_CHECKING:  # importing matplotlib writes a font cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def families(description: dict[str, Any]) -> list[str]:
    """Return lines on the families of a dataset; none for datasets of builds that did not count them."""
    counts = description.get("families")
    if counts is None:
        return []
    images, several = (f"{counts[name]:,}" for name in ("images", "several"))
    shares = ", ".join(f"{share:.1%} of {source}" for source, share in counts["relatives"].items())
    return [
        f"{counts['families']:,} families: {several} of several images ({images}), at most {counts['largest']:,}",
        f"without families these validation images would have a relative in training: {shares}",
        *describe_giants(counts),
    ]


def draw(directory: Path) -> Path:
    """Draw `dataset.png` into a dataset directory, and return its path."""
    path = directory / "dataset.png"
    remove_partials(directory, ABANDONED)
    with replacing(path) as partial:
        plot(directory).savefig(partial, dpi=110, format="png")
    return path


def plot(directory: Path) -> Figure:
    """Plot the tag frequencies, categories, tags per image, and image sizes of a dataset directory.

    The sizes need the scan in `work/`.
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
    return figure


def _plot_frequencies(axes: Axes, category: np.ndarray, count: np.ndarray) -> None:
    by_rank = np.argsort(-count, kind="stable")
    for number, name in dataset.CATEGORIES.items():
        ranks = np.flatnonzero(category[by_rank] == number)
        if len(ranks):
            axes.plot(ranks + 1, count[by_rank][ranks], ".", markersize=4, color=COLOURS[name], label=name)
    axes.set(xlabel="rank", ylabel="images", title=f"{len(count):,} tags by frequency")
    _set_log_scales(axes)
    axes.legend(markerscale=4)


def _set_log_scales(axes: Axes) -> None:
    """Make both axes logarithmic, with plain numbers at the powers of ten and, where there is room, between them."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        low, high = axis.get_view_interval()
        steps = (1,) if high >= 1000 * low else (1, 2, 5) if high >= 10 * low else (1, 2, 3, 4, 6, 8)
        axis.set_major_locator(LogLocator(subs=steps, numticks=12))
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())


def _plot_categories(axes: Axes, category: np.ndarray, count: np.ndarray) -> None:
    from matplotlib.ticker import PercentFormatter

    present = {number: name for number, name in dataset.CATEGORIES.items() if (category == number).any()}
    shares = {
        "tags": [float((category == number).mean()) for number in present],
        "uses": [float(count[category == number].sum() / max(1, count.sum())) for number in present],
    }
    colours = [COLOURS[name] for name in present.values()]
    for offset, (label, values) in enumerate(shares.items()):
        positions = np.arange(len(present)) + 0.4 * offset - 0.2
        bars = axes.barh(positions, values, 0.36, label=label, color=colours, alpha=1 - 0.5 * offset)
        for bar, value in zip(bars, values, strict=True):
            inside, middle = value > 0.7, bar.get_y() + bar.get_height() / 2
            colour = "white" if inside and not offset else "black"
            text, side = f"{value:.1%} of all {label}", "right" if inside else "left"
            axes.text(value + (-0.01 if inside else 0.01), middle, text, ha=side, va="center", color=colour, fontsize=8)
    axes.set_yticks(range(len(present)), list(present.values()))
    axes.invert_yaxis()
    axes.set(title="categories", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _plot_tags_per_image(axes: Axes, directory: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    for split, colour in zip(dataset.SPLITS, ("#4269d0", "#ff725c"), strict=True):
        lists = pq.read_table(directory / f"{split}.parquet", columns=["tags"])["tags"].combine_chunks()
        lengths = np.diff(lists.offsets.to_numpy())
        if not len(lengths):
            continue
        bins = np.arange(min(100, lengths.max(initial=1)) + 2) - 0.5
        label = f"{split}: {len(lengths):,} images, {lengths.mean():.1f} tags"
        axes.hist(lengths, bins=list(bins), density=True, histtype="step", color=colour, label=label)
    axes.set(title="tags per image", xlabel="tags", ylabel="share of images", ylim=(0, 1.2 * axes.get_ylim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    low, high = min(width.min(), height.min()) / 1.5, max(width.max(), height.max()) * 1.5
    extent = tuple(np.log10([low, high, low, high]))
    axes.hexbin(
        width, height, gridsize=40, xscale="log", yscale="log", bins="log", cmap="viridis_r", mincnt=1, extent=extent
    )
    axes.set(xlim=(low, high), ylim=(low, high))
    _set_log_scales(axes)

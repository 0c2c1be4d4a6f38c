"""Plots of a run's training curves."""

from __future__ import annotations

from pathlib import Path

from joytag.core.files import replacing
from joytag.training.tracker import curve

# Title -> key in log.jsonl -> label in the legend.
PANELS = {
    "Loss": {"loss": "training", "val_loss": "validation"},
    "Gradient norm": {"grad_norm": ""},
    "Learning rate": {"lr": ""},
    "Validation F1": {"val_micro_f1": "micro", "val_macro_f1": "macro"},
}


def plot_curves(log: Path, path: Path) -> None:
    """Plot a run's log.jsonl against samples and save it as PNG: loss, gradient norm, learning rate, validation F1."""
    from matplotlib.figure import Figure  # not at the top, because importing matplotlib writes a font cache
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, label in names.items():
            points = curve(log, name)
            marker = "." if name.startswith("val_") else ""
            axes.plot(*zip(*points, strict=True) if points else ((), ()), marker=marker, label=label)
        axes.set(title=title, xlabel="samples", ylim=(0, 1) if title.endswith("F1") else None)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")

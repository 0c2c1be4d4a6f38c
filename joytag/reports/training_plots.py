"""Training curves and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from joytag.core import jsonl
from joytag.data import images

RIGHT, WRONG, MISSED, INK = "#1a7f37", "#cf222e", "#8c959f", "#1f2328"


def plot_curves(log: Path, path: Path) -> None:
    """Draw a run's log.jsonl against samples: loss, gradient norm, learning rate and validation F1."""
    from matplotlib.figure import Figure  # here, since importing matplotlib writes a font cache
    from matplotlib.ticker import EngFormatter

    lines = jsonl.read(log)
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    panels = {
        "Loss": {"loss": "training", "val_loss": "validation"},
        "Gradient norm": {"grad_norm": ""},
        "Learning rate": {"lr": ""},
        "Validation F1": {"val_micro_f1": "micro", "val_macro_f1": "macro"},
    }
    for axes, (title, names) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        for name, label in names.items():
            points = [(line["samples"], line[name]) for line in lines if name in line]
            style = {"marker": "." if name.startswith("val_") else "", "label": label}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), **style)
        axes.set(title=title, xlabel="samples", ylim=(0, 1) if title.endswith("F1") else None)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def contact_sheet(
    decoded: Sequence[Image.Image],
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    threshold: float,
    columns: int = 5,
    most: int = 9,
) -> Image.Image:
    """Images with the model's tags: right ones, wrong ones struck through, missed ones in brackets.

    Takes RGB images, bool labels [B, N] and scores [B, N]; at most `most` tags an image are shown.
    """
    import matplotlib  # for its font, which knows more letters than Pillow's

    scale, width, line = 2, 200, 17
    side, gap = 128, 14
    height = side + gap + most * line
    rows = -(-len(decoded) // columns)
    legend = 34
    sheet = Image.new(
        "RGB", ((columns * (width + gap) + gap) * scale, (rows * (height + gap) + gap + legend) * scale), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 12 * scale)

    def write(x: int, y: int, text: str, colour: str, struck: bool = False) -> int:
        draw.text((x * scale, y * scale), text, fill=colour, font=font)
        right = draw.textlength(text, font=font)
        if struck:
            middle = (y + 9) * scale
            draw.line((x * scale, middle, x * scale + right, middle), fill=colour, width=scale)
        return x + int(right / scale)

    x = write(gap, 10, "right", RIGHT)
    x = write(x + 18, 10, "wrong", WRONG, struck=True)
    x = write(x + 18, 10, "(missed)", MISSED)
    write(x + 18, 10, f"tags scoring above {threshold:g}", INK)
    for i, image in enumerate(decoded):
        left = gap + (i % columns) * (width + gap)
        top = legend + gap + (i // columns) * (height + gap)
        sheet.paste(images.square(image, side * scale, Image.Resampling.LANCZOS), (left * scale, top * scale))
        predicted = scores[i] > threshold
        shown = [n for n in np.argsort(-scores[i]) if predicted[n] or labels[i][n]]
        for number, n in enumerate(shown[:most]):
            text, y = names[n], top + side + 4 + number * line
            if number == most - 1 and len(shown) > most:
                write(left, y, f"... {len(shown) - number} more", MISSED)
            elif not predicted[n]:
                write(left, y, f"({_short(text)})", MISSED)
            else:
                write(left, y, f"{_short(text)} {scores[i][n]:.2f}", RIGHT if labels[i][n] else WRONG, not labels[i][n])
    return sheet


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"

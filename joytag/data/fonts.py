"""Fonts for text that is drawn into images: names from datasets, in any script, within a given width."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont


@cache
def characters(path: str) -> frozenset[int]:
    """Return the code points that a font file can draw; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def candidates() -> Iterator[str]:
    """Yield font files: matplotlib's DejaVu Sans, which is always there, then those of the system."""
    from matplotlib import font_manager, get_data_path  # not at the top: it writes a font cache

    yield str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    yield from sorted(font_manager.findSystemFonts())


@cache
def find(text: str) -> str:
    """Return the first font that has every character of a text, or else the first font."""
    wanted = {ord(character) for character in text if character.isprintable()}
    paths = list(candidates())
    return next((path for path in paths if wanted <= characters(path)), paths[0])


def load(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font for a text; `size` in pixels."""
    return ImageFont.truetype(find(text), size)


def shorten(text: str, size: int, width: int) -> str:
    """Shorten a text at its end to `width` pixels."""
    fits = _fitting(text, size, width)
    return text if fits == len(text) else text[: _fitting(text, size, width - size)] + "…"


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break a text into lines of `width` pixels. What does not fit is left out before the end of the last line."""
    fits = _fitting(text, size, width)
    if fits == len(text) or lines == 1:
        kept = text if fits == len(text) else "…" + text[-_fitting(text[::-1], size, width - size) :]
        return [kept]
    return [text[:fits], *wrap(text[fits:], size, width, lines - 1)]


def _fitting(text: str, size: int, width: int) -> int:
    """Return how many characters, from the start of a text, fit into `width` pixels; at least one."""
    font = load(text, size)
    return next((end - 1 for end in range(2, len(text) + 1) if font.getlength(text[:end]) > width), len(text))

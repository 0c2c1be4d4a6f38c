"""Fonts for text that is drawn into images: names from datasets, in any script, within a given width."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
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


@cache
def candidates() -> list[str]:
    """Return font files: matplotlib's DejaVu Sans, which is always there, then those of the system."""
    from matplotlib import font_manager, get_data_path  # not at the top: it writes a font cache

    return [str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), *sorted(font_manager.findSystemFonts())]


@lru_cache(maxsize=10_000)
def find(text: str) -> str:
    """Return the first font that has every character of a text, or else the first font."""
    wanted = {ord(character) for character in text if character.isprintable()}
    return next((path for path in candidates() if wanted <= characters(path)), candidates()[0])


def load(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font for a text; `size` in pixels."""
    return _open(find(text), size)


@cache
def _open(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def shorten(text: str, size: int, width: int) -> str:
    """Shorten a text at its end to `width` pixels."""
    return _first_that_fits((text, *(f"{text[:end]}…" for end in range(len(text) - 1, 0, -1))), size, width)


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break a text into lines of `width` pixels. What does not fit is left out before the end of the last line."""
    if lines == 1:
        return [_first_that_fits((text, *(f"…{text[start:]}" for start in range(1, len(text)))), size, width)]
    line = _first_that_fits((text[:end] for end in range(len(text), 0, -1)), size, width)
    return [line, *(wrap(text[len(line) :], size, width, lines - 1) if len(line) < len(text) else [])]


def _first_that_fits(texts: Iterable[str], size: int, width: int) -> str:
    """Return the first of some texts that fits into `width` pixels, or else the last one; "" without any."""
    text = ""
    for text in texts:
        if load(text, size).getlength(text) <= width:
            break
    return text

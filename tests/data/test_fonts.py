"""Text fits its width, in a font that has its characters."""

from pathlib import Path

import matplotlib
from hypothesis import example, given
from hypothesis import strategies as st

from joytag.data import fonts

BUNDLED = Path(matplotlib.get_data_path()) / "fonts/ttf"


@example(":?MŒVL§", 30)  # whose kerning differs from that of its end
@given(st.text(st.characters(codec="utf-8", categories=["L", "P"])), st.integers(30, 300))
def test_text_fits_its_width(text, width):
    shown = [fonts.shorten(text, 11, width), *fonts.wrap(text, 11, width, 2)]
    for line in shown:
        assert fonts.load(line, 11).getlength(line) <= width or len(line) <= 2
    assert text.startswith(shown[0].removesuffix("…"))


def test_the_end_of_a_long_name_is_kept():
    first, last = fonts.wrap("a" * 100 + "b.png", 11, 100, 2)
    assert set(first) == {"a"}
    assert last.startswith("…a")
    assert last.endswith("ab.png")
    assert fonts.wrap("short.png", 11, 100, 2) == ["short.png"]


def test_the_font_is_one_that_has_all_characters(monkeypatch):
    default, other = BUNDLED / "DejaVuSans.ttf", BUNDLED / "STIXGeneral.ttf"
    monkeypatch.setattr(fonts, "candidates", lambda: [str(default), "none.ttf", str(other)])
    only_in_other = next(map(chr, sorted(fonts.characters(str(other)) - fonts.characters(str(default)))))
    fonts.find.cache_clear()
    assert fonts.find(f"a{only_in_other}") == str(other)
    assert fonts.find("кошка") == str(default)
    assert fonts.find("\U000e0fff\u0378\U0010ffff") == str(default)  # in none of them
    fonts.find.cache_clear()

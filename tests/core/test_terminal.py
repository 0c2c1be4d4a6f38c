"""Tests of joytag.core.terminal."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from joytag.core import terminal

OVERRIDES = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # of the writing direction


@given(st.text(st.characters(exclude_categories=())))
def test_a_printable_name_is_one_line_without_anything_a_terminal_obeys(name):
    shown = terminal.printable(name)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or ord(c) in OVERRIDES]
    assert len(shown.splitlines()) <= 1


def test_a_noun_follows_its_number():
    assert [terminal.plural(number, "image") for number in (0, 1, 2)] == ["images", "image", "images"]


@pytest.mark.parametrize("name", ["a b", "caf\u00e9", "3.05\u202fPM", "\U0001f469\u200d\U0001f467", "[red]x", "C:\\x"])
def test_ordinary_names_stay(name, capsys):
    assert terminal.printable(name) == name
    terminal.print(name)
    assert capsys.readouterr().out == f"{name}\n"


def test_printed_text_keeps_its_lines_alone(capsys):
    terminal.print("a\n\tb", "\x1b[31m\r\x9b\u202e\udcff", end="!")
    assert capsys.readouterr().out == r"a" + "\n\tb " + r"\x1b[31m\r\x9b\u202e\udcff" + "!"


def test_tables_have_no_markup_and_nothing_a_terminal_obeys(capsys):
    table = Table("[red]x", title="[b]title")
    table.add_row("a\x1b[31mb \u202e")
    table.add_row("pip install 'joytag[heif]' :smile: [/x]")
    terminal.show(table)
    shown = capsys.readouterr().out
    assert "[b]title" in shown
    assert "[red]x" in shown
    assert r"a\x1b[31mb \u202e" in shown
    assert "pip install 'joytag[heif]' :smile: [/x]" in shown
    assert not {"\x1b", "\u202e"} & {*shown}


def test_a_path_is_quoted_as_the_system_needs_it(monkeypatch):
    assert terminal.quote("my run") == "'my run'"
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        assert terminal.quote("C:\\my run") == '"C:\\my run"'
        assert terminal.quote("C:\\run") == "C:\\run"

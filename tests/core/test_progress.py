"""The progress bar, and output without a terminal."""

import io
import sys

import pytest

from joytag.core import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class WesternConsole(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def watch(monkeypatch):
    """Return a function that replaces stderr by a terminal; pytest replaces stderr before each test, too."""

    def replace_stderr():
        for name, value in (("TERM", "xterm"), ("COLUMNS", "120"), ("RANK", "")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return replace_stderr


def test_bar_shows_title_count_and_unit(watch):
    terminal = watch()
    with progress.bar("Predict", 8, "images", done=2) as advance:
        assert advance(3) == 5
    shown = terminal.getvalue()
    assert "Predict" in shown
    assert "5/8" in shown
    assert "images/s" in shown


def test_advance_never_exceeds_the_total():
    with progress.bar("Predict", 8, "images") as advance:
        assert [advance(5), advance(5)] == [5, 8]


def test_other_processes_show_no_bar(watch, monkeypatch):
    terminal = watch()
    monkeypatch.setenv("RANK", "1")
    with progress.bar("Predict", 8, "images") as advance:
        assert advance(3) == 3
    assert not terminal.getvalue()


def test_no_bar_without_a_terminal(capsys):
    assert list(progress.track("abc", "Tag", 3, "images")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_track_counts_every_item(watch):
    terminal = watch()
    assert list(progress.track("abc", "Tag", 3, "images")) == ["a", "b", "c"]
    assert "3/3" in terminal.getvalue()


def test_redirected_output_stays_out_of_the_terminal(watch, capsys):
    terminal = watch()
    for item in progress.track(["a line for the pipe"], "Tag", 1, "images"):
        print(item)
    assert capsys.readouterr().out == "a line for the pipe\n"
    assert "pipe" not in terminal.getvalue()


def test_a_western_console_shows_a_bar(watch, monkeypatch):
    watch()
    console = WesternConsole(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stderr", console)
    assert list(progress.track("abc", "Tag", 3, "images")) == ["a", "b", "c"]
    console.flush()
    console.seek(0)
    assert "3/3" in console.read()

"""The page as a whole: its size, its colours, and the description of the API, which has its style."""

import re

import pytest
from app_server import running
from paths import ROOT, TINY

PAGE = ROOT / "joytag" / "app" / "page"
COMMENT = re.compile(r"\s*(//.*|/\*.*\*/)?\s*")
PAIR = re.compile(r"(--[a-z0-9]+): light-dark\(([^,]+), ([^)]+)\);")
VARIABLE = re.compile(r"(--(?:paper|raised|ink|soft|line|accent|wash|good|bad|s1|s2)): ([^;]+);")


def test_the_page_is_small_and_can_be_read():
    lines = [line for path in PAGE.iterdir() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(not COMMENT.fullmatch(line) for line in lines) <= 1_000
    assert max(map(len, lines)) <= 140


def test_the_colours_are_those_of_the_reports():
    pairs = PAIR.findall((PAGE / "app.css").read_text(encoding="utf-8"))
    reports = (ROOT / "joytag/reports/templates/style.css").read_text(encoding="utf-8")
    light = [(name, value) for name, value, _ in pairs]
    dark = [(name, value) for name, _, value in pairs]
    assert light + dark == VARIABLE.findall(reports)[:22]  # those of print follow


@pytest.fixture(scope="module")
def tiny():
    with running(TINY, "--device", "cpu") as server:
        yield f"http://{server.host}:{server.port}/"


def test_the_description_of_the_api_fits_a_phone(visit, tiny):
    page = visit(tiny, 390, 844)
    page.click("text=API")
    page.get_by_text("POST /api/evidence").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_what_cannot_be_read_is_said(visit, tiny):
    page = visit(tiny)
    page.route("**/api/models", lambda route: route.abort())
    page.reload()
    page.get_by_text("The models could not be read: the service does not answer").wait_for()

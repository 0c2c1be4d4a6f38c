"""The tab Label, as people use it: in headless Chromium, by mouse and by keys."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_pages import DROP, SIZES, check_focus, coded, focused
from app_server import running
from PIL import Image

from joytag.app.collection import STATE
from joytag.app.decisions import FILE, Decisions


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of 60 images of one colour each, and of a file that is none."""
    folder = tmp_path_factory.mktemp("colours")
    for number, colour in enumerate(np.random.default_rng(3).integers(0, 256, (60, 3)).tolist()):
        Image.new("RGB", (40, 30), tuple(colour)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def labelled(measured, folder, tmp_path_factory) -> Iterator[str]:
    """The address of an app that labels `folder`; at most one of red and green can be, and light implies blue."""
    rules = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules.write_text("exclusive: {primaries: [red, green]}\nimplies: {light: [blue]}\n")
    with running(measured, "--images", folder, "--rules", rules, "--device", "cpu") as server:
        while server.get("/api/label")[1]["scored"] < 60:
            time.sleep(0.1)
        yield f"http://{server.host}:{server.port}/"


@pytest.fixture
def open_labelling(visit, labelled) -> Callable[..., Any]:
    """Open the tab Label, with the questions about a tag; a new tag has all images left."""

    def open_labelling(tag: str = "", **options: Any) -> Any:
        page = visit(labelled, **options)
        page.click("#label-tab")
        page.locator("#questions .how", has_text="Name a tag").wait_for()
        if tag:
            page.fill("#word", tag)
            page.keyboard.press("Enter")
            page.locator(".cells li").nth(9).wait_for()
        return page

    return open_labelling


@pytest.fixture
def open_image(open_labelling) -> Callable[..., Any]:
    """Open the questions about one image."""

    def open_image(**options: Any) -> Any:
        page = open_labelling(**options)
        page.click("[value=image]")
        page.locator(".rows [aria-pressed=true]").wait_for()
        return page

    return open_image


def decided(folder: Path, tag: str) -> dict[str, str]:
    """Return what is on the disk about a tag, by image."""
    return {image: row.decision for image, row in Decisions(folder / STATE / FILE).of_tag(tag).items()}


def cells(page: Any) -> dict[str, str]:
    """Return the images of a grid with the answers that they show."""
    return dict(
        page.locator(".cells button").evaluate_all("all => all.map(each => [each.dataset.key, each.className])")
    )


def current(page: Any) -> str:
    return page.inner_text(".rows [aria-pressed=true] bdi")


def image_of(page: Any) -> str:
    return page.get_attribute("#questions figure img", "src").split("/")[4]


def told(page: Any, text: str) -> None:
    page.locator("#told", has_text=text).wait_for()


def wait_for_another(page: Any, image: str) -> None:
    page.wait_for_function("image => !document.querySelector('#questions figure img').src.includes(image)", arg=image)


def wait_for_next(page: Any, image: str) -> None:
    page.wait_for_function("key => !document.querySelector(`.cells [data-key='${key}']`)", arg=image)


def test_a_grid_by_keys(open_labelling, folder):
    page = open_labelling("by keys")
    first = cells(page)
    page.keyboard.press("3")
    page.keyboard.press("0")
    page.keyboard.press("0")
    shown = cells(page)
    changed = [old != new for old, new in zip(first.values(), shown.values(), strict=True)]
    assert changed == [False, False, True, *[False] * 6, True]
    page.keyboard.press("Enter")
    told(page, "10 decisions kept.")
    wait_for_next(page, next(iter(shown)))
    assert decided(folder, "by_keys") == shown
    assert not cells(page).keys() & shown.keys()
    page.keyboard.press("z")
    told(page, "Undone: 10 decisions, by_keys")
    assert decided(folder, "by_keys") == {}
    assert cells(page) == first


def test_a_grid_by_mouse(open_labelling, folder):
    page = open_labelling("by mouse")
    first = cells(page)
    page.click(".cells button >> nth=4")
    page.click("text=Keep these answers")
    told(page, "10 decisions kept.")
    kept = decided(folder, "by_mouse")
    assert [image for image in first if kept[image] != first[image]] == [list(first)[4]]
    page.click("#undo")
    told(page, "Undone: 10 decisions")
    assert decided(folder, "by_mouse") == {}


def test_a_tag_to_its_end(open_labelling, folder):
    page = open_labelling("to the end")
    for left in (60, 50, 40, 30, 20, 10):
        page.get_by_text(f"{left} images left").wait_for()
        page.keyboard.press("Enter")
    page.get_by_text("Nothing is left to ask.").wait_for()
    assert "You can stop: Every image is decided." in page.inner_text(".stop")
    assert len(decided(folder, "to_the_end")) == 60
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    assert len(decided(folder, "to_the_end")) == 60


def test_the_precision_of_what_is_left_and_when_to_stop(open_labelling):
    page = open_labelling("red")
    page.get_by_text("How many of those have the tag is not known yet.").wait_for()
    assert page.locator(".stop").count() == 0
    known = {"precision": {"right": 7, "seen": 8, "low": 0.473, "high": 0.997}, "stop": "Enough."}
    page.route("**/grid*", lambda route: route.fulfill(json=route.fetch().json() | known))
    page.click('text="Go"')
    page.get_by_text("47 % to 100 % of those have the tag (7 of 8 drawn at random).").wait_for()
    assert page.inner_text(".stop") == "You can stop: Enough."


def test_words_are_completed(open_labelling, folder):
    page = open_labelling("red")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    told(page, "decisions kept.")
    page.fill("#word", "re")
    options = page.locator("#words option")
    page.wait_for_function("() => document.querySelectorAll('#words option').length === 3")
    words = dict(options.evaluate_all("all => all.map(each => [each.value, each.textContent])"))
    assert list(words)[:2] == ["red", "reddish_(hue)"]
    answers = list(decided(folder, "red").values())
    assert words["red"] == f"{answers.count('yes')} yes, {answers.count('no')} no"
    page.fill("#word", "green")
    page.click('text="Go"')
    page.locator("h2", has_text="green").wait_for()
    assert focused(page) == "questions"
    page.click("#undo")
    told(page, "Undone")


def test_only_what_the_service_answered_counts_as_kept(open_labelling, folder):
    page = open_labelling("something new")
    shown = cells(page)
    page.route("**/api/label/decisions", lambda route: route.abort())
    page.keyboard.press("Enter")
    told(page, "10 decisions not kept: the service does not answer")
    assert cells(page) == shown
    assert decided(folder, "something_new") == {}
    page.keyboard.press("z")
    told(page, "10 decisions not kept")
    page.keyboard.press("2")
    shown = cells(page)
    page.keyboard.press("Enter")
    told(page, "10 decisions not kept")
    page.unroute_all()
    page.click("#resend")
    told(page, "10 decisions kept.")
    assert decided(folder, "something_new") == shown
    wait_for_next(page, next(iter(shown)))
    assert page.locator("#resend").is_hidden()
    assert focused(page) == "questions"


def test_the_browser_warns_before_decisions_are_lost(open_labelling):
    page = open_labelling("nearly lost")
    warnings: list[str] = []

    def answer(dialog: Any) -> None:
        warnings.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", answer)
    page.route("**/api/label/decisions", lambda route: route.abort())
    page.keyboard.press("Enter")
    told(page, "10 decisions not kept")
    page.close(run_before_unload=True)
    while not warnings:
        page.wait_for_timeout(20)
    assert warnings == ["beforeunload"]
    page.unroute_all()
    page.click("#resend")
    told(page, "10 decisions kept.")
    page.close(run_before_unload=True)


def test_refused_decisions_do_not_hold_up_others(open_labelling, folder):
    page = open_labelling("refused")
    page.route("**/api/label/decisions", lambda route: route.fulfill(status=404, json={"detail": "no such image"}))
    page.keyboard.press("Enter")
    told(page, "10 decisions not kept: no such image")
    page.unroute_all()
    page.fill("#word", "not refused")
    page.keyboard.press("Enter")
    page.locator("h2", has_text="not_refused").wait_for()
    page.keyboard.press("Enter")
    told(page, "10 decisions kept.")
    assert decided(folder, "refused") == {}


def test_two_browsers_at_once(open_labelling, folder):
    first, second = open_labelling("at once"), open_labelling("at once")
    assert cells(first) == cells(second)
    first.keyboard.press("Enter")
    told(first, "10 decisions kept.")
    second.keyboard.press("1")
    answers = cells(second)
    second.keyboard.press("Enter")
    told(second, "1 decision kept.")  # the other answers are there already
    assert decided(folder, "at_once") == answers
    wait_for_next(second, next(iter(answers)))
    wait_for_next(first, next(iter(answers)))
    assert not (cells(first).keys() | cells(second).keys()) & answers.keys()


def test_one_image_by_keys(open_image, folder):
    page = open_image()
    image = image_of(page)
    page.fill("#word", "lovely thing")
    page.keyboard.press("Enter")
    told(page, "1 decision kept.")
    assert decided(folder, "lovely_thing") == {image: "yes"}
    assert page.input_value("#word") == ""
    page.focus("#questions")
    tag = current(page)
    page.keyboard.press("ArrowDown")
    assert current(page) != tag
    page.keyboard.press("ArrowUp")
    assert current(page) == tag
    page.keyboard.press("u")
    page.locator(".rows li", has_text=tag).locator("b", has_text="unsure").wait_for()
    assert decided(folder, tag)[image] == "unsure"
    page.keyboard.press("z")
    told(page, f"Undone: 1 decision, {tag} unsure first.")
    assert image not in decided(folder, tag)
    assert current(page) == tag
    page.keyboard.press("Enter")
    wait_for_another(page, image)
    other = image_of(page)
    page.keyboard.press("ArrowRight")
    wait_for_another(page, other)
    page.keyboard.press("z")
    told(page, "Undone: 1 decision, lovely_thing yes first.")
    assert image_of(page) == image
    assert decided(folder, "lovely_thing") == {}


def test_one_image_by_mouse(open_image, folder):
    page = open_image()
    image = image_of(page)
    page.click(".rows li button >> nth=1")
    tag = current(page)
    page.locator("figcaption bdi", has_text=tag).wait_for()
    page.click(".figures button.no")
    told(page, "kept.")
    assert decided(folder, tag)[image] == "no"
    page.click("text=Next image")
    wait_for_another(page, image)
    page.click("#undo")
    told(page, "Undone")
    assert image_of(page) == image


def test_an_exclusive_group_takes_one_key(open_image, folder):
    page = open_image()
    for _ in range(60):
        if page.locator("[data-key='choose green']").count():
            break
        image = image_of(page)
        page.keyboard.press("Enter")
        page.wait_for_function(
            "image => !document.querySelector('#questions figure img').src.includes(image)", arg=image
        )
    image = image_of(page)
    page.keyboard.press("2")
    page.locator("[data-key='choose green']", has_text="green: yes").wait_for()
    assert (decided(folder, "green")[image], decided(folder, "red")[image]) == ("yes", "no")
    page.click("[data-key='choose red']")
    page.locator("[data-key='choose red']", has_text="red: yes").wait_for()
    assert decided(folder, "red")[image] == "yes"
    page.keyboard.press("z")
    page.locator("[data-key='choose red']", has_text="red: no").wait_for()
    page.keyboard.press("z")
    told(page, "Undone: 2 decisions, green yes first.")


def test_sure_tags_are_folded_away_and_what_follows_is_named(open_image, labelled):
    page = open_image()
    sure = [{"tag": "light", "score": 0.99, "threshold": 0.4, "answer": None}]
    near = [{"tag": "red", "score": 0.41, "threshold": 0.4, "answer": None}]
    tags = {"near": near, "sure": sure, "decided": [], "implied": {"blue": ["light"]}, "groups": {}}
    page.route("**/tags", lambda route: route.fulfill(json=tags))
    page.click("[value=image]")
    page.get_by_text("Implied: blue (by light)").wait_for()
    assert page.locator(".rows li").count() == 2
    assert page.locator(".rows details li").is_hidden()
    page.click("text=1 sure tag")
    page.click(".rows details button")
    page.locator("figcaption bdi", has_text="light").wait_for()
    assert page.locator(".rows details li").is_visible()
    tags["near"], tags["sure"] = [], []
    page.click("[value=image]")
    page.get_by_text("0 sure tags").wait_for()
    assert page.locator(".figures .row").count() == page.locator("canvas").count() == 0
    page.keyboard.press("y")
    assert page.inner_text("#told") == ""


def test_no_image_is_left(open_image):
    page = open_image()
    page.route("**/api/label/images", lambda route: route.fulfill(json=[]))
    while page.locator(".rows").count():
        page.keyboard.press("Enter")
        page.wait_for_timeout(50)
    page.get_by_text("No image has an undecided tag near its threshold.").wait_for()
    assert page.locator("#word").is_hidden()
    for key in ("ArrowDown", "ArrowUp", "y", "1", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("No image has an undecided tag near its threshold.").wait_for()
    assert page.inner_text("#told") == ""


def test_doubts(visit, measured, tmp_path):
    data = shutil.copytree(measured.parent / "data", tmp_path / "data")
    with running(measured, "--data", data, "--device", "cpu") as server:
        page = visit(f"http://{server.host}:{server.port}/")
        page.click("#label-tab")
        page.click("[value=doubts]")
        page.locator("#questions canvas").wait_for()
        assert page.locator("#word").is_hidden()
        rows = page.locator(".rows li")
        count = rows.count()
        first, second = rows.nth(0).inner_text(), rows.nth(1).inner_text()
        assert re.search(r"(not )?labelled, score 0.\d\d, confidence 0.\d\d$", first)
        page.keyboard.press("ArrowDown")
        assert current(page) == second.split()[0]
        image, tag = image_of(page), current(page)
        page.keyboard.press("n")
        page.locator("h2", has_text=f"{count - 1} doubts").wait_for()
        assert decided(data, tag) == {image: "no"}
        page.click("#undo")
        page.locator("h2", has_text=f"{count} doubts").wait_for()
        assert (image_of(page), current(page)) == (image, tag)
        page.click(".figures button.yes")
        page.locator("h2", has_text=f"{count - 1} doubts").wait_for()
        assert decided(data, tag) == {image: "yes"}


def test_without_doubts(open_labelling):
    page = open_labelling()
    page.click("[value=doubts]")
    page.get_by_text("There are no doubts").wait_for()
    for key in ("y", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    page.get_by_text("There are no doubts").wait_for()
    assert page.inner_text("#told") == ""


def test_the_state_names_what_cannot_be_used(open_labelling, folder):
    page = open_labelling()
    assert page.inner_text("#collection").startswith(f"{folder.name}: 61 files, 60 images scored, ")
    page.click("#broken summary")
    assert page.inner_text("#broken li").startswith("broken.png not an image")


def test_learning_shows_its_progress(open_labelling, labelled):
    page = open_labelling()
    state = page.request.get(f"{labelled}api/label").json()
    asked: list[str] = []
    learning: dict[str, Any] = {"state": "running", "samples": 320, "total": 1200, "message": ""}

    def answer(route: Any) -> None:
        asked.append(route.request.method)
        route.fulfill(json=learning)

    page.route("**/api/label", lambda route: route.fulfill(json=state | {"learning": learning}))
    page.route("**/api/label/learn", answer)
    page.click("#learn")
    page.get_by_text("Learning: running: 320 of 1,200 samples").wait_for()
    learning |= {"state": "failed", "message": "too few images"}
    page.get_by_text("Stop learning").click()
    page.get_by_text("Learning: failed: too few images").wait_for()
    assert asked == ["POST", "DELETE"]


def test_keys_are_left_to_what_has_the_focus(open_labelling, folder):
    page = open_labelling("not yet")
    shown = cells(page)
    page.focus("#broken summary")
    page.keyboard.press("Enter")
    assert page.locator("#broken li").is_visible()
    page.focus("[value=grid]")
    page.keyboard.press("Enter")
    page.focus("#word")
    page.keyboard.type("1z")
    page.keyboard.press("Control+z")
    page.focus("#questions")
    page.keyboard.press("Control+1")
    page.click("#tag-tab")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.click("#label-tab")
    assert cells(page) == shown
    assert decided(folder, "not_yet") == {}
    page.focus(".cells button")
    page.keyboard.press("Enter")
    wait_for_next(page, next(iter(shown)))
    assert focused(page) == "questions"
    page.keyboard.press("z")
    told(page, "Undone: 10 decisions, not_yet")


def test_files_that_are_dropped_on_this_tab_do_not_replace_the_page(open_labelling, gradients):
    page = open_labelling()
    page.evaluate(DROP, coded(gradients))
    page.click("#tag-tab")
    assert page.locator("#result").is_hidden()
    assert page.locator("#label").is_hidden()


def test_no_button_loses_the_focus(open_image):
    page = open_image()
    page.route("**/api/label/learn", lambda route: route.fulfill(json={}))
    for view in ("image", "doubts", "grid"):
        page.click(f"[value={view}]")
        if view == "grid":
            page.fill("#word", "focus")
            page.keyboard.press("Enter")
            page.locator(".cells li").nth(9).wait_for()
        check_focus(page, "#label")


@pytest.mark.faults
def test_the_page_learns_a_new_word(visit, measured, tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        pixels = (rng.integers(0, 255, 3) + rng.normal(0, 40, (24, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    with running(measured, "--images", folder, "--device", "cpu") as server:
        page = visit(f"http://{server.host}:{server.port}/")
        page.click("#label-tab")
        page.locator("#collection", has_text="40 images scored,").wait_for()
        page.fill("#word", "new word")
        page.keyboard.press("Enter")
        for left in (40, 30, 20, 10):
            page.get_by_text(f"{left} images left").wait_for()
            for key in range(10):
                while page.locator(".cells button").nth(key - 1).get_attribute("class") != ("yes", "no")[key % 2]:
                    page.keyboard.press(str(key))
            page.keyboard.press("Enter")
        told(page, "10 decisions kept.")
        page.click("#learn")
        page.get_by_text("Stop learning").wait_for()
        page.locator("#learning", has_text=re.compile("done|failed")).wait_for(timeout=300_000)
        assert page.inner_text("#learning") == "Learning: done"
        page.get_by_text("Ordered by 001.").wait_for()
        page.fill("#word", "new")
        page.wait_for_function("() => document.querySelector('#words option')?.textContent === '20 yes, 20 no'")
        page.click("[value=image]")
        page.locator("#questions canvas").wait_for()
        page.click("#learn")
        page.click("text=Stop learning")
        page.get_by_text("Learning: stopped").wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_labelling_fits_the_window(open_labelling, width, height, dark):
    page = open_labelling("light", width=width, height=height, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.click("[value=image]")
    page.locator(".rows li").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width

"""The tab Tag, as people use it: in headless Chromium, by mouse and by keys."""

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import colours
import numpy as np
import pytest
import torch
from app_pages import DROP, PASTE, SIZES, check_focus, coded, drag, drop, focused
from app_server import running
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT
from joytag.tagging.captions import Captions, CaptionStyle, read_thresholds
from joytag.tagging.tagger import Tagger

STYLES = {
    "sd-scripts": CaptionStyle(underscores="space"),
    "booru": CaptionStyle(separator=" "),
    "prompt": CaptionStyle(underscores="space", escape=True),
}


@pytest.fixture(scope="module")
def other(measured, tmp_path_factory) -> Path:
    """A release whose scores differ from those of `measured`, and that names its last tag otherwise."""
    directory = tmp_path_factory.mktemp("models") / "other"
    model = Tagger.load(measured, device="cpu").model
    assert isinstance(model, ViT)
    with torch.no_grad():
        dict(model.named_parameters())["head.bias"].add_(torch.tensor([0.5, -1.0, 0, 0, 0]))
    colours.save(directory, model, [*colours.NAMES[:-1], "something_else"])
    return directory


@pytest.fixture(scope="module")
def address(measured, other, tmp_path_factory, chromium) -> Iterator[str]:
    """The address of an app with three models: `measured`, `other`, and one without evidence."""
    plain = tmp_path_factory.mktemp("timm") / "plain"
    plain.mkdir()
    release.save(plain, TimmConfig(5, "test_convnext", 64).build(), colours.NAMES, "focal2")
    with running(measured, "--model", other, "--model", plain, "--device", "cpu") as server:
        yield f"http://{server.host}:{server.port}/"


@pytest.fixture
def open_page(visit, address) -> Callable[..., Any]:
    """Open the page, with the first of the models alone or with two."""

    def open_page(width: int = 1280, height: int = 900, dark: bool = False, models: int = 1) -> Any:
        page = visit(address, width, height, dark)
        if models == 1:
            page.locator("#other").evaluate(
                "each => { each.value = ''; each.dispatchEvent(new Event('input', {bubbles: true})) }"
            )
        return page

    return open_page


@pytest.fixture(scope="module")
def own(measured) -> Callable[[str], float]:
    """Return a tag's own threshold."""
    tags = Tagger.load(measured, device="cpu").tags
    return dict(zip(tags, read_thresholds(measured / "thresholds.csv", tags, 0.4).tolist(), strict=True)).__getitem__


@pytest.fixture(scope="module")
def expected(measured) -> Callable[..., str]:
    """Return the text that `joytag tag` would write for an image in a style."""
    tagger = Tagger.load(measured, device="cpu")
    thresholds = read_thresholds(measured / "thresholds.csv", tagger.tags, 0.4)

    def text(image: bytes, style: str, threshold: Any = thresholds) -> str:
        captions = Captions(STYLES[style], tagger.tags)
        return captions.join(captions.choose(tagger(image, threshold).tags))

    return text


def text_of(page: Any) -> str:
    return page.input_value("#text")


def test_from_drop_to_copied_text(open_page, gradients, expected):
    page = open_page()
    drop(page, gradients)
    assert page.inner_text("#status") == "6 of 6 images tagged"
    for style in STYLES:
        page.check(f"input[value={style}]")
        for button, image in zip(page.locator("#strip button").all(), gradients.values(), strict=True):
            button.click()
            page.click("#copy")
            page.get_by_text("Copied.").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == text_of(page) == expected(image, style)


def test_by_keys_alone(open_page, gradients, expected):
    page = open_page()
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in gradients.items()]
    page.on("filechooser", lambda chooser: chooser.set_files(files))
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "files":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("6 of 6 images tagged").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("c")
    page.get_by_text("Copied.").wait_for()
    image = gradients["image 1.png"]
    assert page.evaluate("navigator.clipboard.readText()") == expected(image, "sd-scripts") != ""
    page.keyboard.press("ArrowDown")
    first = focused(page, "dataset.key")
    page.keyboard.press("ArrowDown")
    assert focused(page, "dataset.key") != first
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.locator("#figures canvas").wait_for()
    assert focused(page, "dataset.key") == first == page.inner_text("figcaption bdi")
    page.keyboard.press("Escape")
    assert page.locator("#figures canvas").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("Reddish (hc/")
    page.keyboard.press("Enter")
    assert page.inner_text("#tags") == "No such tag."
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    assert page.locator("#tags .name").all_inner_texts() == ["reddish_(hue)"]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#figures canvas").wait_for()
    page.keyboard.press("Space")
    assert page.locator("#figures canvas").count() == 0


def test_a_key_is_left_to_the_field_that_has_the_focus(open_page, gradients):
    page = open_page()
    drop(page, gradients)
    page.focus("[name=style][value=sd-scripts]")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("[value=booru]")
    page.keyboard.press("Control+c")
    page.keyboard.press("Enter")
    assert page.inner_text("#copied") == ""
    page.keyboard.press("c")
    page.get_by_text("Copied.").wait_for()
    assert focused(page, "value") == "booru"
    page.focus("[name=own]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#own-level") == "+0.01"
    assert page.locator("#strip button").first.get_attribute("aria-pressed") == "true"


def test_a_dropped_folder_is_searched_for_images(open_page, gradients, tmp_path):
    names = ["mine/2.png", "mine/10.png", *[f"mine/many/{number}.png" for number in range(120)], "mine/many/deep/x.png"]
    for name, image in zip([*names, "alone.png"], list(gradients.values()) * 30, strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    (tmp_path / "mine" / "empty").mkdir()
    page = open_page()
    drag(page, tmp_path / "mine", tmp_path / "alone.png")
    page.get_by_text("124 of 124 images tagged").wait_for()
    shown = page.locator("#strip button").evaluate_all("all => all.map(each => each.title)")
    assert shown == ["mine/2.png", "mine/10.png", *names[2:], "alone.png"]
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert set(archive.namelist()) == {name.replace(".png", ".txt") for name in shown}
    page.click("#clear")
    drag(page, tmp_path / "mine" / "empty")
    page.get_by_text("nothing here is an image").wait_for()


def test_a_chosen_folder_and_dragged_files(open_page, gradients, tmp_path):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "a.png").write_bytes(gradients["image 0.png"])
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    page = open_page()
    page.set_input_files("#folder", tmp_path / "mine")
    page.get_by_text("1 of 1 image tagged").wait_for()
    assert page.get_attribute("#strip button", "title") == "mine/sub/a.png"
    drag(page, tmp_path / "mine" / "notes.txt")
    page.get_by_text("1 of 2 images tagged; 1 failed").wait_for()


def test_pasted_images_and_texts(open_page, gradients):
    page = open_page()
    drop(page, {}, PASTE)
    assert "copy the image itself" in page.inner_text("#status")
    drop(page, {"pasted.png": gradients["image 0.png"]}, PASTE)
    assert page.inner_text("#status") == "1 of 1 image tagged"


def test_what_fails_is_named_with_its_reason(open_page, gradients):
    page = open_page()
    drop(page, {"text.png": b"no image"} | gradients | {"half.png": gradients["image 0.png"][:200]})
    assert page.inner_text("#status") == "6 of 8 images tagged; 2 failed"
    page.click("#failed summary")
    reasons = page.locator("#failed li").all_inner_texts()
    assert reasons[0].startswith("text.png not an image")
    assert reasons[1].startswith("half.png ")
    assert "not an image" in page.inner_text("#tags .error")
    page.click("#again")
    page.get_by_text("6 of 8 images tagged; 2 failed").wait_for()
    assert focused(page, "title") == "text.png"
    page.click("#clear")
    assert page.locator("#result, #batch").first.is_hidden()
    assert focused(page) == "files"
    drop(page, {"again.png": gradients["image 0.png"]})
    assert page.inner_text("#status") == "1 of 1 image tagged"


def test_thresholds_move_in_the_page(open_page, gradients, expected, own):
    page = open_page()
    image = gradients["image 2.png"]
    drop(page, {"a.png": image})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.check("input[value=all]")
    assert page.inner_text("#all-level") == "0.40"
    for threshold in (0.01, 0.3, 0.55, 0.99):
        page.fill("[name=all]", str(threshold))
        assert text_of(page) == expected(image, "sd-scripts", threshold)
    page.check("input[value=own]")
    assert text_of(page) == expected(image, "sd-scripts")
    page.fill("#find", "green")
    page.click(".tag")
    for threshold, is_over in ((0.01, True), (0.99, False)):
        page.fill(".details input", str(threshold))
        page.keyboard.press("Enter")
        assert ("green" in text_of(page).split(", ")) == is_over
        assert page.inner_text(".margin").startswith("over by" if is_over else "missed by")
    page.click(".details button")
    assert focused(page) == "tags"
    assert text_of(page) == expected(image, "sd-scripts")
    page.fill(".details input", "")
    page.keyboard.press("Enter")
    assert float(page.input_value(".details input")) == pytest.approx(own("green"), abs=0.005)
    page.click("#copy")
    page.get_by_text("Copied.").wait_for()
    page.check("input[value=all]")
    page.fill("[name=all]", "0.99")
    assert text_of(page) == page.inner_text("#copied") == ""
    assert [urlsplit(url).path for url in requests] == ["/api/evidence"]


def test_each_tag_is_beside_its_threshold_and_reliability(open_page, gradients, measured, own):
    page = open_page()
    drop(page, {"a.png": gradients["image 3.png"]})
    page.fill("[name=own]", "0.3")
    assert page.inner_text("#own-level") == "+0.30"
    page.fill("#find", "e")
    tagger = Tagger.load(measured, device="cpu")
    result = tagger(gradients["image 3.png"], 0.0)
    evaluated = csv.DictReader((measured / "per_tag.csv").open())
    f1 = {row["name"]: float(row["f1"]) for row in evaluated}
    rows = page.locator(".tag").all()
    assert len(rows) == 5 - sum("e" not in tag for tag in tagger.tags)
    for row in rows:
        name = row.get_attribute("data-key")
        margin = result.tags[name] - min(0.99, own(name) + 0.3)
        assert row.locator(".score").inner_text() == f"{result.tags[name]:.2f}"
        assert row.locator(".margin").inner_text() in {
            f"{'over' if margin > 0 else 'missed'} by {abs(margin) + rounding:.2f}" for rounding in (-1e-4, 0, 1e-4)
        }
        assert re.findall(r"F1 ([\d.]+), right \d+ %", row.inner_text()) == [f"{f1[name]:.2f}"]


def test_sorted_by_score_vocabulary_and_category(open_page, gradients, measured):
    page = open_page()
    drop(page, {"a.png": gradients["image 3.png"]})
    page.check("input[value=all]")
    page.fill("[name=all]", "0.01")
    scores = Tagger.load(measured, device="cpu")(gradients["image 3.png"], 0.01).tags
    orders = {
        "score": list(scores),
        "vocabulary": [tag for tag in colours.NAMES if tag in scores],
        "category": sorted(scores, key=lambda tag: ("light" not in tag and "hue" not in tag, -scores[tag])),
    }
    for order, names in orders.items():
        page.select_option("[name=sort]", order)
        assert page.locator(".tag").evaluate_all("all => all.map(each => each.dataset.key)") == names
        assert text_of(page) == ", ".join(name.replace("_", " ") for name in names)
    assert page.locator("#tags h3").all_inner_texts() == ["character", "general"]


def test_a_zip_and_a_table_of_all(open_page, gradients, expected):
    page = open_page()
    twins = {
        "a.png": gradients["image 0.png"],
        "A.jpg": gradients["image 1.png"],
        'ü, "1".png': gradients["image 2.png"],
    }
    drop(page, twins | {"bad.png": b""})
    page.check("input[value=booru]")
    with page.expect_download() as download:
        page.click("#zip")
    assert page.inner_text("#saved") == "3 images saved; 1 not tagged."
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        texts = {info.filename: archive.read(info).decode() for info in archive.infolist()}
    names = ["a.txt", "A.jpg.txt", 'ü, "1".txt']
    wanted = [expected(image, "booru") for image in twins.values()]
    assert texts == {name: f"{text}\n" for name, text in zip(names, wanted, strict=True)}
    with page.expect_download() as download:
        page.click("#csv")
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["file_name", "text"], *map(list, zip(twins, wanted, strict=True))]


def test_two_models_side_by_side(open_page, gradients, measured, other):
    page = open_page(models=2)
    image = gradients["image 1.png"]
    drop(page, {"a.png": image})
    page.check("input[value=all]")
    found = [set(Tagger.load(model, device="cpu")(image, 0.4).tags) for model in (measured, other)]
    rows = page.locator(".tag").filter(has=page.locator(".line:not(.missed) .score")).all()
    disputed = {row.get_attribute("data-key") for row in rows if "disputed" in (row.get_attribute("class") or "")}
    assert {row.get_attribute("data-key") for row in rows} == found[0] | found[1]
    assert disputed == found[0] ^ found[1]
    assert f"{len(disputed)} difference" in page.inner_text("#tags .how")
    page.fill("#find", "something")
    assert f"{measured.parent.name} does not know it" in page.inner_text(".tag")
    page.fill("#find", "red")
    page.click(".tag >> nth=0")
    page.locator("#figures canvas").nth(1).wait_for()
    page.select_option("#model", "1")
    page.select_option("#other", "0")
    page.locator("#figures figcaption >> nth=0", has_text="by other:").wait_for()
    page.fill("#find", "")
    assert text_of(page).split(", ") == [
        tag.replace("_", " ") for tag in Tagger.load(other, device="cpu")(image, 0.4).tags
    ]
    page.select_option("#other", "2")
    page.locator("figcaption", has_text="No map: plain has no linear head").wait_for()


def test_the_map_is_the_evidence(open_page, gradients, measured):
    page = open_page()
    image = gradients["image 4.png"]
    drop(page, {"a.png": image})
    page.fill("#find", "blue")
    page.click(".tag")
    canvas = page.locator("#figures canvas")
    canvas.wait_for()
    values = Tagger.load(measured, device="cpu").evidence(image, "blue")
    pixels = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    alpha = np.reshape(pixels, (*values.shape, 4))[..., 3]
    np.testing.assert_allclose(alpha, 0.8 * 255 * np.abs(values) / np.abs(values).max(), atol=0.6)
    red, blue = np.reshape(pixels, (*values.shape, 4))[..., [0, 2]].transpose(2, 0, 1)
    assert ((red > blue) == (values > 0))[alpha > 8].all()
    text = page.inner_text("figcaption").replace("\u2212", "-")
    assert f"logit {values.sum():+.2f} = {values.clip(min=0).sum():.2f} for - " in text
    box = canvas.bounding_box()
    for row, column in ((0, 0), (1, 0), (1, 1)):
        step = box["width"] / 2
        page.mouse.move(box["x"] + (column + 0.5) * step, box["y"] + (row + 0.5) * step)
        assert f"row {row + 1}, column {column + 1}: {values[row, column]:+.3f}" in page.inner_text(
            "figcaption"
        ).replace("\u2212", "-")


def test_a_map_that_fails_is_asked_for_again(open_page, gradients):
    page = open_page()
    drop(page, gradients)
    page.route("**/api/evidence", lambda route: route.abort())
    page.click(".tag >> nth=0")
    page.locator("figcaption .error", has_text="the service does not answer").wait_for()
    page.unroute_all()
    page.click(".tag >> nth=0")
    page.click(".tag >> nth=0")
    page.locator("#figures canvas").wait_for()
    page.click("#strip button >> nth=1")
    page.locator("figcaption", has_text="Point at a patch").wait_for()


def test_an_image_that_the_browser_cannot_show_is_tagged(open_page, gradients):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(gradients["image 0.png"])).save(buffer, "TIFF")
    page = open_page()
    drop(page, {"a.tiff": buffer.getvalue()})
    page.get_by_text("Your browser cannot show a.tiff").wait_for()
    assert page.inner_text("#status") == "1 of 1 image tagged"
    assert text_of(page)


def test_two_hundred_images(open_page, gradients):
    page = open_page()
    sent: list[int] = []
    page.on("request", lambda request: sent.append(1) if request.url.endswith("/api/tag") else None)
    some = list(gradients.values())
    page.evaluate(DROP, coded({f"{number}.png": some[number % 6] for number in range(200)}))
    page.get_by_text("200 of 200 images tagged").wait_for()
    assert len(sent) == 200 / 8
    assert page.locator("#strip .waiting").count() == 0


def test_a_busy_service_is_asked_again_and_a_dead_one_named(open_page, gradients):
    page = open_page()
    answers = [{"status": 503, "headers": {"Retry-After": "1"}, "json": {"detail": "busy; try again"}}]

    def answer(route: Any) -> None:
        route.fulfill(**answers.pop()) if answers else route.continue_()

    page.route("**/api/tag", answer)
    page.evaluate(DROP, coded({"a.png": gradients["image 0.png"]}))
    page.get_by_text("busy; try again; going on in 1 s").wait_for()
    page.get_by_text("1 of 1 image tagged").wait_for()
    page.route("**/api/*", lambda route: route.abort())
    drop(page, {"b.png": gradients["image 1.png"], "c.png": gradients["image 2.png"]})
    assert page.inner_text("#status") == "1 of 3 images tagged; 2 failed"
    page.click("#failed summary")
    assert "the service does not answer" in page.inner_text("#failed li >> nth=0")
    page.unroute_all()
    page.click("#again")
    page.get_by_text("3 of 3 images tagged").wait_for()


def test_no_button_loses_the_focus(open_page, gradients):
    page = open_page()
    drop(page, {"bad.png": b""} | gradients)
    page.click("#strip button >> nth=1")
    check_focus(page, "#result")
    check_focus(page, "#batch")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_fits_the_window(open_page, gradients, width, height, dark):
    page = open_page(width, height, dark, models=2)
    drop(page, gradients | {"bad.png": b""})
    page.locator(".tag").first.click()
    page.locator("#figures canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(252, 252, 250)")
    names = page.locator("button, a, summary, label.button").all()
    assert all(name.inner_text() or name.get_attribute("aria-label") for name in names if name.is_visible())


def test_the_models_are_named_once_images_can_be_dropped(open_page, gradients):
    page, held = open_page(models=2), list[Any]()
    page.route("**/api/tags*", lambda route: held.append(route))
    page.reload()
    while not held:
        page.wait_for_timeout(50)
    assert page.inner_text("#about") == ""
    for route in held:
        route.continue_()
    page.locator("#about").filter(has_text="tags").wait_for()
    drop(page, gradients)
    page.locator(".tag").first.wait_for()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Zs", "Cc"]), min_size=1), max_size=9))
@example(["^_^", "(o)_(o)", "long_hair", r"a_(\(b\))", "a_b", "ß_ä", "初音_ミク", "\U0001f44d_\U0001f44d", "12_3"])
@settings(max_examples=40)
def spelled(page: Any, tags: list[str]) -> None:
    tags = list(dict.fromkeys(tags))
    found = page.evaluate(
        """async (tags) => {
        const {STYLES} = await import('/output.js');
        return Object.fromEntries(Object.entries(STYLES).map(([name, write]) => [name, write(tags)]));
    }""",
        tags,
    )
    for name, style in STYLES.items():
        assert found[name] == style.separator.join(map(style.spell, tags))


def test_tags_are_spelled_as_the_tagger_does(open_page):
    page = open_page()
    spelled(page)

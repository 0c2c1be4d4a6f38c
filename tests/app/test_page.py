"""The page, as people use it: in headless Chromium, by mouse and by keys."""

import csv
import io
import re
import shutil
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import colours
import numpy as np
import pytest
import torch
from app_server import running
from browser import CHROMIUM
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import ROOT
from PIL import Image
from requirements import require

from joytag.app.collection import STATE
from joytag.app.decisions import FILE, Decisions
from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT
from joytag.tagging.captions import Captions, CaptionStyle, read_thresholds
from joytag.tagging.tagger import Tagger

SIZES = [(390, 844), (1280, 900)]
STYLES = {
    "sd-scripts": CaptionStyle(underscores="space"),
    "booru": CaptionStyle(separator=" "),
    "prompt": CaptionStyle(underscores="space", escape=True),
}
VARIABLES = re.compile(r"(--(?:paper|raised|ink|soft|line|accent|wash|good|bad|s1|s2)): ([^;]+);")
DROP = """async ([files]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: 'image/png'}));
  }
  for (const type of ['dragover', 'drop'])
    document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""
PASTE = DROP.replace("for (const type of ['dragover', 'drop'])", "").replace(
    "new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true})",
    "new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, controlled by Playwright."""
    require(find_spec("playwright") is not None, "Playwright: pip install playwright")
    require(CHROMIUM is not None, "Chromium")
    sync_api = import_module("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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
def open_page(chromium, address) -> Iterator[Callable[..., Any]]:
    """Open the page of an app; at the end there must be no error in the console and no request to another place."""
    problems: list[str] = []
    contexts: list[Any] = []
    addresses = {address}

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def check(request: Any) -> None:
        if not request.url.removeprefix("blob:").startswith((*addresses, "data:")):
            problems.append(request.url)

    def open_page(width: int = 1280, height: int = 900, dark: bool = False, models: int = 1, at: str = "") -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
            has_touch=width < 600,
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", check)
        addresses.add(at or address)
        page.goto(at or address)
        page.locator("#about").filter(has_text="tags").wait_for()
        if models == 1:
            page.locator("#other").evaluate("(each) => { each.value = ''; each.dispatchEvent(new Event('change')); }")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Six PNG files of gradients, by name."""
    files = {}
    for number in range(6):
        rng, buffer = np.random.default_rng(number), io.BytesIO()
        colour = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
        Image.fromarray(colour).resize((60 + 20 * number, 90), Image.Resampling.BICUBIC).save(buffer, "PNG")
        files[f"image {number}.png"] = buffer.getvalue()
    return files


@pytest.fixture(scope="module")
def expected(measured) -> Callable[..., str]:
    """Return the text that `joytag tag` would write for an image in a style."""
    tagger = Tagger.load(measured, device="cpu")
    own = read_thresholds(measured / "thresholds.csv", tagger.tags, 0.4)

    def text(image: bytes, style: str, threshold: Any = own) -> str:
        captions = Captions(STYLES[style], tagger.tags)
        return captions.join(captions.choose(tagger(image, threshold).tags))

    return text


def drop(page: Any, files: dict[str, bytes], script: str = DROP) -> None:
    """Drop files on the page, and wait until all are tagged or failed."""
    page.evaluate(script, [[[name, b64encode(data).decode()] for name, data in files.items()]])
    page.locator("#done").wait_for(state="hidden")


def text_of(page: Any) -> str:
    return page.input_value("#text")


def test_from_drop_to_copied_text(open_page, images, expected):
    page = open_page()
    drop(page, images)
    assert page.inner_text("#status") == "6 of 6 images tagged"
    for style in STYLES:
        page.check(f"input[value={style}]")
        for button, image in zip(page.locator("#strip button").all(), images.values(), strict=True):
            button.click()
            page.click("#copy")
            page.get_by_text("Copied.").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == text_of(page) == expected(image, style)


def test_by_keys_alone(open_page, images, expected):
    page = open_page()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "files":
        page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in images.items()])
    page.get_by_text("6 of 6 images tagged").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("c")
    page.get_by_text("Copied.").wait_for()
    image = images["image 1.png"]
    assert page.evaluate("navigator.clipboard.readText()") == expected(image, "sd-scripts") != ""
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#figures canvas").wait_for()
    assert page.evaluate("document.activeElement.dataset.key") == page.inner_text("figcaption bdi")
    page.keyboard.press("Escape")
    assert page.locator("#figures canvas").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("Reddish (h")
    assert page.locator("#tags .name").all_inner_texts() == ["reddish_(hue)"]


def test_pasted_images_and_texts(open_page, images):
    page = open_page()
    drop(page, {}, PASTE)
    assert "copy the image itself" in page.inner_text("#status")
    drop(page, {"pasted.png": images["image 0.png"]}, PASTE)
    assert page.inner_text("#status") == "1 of 1 image tagged"


def test_what_fails_is_named_with_its_reason(open_page, images):
    page = open_page()
    drop(page, {"text.png": b"no image"} | images | {"half.png": images["image 0.png"][:200]})
    assert page.inner_text("#status") == "6 of 8 images tagged; 2 failed"
    page.click("#failed summary")
    reasons = page.locator("#failed li").all_inner_texts()
    assert reasons[0].startswith("text.png not an image")
    assert reasons[1].startswith("half.png ")
    assert "not an image" in page.inner_text("#tags .error")
    page.click("#again")
    page.get_by_text("6 of 8 images tagged; 2 failed").wait_for()
    page.click("#clear")
    assert page.locator("#result").is_hidden()


def test_thresholds_move_in_the_page(open_page, images, expected):
    page = open_page()
    image = images["image 2.png"]
    drop(page, {"a.png": image})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.check("input[value=all]")
    for threshold in (0.01, 0.3, 0.55, 0.99):
        page.fill("#level", str(threshold))
        assert text_of(page) == expected(image, "sd-scripts", threshold)
    page.check("input[value=own]")
    assert text_of(page) == expected(image, "sd-scripts")
    page.fill("#find", "green")
    page.click(".tag")
    for threshold, is_over in ((0.01, True), (0.99, False)):
        page.fill(".details input", str(threshold))
        assert ("green" in text_of(page).split(", ")) == is_over
        assert page.inner_text(".margin").startswith("over by" if is_over else "missed by")
    page.click(".details button")
    assert text_of(page) == expected(image, "sd-scripts")
    assert [urlsplit(url).path for url in requests] == ["/api/evidence"]


def test_each_tag_is_beside_its_threshold_and_reliability(open_page, images, measured):
    page = open_page()
    drop(page, {"a.png": images["image 3.png"]})
    page.fill("#level", "0.3")
    page.fill("#find", "e")
    tagger = Tagger.load(measured, device="cpu")
    result = tagger(images["image 3.png"], 0.0)
    own = dict(zip(tagger.tags, read_thresholds(measured / "thresholds.csv", tagger.tags, 0.4), strict=True))
    evaluated = csv.DictReader((measured / "per_tag.csv").open())
    f1 = {row["name"]: float(row["f1"]) for row in evaluated}
    rows = page.locator(".tag").all()
    assert len(rows) == 5 - sum("e" not in tag for tag in tagger.tags)
    for row in rows:
        name = row.get_attribute("data-key")
        margin = result.tags[name] - min(0.99, own[name] + 0.3)
        assert row.locator(".score").inner_text() == f"{result.tags[name]:.2f}"
        assert row.locator(".margin").inner_text() in {
            f"{'over' if margin > 0 else 'missed'} by {abs(margin) + rounding:.2f}" for rounding in (-1e-4, 0, 1e-4)
        }
        assert re.search(r"F1 ([\d.]+), right \d+ %", row.inner_text())[1] == f"{f1[name]:.2f}"  # type: ignore[index]


def test_sorted_by_score_vocabulary_and_category(open_page, images, measured):
    page = open_page()
    drop(page, {"a.png": images["image 3.png"]})
    page.check("input[value=all]")
    page.fill("#level", "0.01")
    scores = Tagger.load(measured, device="cpu")(images["image 3.png"], 0.01).tags
    orders = {
        "score": list(scores),
        "vocabulary": [tag for tag in colours.NAMES if tag in scores],
        "category": sorted(scores, key=lambda tag: ("light" not in tag and "hue" not in tag, -scores[tag])),
    }
    for order, names in orders.items():
        page.select_option("#sort", order)
        assert page.locator(".tag").evaluate_all("all => all.map(each => each.dataset.key)") == names
        assert text_of(page) == ", ".join(name.replace("_", " ") for name in names)
    assert page.locator("#tags h3").all_inner_texts() == ["character", "general"]


def test_a_zip_and_a_table_of_all(open_page, images, expected):
    page = open_page()
    twins = {"a.png": images["image 0.png"], "A.jpg": images["image 1.png"], 'ü, "1".png': images["image 2.png"]}
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


def test_two_models_side_by_side(open_page, images, measured, other):
    page = open_page(models=2)
    image = images["image 1.png"]
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
    page.select_option("#other", "2")
    page.locator("figcaption", has_text="No map: plain has no linear head").wait_for()


def test_the_map_is_the_evidence(open_page, images, measured):
    page = open_page()
    image = images["image 4.png"]
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


def test_two_hundred_images(open_page, images):
    page = open_page()
    sent: list[int] = []
    page.on("request", lambda request: sent.append(1) if request.url.endswith("/api/tag") else None)
    some = list(images.values())
    page.evaluate(DROP, [[[f"{number}.png", b64encode(some[number % 6]).decode()] for number in range(200)]])
    page.get_by_text("200 of 200 images tagged").wait_for()
    assert len(sent) == 200 / 8
    assert page.locator("#strip .waiting").count() == 0


def test_a_busy_service_is_asked_again_and_a_dead_one_named(open_page, images):
    page = open_page()
    answers = [{"status": 503, "headers": {"Retry-After": "1"}, "json": {"detail": "busy; try again"}}]

    def answer(route: Any) -> None:
        route.fulfill(**answers.pop()) if answers else route.continue_()

    page.route("**/api/tag", answer)
    page.evaluate(DROP, [[["a.png", b64encode(images["image 0.png"]).decode()]]])
    page.get_by_text("busy; try again; going on in 1 s").wait_for()
    page.get_by_text("1 of 1 image tagged").wait_for()
    page.route("**/api/*", lambda route: route.abort())
    drop(page, {"b.png": images["image 1.png"], "c.png": images["image 2.png"]})
    assert page.inner_text("#status") == "1 of 3 images tagged; 2 failed"
    page.click("#failed summary")
    assert "the service does not answer" in page.inner_text("#failed li >> nth=0")
    page.unroute_all()
    page.click("#again")
    page.get_by_text("3 of 3 images tagged").wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_fits_the_window(open_page, images, width, height, dark):
    page = open_page(width, height, dark, models=2)
    drop(page, images | {"bad.png": b""})
    page.locator(".tag").first.click()
    page.locator("#figures canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(252, 252, 250)")
    names = page.locator("button, a, summary, label.button").all()
    assert all(name.inner_text() or name.get_attribute("aria-label") for name in names if name.is_visible())


def test_the_models_are_named_once_images_can_be_dropped(open_page, images):
    page, held = open_page(models=2), list[Any]()
    page.route("**/api/tags*", lambda route: held.append(route))
    page.reload()
    while not held:
        page.wait_for_timeout(50)
    assert page.inner_text("#about") == ""
    for route in held:
        route.continue_()
    page.locator("#about").filter(has_text="tags").wait_for()
    drop(page, images)
    page.locator(".tag").first.wait_for()


def test_the_description_of_the_api_fits_too(open_page, address):
    page = open_page(390, 844)
    page.goto(f"{address}api/docs")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_colours_are_those_of_the_reports():
    page, reports = (
        VARIABLES.findall((ROOT / path).read_text(encoding="utf-8"))
        for path in ("joytag/app/page/app.css", "joytag/reports/templates/style.css")
    )
    assert page == reports[:22]  # those of print follow
    assert len(page) == 22


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


# The tab Label


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of 60 images of one colour each."""
    folder = tmp_path_factory.mktemp("colours")
    for number, colour in enumerate(np.random.default_rng(3).integers(0, 256, (60, 3)).tolist()):
        Image.new("RGB", (40, 30), tuple(colour)).save(folder / f"{number}.png")
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
def open_labelling(open_page, labelled) -> Callable[..., Any]:
    """Open the tab Label, with the questions about a tag."""

    def open_labelling(tag: str = "", **options: Any) -> Any:
        page = open_page(at=labelled, **options)
        page.click("#label-tab")
        if tag:
            page.fill("#word", tag)
            page.keyboard.press("Enter")
            page.locator(".cells li").nth(9).wait_for()
            page.locator(".cells img").first.hover()
            page.evaluate("document.activeElement.blur()")
        return page

    return open_labelling


def decided(folder: Path, tag: str) -> dict[str, str]:
    """Return what is on the disk about a tag, by image."""
    return {image: row.decision for image, row in Decisions(folder / STATE / FILE).of_tag(tag).items()}


def cells(page: Any) -> dict[str, str]:
    """Return the images of a grid with the answers that they show."""
    return dict(
        page.locator(".cells button").evaluate_all("all => all.map(each => [each.dataset.key, each.className])")
    )


def told(page: Any, text: str) -> None:
    page.locator("#told", has_text=text).wait_for()


def test_a_grid_by_keys(open_labelling, folder):
    page = open_labelling("red")
    first = cells(page)
    page.keyboard.press("3")
    page.keyboard.press("0")
    page.keyboard.press("0")
    shown = cells(page)
    changed = [old != new for old, new in zip(first.values(), shown.values(), strict=True)]
    assert changed == [False, False, True, *[False] * 6, True]
    page.keyboard.press("Enter")
    told(page, "kept.")
    page.wait_for_function("key => !document.querySelector(`[data-key='${key}']`)", arg=next(iter(shown)))
    assert decided(folder, "red") == shown
    assert not cells(page).keys() & shown.keys()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("z")
    told(page, "Undone")
    assert decided(folder, "red") == {}
    assert cells(page).keys() == shown.keys()


def test_only_what_the_service_answered_counts_as_kept(open_labelling, folder):
    page = open_labelling("something new")
    shown = cells(page)
    page.route("**/api/label/decisions", lambda route: route.abort())
    page.keyboard.press("Enter")
    told(page, "10 decisions not kept: the service does not answer")
    assert cells(page) == shown
    assert decided(folder, "something_new") == {}
    page.unroute_all()
    page.click("#resend")
    told(page, "10 decisions kept.")
    assert decided(folder, "something_new") == shown
    page.wait_for_function("key => !document.querySelector(`[data-key='${key}']`)", arg=next(iter(shown)))
    assert page.locator("#resend").is_hidden()


def test_one_image_by_keys(open_labelling, folder):
    page = open_labelling()
    page.check("[value=image]")
    page.locator(".question.current").wait_for()
    page.evaluate("document.activeElement.blur()")
    source = page.get_attribute("#questions img", "src")
    sha256 = source.split("/")[4]
    page.fill("#word", "lovely thing")
    page.keyboard.press("Enter")
    told(page, "1 decision kept.")
    assert decided(folder, "lovely_thing") == {sha256: "yes"}
    page.evaluate("document.activeElement.blur()")
    tag = page.inner_text(".question.current bdi")
    page.keyboard.press("u")
    told(page, "1 decision kept.")
    page.locator(f'[aria-label="{tag}: unsure"][aria-pressed=true]').wait_for()
    assert decided(folder, tag) == {sha256: "unsure"}
    if page.locator("#questions kbd", has_text="2").count():  # the group is asked about
        page.keyboard.press("2")
        page.get_by_text("green: yes").wait_for()
        assert decided(folder, "green")[sha256] == "yes"
        assert tag == "red" or decided(folder, "red")[sha256] == "no"
    page.keyboard.press("Enter")
    page.wait_for_function("src => document.querySelector('#questions img')?.getAttribute('src') !== src", arg=source)


def test_doubts(open_page, measured, tmp_path):
    data = shutil.copytree(measured.parent / "data", tmp_path / "data")
    with running(measured, "--data", data, "--device", "cpu") as server:
        page = open_page(at=f"http://{server.host}:{server.port}/")
        page.click("#label-tab")
        page.check("[value=doubts]")
        page.locator("#questions canvas").wait_for()
        count = int(re.findall(r"of (\d+)", page.inner_text("#questions h2"))[0])
        sha256, tag = page.get_attribute("#questions img", "src").split("/")[4], page.inner_text(".question bdi")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("n")
        page.locator("h2", has_text=f"of {count - 1}").wait_for()
        assert decided(data, tag) == {sha256: "no"}


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
    page.get_by_text("Learning: 320 of 1,200 samples").wait_for()
    learning |= {"state": "failed", "message": "too few images"}
    page.get_by_text("Stop learning").click()
    page.get_by_text("Learning failed: too few images").wait_for()
    assert asked == ["POST", "DELETE"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_labelling_fits_the_window(open_labelling, width, height, dark):
    page = open_labelling("light", width=width, height=height, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.check("[value=image]")
    page.locator(".question").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width

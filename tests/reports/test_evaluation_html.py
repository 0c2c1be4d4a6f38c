"""report.html: contents, escaping, and rendering in Chromium."""

import base64
import csv
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import analyses
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import BROKEN_NAMES, CUT_OFF
from PIL import Image

from joytag.data.dataset import Dataset
from joytag.evaluation.error_analysis import Disagreement
from joytag.evaluation.groupings import Grouping
from joytag.evaluation.per_tag import COLUMNS
from joytag.reports import evaluation, evaluation_html
from joytag.reports.charts import format_coordinate
from joytag.reports.formats import MOST_NAMES, format_number

VOID = {"meta", "link", "img", "br", "input"}
IMPLIED = {"td", "tr"}  # HTML may leave out their end tags


class Outline(HTMLParser):
    """The elements of a page with their attributes, and its text without style and script; asserts that tags match.

    Possible breaks in names are ignored.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html.replace("<wbr>", ""))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        while tag in IMPLIED and self.open[-1] == "td":
            self.open.pop()
        if tag == "tr" and self.open[-1] == "tr":
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1] != tag and self.open[-1] in IMPLIED:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def analysis():
    return analyses.analysis(60)


@pytest.fixture(scope="module")
def html(analysis):
    return evaluation_html.render_page(analysis, analyses.predictions(60))


def test_the_page_contains_all_averages_groups_and_confusions(html, analysis):
    text = Outline(html).text
    for name in evaluation_html.SECTIONS.values():
        assert name in text
    for name, row in analysis.headline.items():
        for metric, interval in row.items():
            assert f"{interval.value:.3f} {interval.low:.3f} to {interval.high:.3f}" in text, (name, metric)
    for kind in ("sources", "categories", "bands", "groups"):
        for name, row in getattr(analysis, kind).rows.items():
            assert name in text
            assert format_number(row.macro_f1) in text
    for confusion in analysis.confusions:
        assert f"{confusion.labelled} {confusion.predicted} {confusion.images}" in text
    assert "Better than the fixed threshold" in text
    assert "The gap in macro F1 is 0.100" in text
    assert f"{analysis.calibration.ece:.4f}" in text


def test_every_tag_is_in_the_table_and_in_the_chart(html, analysis):
    table = html.replace("<wbr>", "").split('<table class="sortable">')[1]
    rows = table.split("</tbody>")[0].split("<tr>")[2:]
    assert len(rows) == 60
    cells = [re.sub("<[^>]*>", "\t", row).split("\t")[1:] for row in rows]
    first = analysis.per_tag.slice(1, 1).to_pylist()[0]
    titles = [column.title for column in COLUMNS if column.title]
    assert [len(row) for row in cells] == [len(titles)] * 60
    assert cells[1][titles.index("tag")] == first["name"]
    assert cells[1][titles.index("F1")] == f"{first['f1']:.3f}"
    assert cells[0][titles.index("F1")] == "undefined"
    defined = 60 - analysis.per_tag["f1"].null_count
    cloud = html.split('<figure class="cloud')[1].split("</figure>")[0]
    assert cloud.count("<title>") == defined + 1  # and one of the median's line
    assert f"Not shown: {60 - defined} tags with undefined F1" in html


def test_the_long_table_has_every_titled_column_and_the_page_explains_it(html):
    shown = [column for column in COLUMNS if column.title]
    table = html.split('<table class="sortable">')[1].split("</thead>")[0]
    assert re.findall(r"<th [^>]*>([^<]*)</th>", table) == [column.title for column in shown]
    text = Outline(html).text
    for column in shown:
        assert column.meaning in text


def test_dots_are_at_the_f1_of_their_tags(html, analysis):
    cloud = html.split('<figure class="cloud')[1].split("</figure>")[0]
    row = analysis.per_tag.slice(7, 1).to_pylist()[0]
    dot = re.search(rf'cy="([\d.]+)%" r="3"><title>{row["name"]}: F1 {row["f1"]:.3f}, trained on', cloud)
    assert dot
    assert dot[1] == format_coordinate(100 * (1 - row["f1"]))


def test_undefined_metrics_are_called_undefined(html, analysis):
    assert "2 tags : no positives" in Outline(html).text
    assert html.count('<span class="none">undefined</span>') >= 5  # the empty group's
    assert not re.search(r"\b(nan|None)\b", html)


def test_a_page_without_undefined_metrics_says_that_all_are_defined(analysis):
    table = analysis.per_tag.filter(np.array(analysis.per_tag["undefined"].to_pylist()) == "")
    html = evaluation_html.render_page(dataclasses.replace(analysis, per_tag=table), analyses.predictions(60))
    assert "All metrics of all tags are defined." in html


def test_a_page_without_findings_and_thresholds_is_complete(analysis):
    """A model that never predicts anything has no break-even, no confusions and no false positives."""
    empty = dataclasses.replace(
        analysis,
        confusions=[],
        confusions_by_share=[],
        false_positives=[],
        misses=[],
        label_errors=[],
        groups=Grouping({}, None),
        thresholds=dict.fromkeys(analysis.thresholds, float("nan")) | {"fixed": 0.4},
    )
    html = evaluation_html.render_page(empty, analyses.predictions(60))
    assert not re.search(r"\bnan\b", html)
    assert "Groups of tags" not in html


def test_names_are_escaped(html):
    """Names of tags, sources, groups and the model contain HTML tags, quotes and scripts."""
    outline = Outline(html)
    assert [attributes for tag, attributes in outline.elements if tag == "script"] == [{}]
    assert not {"b>model", "u", "i", "iframe"} & {tag for tag, _ in outline.elements}
    for tag, attributes in outline.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert '<script>alert("x")</script>' in outline.text
    assert "<i>clothes</i>" in outline.text
    labels = [attributes.get("aria-label", "") for tag, attributes in outline.elements if tag == "svg"]
    assert any("aaaa" in label for label in labels)


def test_the_page_loads_nothing(html):
    outline = Outline(html)
    assert not re.search(r"url\(|@import|https?:|//[a-z]|fetch|import\(", html)
    for tag, attributes in outline.elements:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("data:" if tag == "link" else "#"), tag
    policy = next(attributes["content"] for tag, attributes in outline.elements if "http-equiv" in attributes)
    script = re.search(r"<script>(.*?)</script>", html, re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_section_has_a_link(html):
    outline = Outline(html)
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    links = [attributes["href"][1:] for tag, attributes in outline.elements if tag == "a"]
    assert len(ids) == len(set(ids))
    assert set(links) == set(evaluation_html.SECTIONS) <= set(ids)


def test_images_are_small_and_missing_ones_are_named(dataset_directory):
    dataset = Dataset.open(dataset_directory)
    posts = dataset.posts("validation")
    predictions = analyses.predictions(60)
    predictions.hashes[: len(posts)] = posts.hashes
    mistakes = [Disagreement(0, 3, 0.9, False, 0.5), Disagreement(300, 4, 0.1, True, 0.5)]
    there, missing = evaluation_html.gallery_cards(mistakes, predictions, dataset)
    image = Image.open(io.BytesIO(base64.b64decode(there["image"].removeprefix("data:image/jpeg;base64,"))))
    assert image.format == "JPEG"
    assert max(image.size) <= evaluation_html.THUMBNAIL_SIDE
    assert missing["image"] == ""
    assert missing["id"] == 2100
    assert missing["tag"] == analyses.names(60)[4]
    carried = np.flatnonzero(predictions.labels.toarray()[300])
    assert missing["labels"] == [analyses.names(60)[tag] for tag in carried][:MOST_NAMES]
    shown = dataclasses.replace(analyses.analysis(60), false_positives=mistakes[:1], misses=mistakes[1:])
    html = evaluation_html.render_page(shown, predictions, dataset)
    assert html.count('<img src="data:image/jpeg;base64,') == 1
    assert "image 2100 is not available" in Outline(html).text


def test_images_are_named_by_their_original_files(dataset_directory, tmp_path):
    for file in ("dataset.json", "tags.parquet"):
        (tmp_path / file).write_bytes((dataset_directory / file).read_bytes())
    table = pq.read_table(dataset_directory / "validation.parquet")
    paths = [f"a_folder/{number} <b>.png" for number in range(len(table))]
    pq.write_table(table.append_column("path", [paths]), tmp_path / "validation.parquet")
    dataset = Dataset.open(tmp_path)
    predictions = analyses.predictions(60)
    predictions.hashes[: len(table)] = dataset.posts("validation").hashes
    predictions.provenance["split"] = "validation"
    errors = [Disagreement(row, 3, 0.9, False, 0.5) for row in (1, 300, 0)]
    shown = dataclasses.replace(
        analyses.analysis(60), false_positives=errors[:2], misses=errors[2:], label_errors=errors
    )
    text = Outline(evaluation_html.render_page(shown, predictions, dataset)).text
    assert text.count(paths[0]) == text.count(paths[1]) == 3  # below the image, without the image, among the errors
    assert "image 2100 is not available" in text
    evaluation.write_reports(tmp_path, shown, predictions, dataset)
    rows = list(csv.DictReader((tmp_path / "label_errors.csv").open(encoding="utf-8")))
    assert [row["path"] for row in rows] == [paths[1], "", paths[0]]
    assert rows[1]["id"] == "2100"


def test_a_tag_that_is_never_right_is_not_among_the_best(analysis):
    table = analysis.per_tag.to_pydict()
    table["f1"] = [0.0 if f1 is not None and i > 3 else f1 for i, f1 in enumerate(table["f1"])]
    table["f1"][1] = 1.0
    changed = dataclasses.replace(analysis, per_tag=pa.table(table, analysis.per_tag.schema))
    html = evaluation_html.render_page(changed, analyses.predictions(60)).replace("<wbr>", "")
    best, worst = html.split("<h3>Best</h3>")[1].split("<h3>Worst</h3>")
    listed = re.findall(r'<th scope="row"><bdi>(.*?)</bdi></th><td>([\d.]+)</td>', best)
    assert listed[0] == (table["name"][1], "1.000")
    assert len(listed) == 3
    assert "0.000" not in [f1 for _, f1 in listed]
    assert not set(listed) & set(re.findall(r'<th scope="row"><bdi>(.*?)</bdi></th><td>([\d.]+)</td>', worst))


def test_a_missing_image_has_no_thumbnail(dataset_directory):
    dataset = dataclasses.replace(Dataset.open(dataset_directory), extension="none")
    assert evaluation_html.thumbnail(dataset, bytes(32)) == ""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Path of a page about as many tags and images as the released model has."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(
        evaluation_html.render_page(analyses.analysis(5_813, 32_768), analyses.predictions(5_813, 32_768)), "utf-8"
    )
    return path


def test_the_page_stays_small(html, large):
    """The sizes are without images; the galleries contain up to 48 of a few kB each."""
    assert len(html.encode()) < 300_000
    assert large.stat().st_size < 3_000_000


# The tests below render the page in a browser.


@pytest.fixture(scope="module")
def path(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


# For each chart, the number of texts that overlap another or leave the window.
OVERLAPS = """[...document.querySelectorAll('.chart')].map(chart => {
    const boxes = [...chart.querySelectorAll('text')].map(text => text.getBoundingClientRect());
    return boxes.filter((a, i) => a.left < 0 || a.right > WIDTH || boxes.some((b, j) => j > i
        && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length;
})"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_page_is_complete_at_any_width(browser, path, width, dark):
    view = browser.open(path, width=width, dark=dark)
    assert view.problems == []
    assert view.requests == []
    assert view.value("document.documentElement.scrollWidth") <= width
    sizes = view.value("[...document.querySelectorAll('.chart > svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(sizes) == 7
    assert all(across >= 280 and down >= 200 for across, down in sizes)
    for mark, fewest in (("polyline", 20), (".dots circle", 60), (".bars rect", 10)):
        marks = f"[...document.querySelectorAll('.chart {mark}')]"
        assert view.value(f"{marks}.filter(mark => mark.getBoundingClientRect().width > 0).length") >= fewest
    assert view.value(OVERLAPS.replace("WIDTH", str(width))) == [0] * 7
    light = view.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", light)[:3])) < 150) == dark


@pytest.mark.parametrize("width", [390, 1280])
def test_verdicts_are_in_view_and_names_break_between_words(browser, path, width):
    view = browser.open(path, width=width)
    assert view.value("document.querySelectorAll('.verdict').length") >= 3
    assert view.value(CUT_OFF) == []
    assert view.value(BROKEN_NAMES) == []


def test_the_long_table_is_searched_and_sorted(browser, path):
    view = browser.open(path)
    first = "document.querySelector('.sortable tbody tr').cells"
    view.value("document.querySelector('details:has(.sortable)').open = true")
    head = "[...document.querySelectorAll('.sortable th')].find(h => h.textContent == 'F1')"
    view.value(f"{head}.querySelector('button').click()")
    value = f"{first}[{head}.cellIndex].textContent"
    assert float(view.value(value)) > 0.8
    view.value(f"{head}.querySelector('button').click()")
    assert view.value(value) == "undefined"
    assert view.value(f"{head}.ariaSort") == "ascending"
    view.value("document.querySelector('.search').value = 'Blue red'")
    view.value("document.querySelector('.search').dispatchEvent(new Event('input'))")
    rows = "[...document.querySelectorAll('.sortable tbody tr')].filter(row => row.checkVisibility())"
    assert view.value(f"{rows}.map(row => row.cells[0].textContent)") == ["blue_red"]
    assert view.problems == []


def test_5813_tags_are_drawn_and_sorted(browser, large):
    view = browser.open(large)
    defined = 5_813 - analyses.analysis(5_813, 32_768).per_tag["f1"].null_count
    assert view.value("document.querySelectorAll('.cloud .dots circle[cx$=\\'%\\']').length") >= defined
    view.value("document.querySelector('details:has(.sortable)').open = true")
    view.value("document.querySelectorAll('.sortable th button')[2].click()")
    column = "[...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[2].textContent)"
    trained = [int(text.replace(",", "")) for text in view.value(column)]
    assert len(trained) == 5_813
    assert trained == sorted(trained, reverse=True)
    assert view.problems == []
    assert view.requests == []


def test_tapping_a_dot_shows_its_title_below_the_chart(browser, path):
    view = browser.open(path, width=390)
    view.value("document.querySelector('.cloud circle').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    text = view.value("document.querySelector('.cloud .readout').textContent")
    assert re.match(r".+: F1 [\d.]+, trained on [\d,]+, [\d,]+ images here", text)


def test_the_printed_page_is_light_and_leaves_out_the_long_table(browser, path, tmp_path):
    view = browser.open(path, dark=True)
    view.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    view.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert view.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert view.value("document.querySelector('details:has(.sortable)').checkVisibility()") is False


def test_the_policy_blocks_foreign_images_and_scripts(browser, path, tmp_path):
    """So the tests above would have failed with such content."""
    hostile = Path(tmp_path / "hostile.html")
    text = path.read_text(encoding="utf-8")
    hostile.write_text(
        text.replace("<main>", "<main><img src='https://example.invalid/a.png'><script>alert(1)</script>")
    )
    view = browser.open(hostile)
    assert len([problem for problem in view.problems if "Content Security Policy" in str(problem)]) >= 2

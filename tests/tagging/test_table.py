"""Tests of joytag.tagging.table: tables that people and spreadsheets edit."""

import csv
import io
import json
import os
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from joytag.core.lock import InUse
from joytag.tagging.captions import CaptionStyle
from joytag.tagging.folder import Job
from joytag.tagging.table import CsvRows, JsonRows, Table
from joytag.tagging.tagger import Result, Tagger

KINDS = ("csv", "jsonl")


class Words:
    """A tagger that gives every image the same tags, and stops before the image `stop`."""

    def __init__(self, *tags: str, stop: str = "") -> None:
        self.tags, self.stop = list(tags), stop

    def stream(self, paths, *_):
        def results():
            for path in paths:
                if path.name == self.stop:
                    raise KeyboardInterrupt
                yield Result(dict.fromkeys(self.tags, 0.9))

        return results()


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of three images, a.png to c.png."""
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def tag(root: Path, kind: str, *tags: str, stop: str = "", inputs: str = "", **options) -> Job:
    job = Job.plan([str(root / inputs)], True, kind, CaptionStyle(), **options)
    if job.pending:
        job.run(cast(Tagger, Words(*tags, stop=stop)), 0.5)
    else:
        job.output.finish()
    return job


def rows(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in text else ","))


def texts(path: Path) -> dict[str, str]:
    content = rows(path)
    assert len({row["file_name"] for row in content}) == len(content)
    return {row["file_name"]: row["text"] for row in content}


@pytest.mark.parametrize(
    "table",
    [
        b"\xef\xbb\xbffile_name,text\r\na.png,my words\r\n",
        b"file_name;text\r\na.png;my words\r\n",
        b"file_name\ttext\na.png\tmy words\n",
        b'"file_name";"text"\n"a.png";"my; words"\n',
        b"\xef\xbb\xbffile_name;text;note\r\na.png;my words;mine\r\n",
        b"file_name,text,note\na.png,my words,mine",
        b"note,text,file_name\nmine,my words,a.png",
        b"file_name,text\rb.png,other\ra.png,my words\r",
        b'file_name,text,note\n"a.png","my words","two\nlines, ""quoted"""\n',
        b"file_name,text\na.png,my words\n\n",
        b"file_name,text,,\na.png,my words,x,y\n",
    ],
)
def test_a_table_saved_by_a_spreadsheet_or_by_hand_keeps_its_words(root, table):
    (root / "tags.csv").write_bytes(table)
    before = CsvRows(table.decode())
    tag(root, "csv", "new")
    after = CsvRows((root / "tags.csv").read_bytes().decode())
    assert (after.header, after.delimiter, after.bom) == (before.header, before.delimiter, before.bom)
    assert after.rows[: len(before.rows)] == before.rows
    added = [dict(zip(after.header, row, strict=True)) for row in after.rows[len(before.rows) :]]
    assert {(row["file_name"], row["text"]) for row in added} | {(name, "x") for name in before.names()} == {
        (f"{name}.png", "x" if f"{name}.png" in before.names() else "new") for name in "abc"
    }
    whole = (root / "tags.csv").read_bytes()
    assert not tag(root, "csv", "new").pending
    assert (root / "tags.csv").read_bytes() == whole


def test_words_behind_unquoted_commas_stay(root):
    (root / "tags.csv").write_text("file_name,text\na.png,my, own, words\nb.png\n")
    tag(root, "csv", "new")
    assert (root / "tags.csv").read_text().splitlines() == [
        "file_name,text",
        "a.png,my, own, words",
        "b.png",
        "c.png,new",
    ]


@pytest.mark.parametrize(
    "table",
    [
        b'{"file_name": "a.png", "text": "my words", "tags": {}}',
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "my words"}\r\n',
        b'{"note": {"x": [1]},  "text":"my words","file_name":"a.png"}\n\n',
        '{"file_name": "a.png", "text": "my words \u2028 \x85 caf\u00e9"}\n'.encode(),
    ],
)
def test_edited_lines_of_json_stay_as_they_are(root, table):
    (root / "tags.jsonl").write_bytes(table)
    tag(root, "jsonl", "new")
    assert (root / "tags.jsonl").read_bytes().startswith(table.strip())
    assert {
        row["file_name"]: row["text"][:8]
        for row in map(json.loads, JsonRows((root / "tags.jsonl").read_bytes().decode()).lines)
    } == {"a.png": "my words", "b.png": "new", "c.png": "new"}


@given(
    st.lists(st.lists(st.text('ab.png,;\t"\n\r \u2028é', max_size=8), max_size=4), max_size=5),
    st.permutations(["file_name", "text", "note", ""]),
    st.sampled_from(",;\t"),
    st.sampled_from(["", "\ufeff"]),
)
def test_rows_of_a_spreadsheet_stay_whatever_they_hold(cells, header, delimiter, bom):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([header, *cells])
    rows = CsvRows(bom + text.getvalue())
    expected = [row for row in cells if row]
    assert rows.rows == expected
    rows.append({"file_name": "new.png", "text": 'a, "b"; c'})
    again = CsvRows(str(rows))
    assert (again.bom, again.header, again.rows[:-1]) == (bom, header, expected)
    assert again.names()[-1] == "new.png"
    assert str(again) == str(rows)


@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: b"file_name,text\n" + text.encode("utf-8", "replace"))
)
def test_any_file_is_kept_or_refused(content):
    for kind in (CsvRows, JsonRows):
        try:
            rows = kind(content.decode())
        except (ValueError, csv.Error):
            continue
        before = rows.names()
        rows.append({"file_name": "new.png", "text": "x"})
        assert kind(str(rows)).names() == [*before, "new.png"]


FOREIGN = [
    ("csv", b"id,url\n1,https://example.org\n", "line 1 does not name the columns file_name and text"),
    ("csv", b"file_name,label\na.png,cat\n", "line 1 does not name"),
    ("csv", "file_name,text\na.png,caf\u00e9\n".encode("cp1252"), "not UTF-8 text"),
    ("csv", "file_name\ttext\na.png\tx\n".encode("utf-16"), "not UTF-8 text"),
    ("csv", b'file_name,text\na.png,"cut', "unexpected end of data"),
    ("jsonl", b'{"url": "https://example.org"}\n', "row 1 is no JSON object with the texts file_name and text"),
    ("jsonl", b'{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text"', "row 2 is no JSON"),
    ("jsonl", b"[1]\n", "row 1"),
    ("jsonl", b"[" * 100_000, "row 1"),
    ("jsonl", b'[\n {"file_name": "a.png", "text": "x"}\n]\n', "row 1"),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("kind", "table", "reason"), FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_or_damaged_table_is_refused_and_stays(root, kind, table, reason, overwrite):
    (root / f"tags.{kind}").write_bytes(table)
    with pytest.raises(
        ValueError, match=rf"tags\.{kind}: cannot be extended: .*{reason}.*; correct it, or move it"
    ) as error:
        Job.plan([str(root)], True, kind, CaptionStyle(), overwrite=overwrite)
    assert "\n" not in str(error.value)
    assert (root / f"tags.{kind}").read_bytes() == table
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_undecodable_names_get_one_row(tmp_path, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    for _ in range(3):
        tag(tmp_path, kind, "new")
        assert texts(tmp_path / f"tags.{kind}") == {r"caf\udce9.png": "new"}
    tag(tmp_path, kind, "newer", overwrite=True)
    assert texts(tmp_path / f"tags.{kind}") == {r"caf\udce9.png": "newer"}


def test_a_row_of_an_undecodable_name_from_an_earlier_version_counts(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    (tmp_path / "tags.jsonl").write_text(r'{"file_name": "caf\udce9.png", "text": "old"}' + "\n")
    assert not tag(tmp_path, "jsonl", "new").pending


@pytest.mark.parametrize("kind", KINDS)
def test_overwriting_replaces_texts_and_keeps_own_columns_and_other_rows(root, kind):
    tag(root, kind, "old")
    path = root / f"tags.{kind}"
    if kind == "csv":
        path.write_text("file_name,note,text\n" + "".join(f"{name}.png,mine,old\n" for name in "abc"))
    else:
        path.write_text("".join(json.dumps(row | {"note": "mine"}) + "\n" for row in rows(path)))
    tag(root, kind, "new", inputs="b.png", overwrite=True)
    assert [(row["text"], row["note"]) for row in rows(path)] == [("old", "mine"), ("new", "mine"), ("old", "mine")]
    tag(root, kind, "newer", overwrite=True)
    assert {row["text"] for row in rows(path)} == {"newer"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_continues(root, kind):
    with pytest.raises(KeyboardInterrupt):
        tag(root, kind, "new", stop="c.png")
    assert not (root / f"tags.{kind}").exists()
    with (root / f".tags.{kind}.unfinished" / "rows.jsonl").open("a") as file:
        file.write('{"file_name": "c.pn')  # the process was killed while it wrote
    assert [path.name for path in tag(root, kind, "newer").pending] == ["c.png"]
    assert texts(root / f"tags.{kind}") == {"a.png": "new", "b.png": "new", "c.png": "newer"}
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_overwriting_after_an_interruption_leaves_no_row_of_other_settings(root, kind, first):
    tag(root, kind, "oldest")
    with pytest.raises(KeyboardInterrupt):
        tag(root, kind, "old", stop="c.png", overwrite=True)
    if first:
        (root / f"tags.{kind}").unlink()
    tag(root, kind, "new", overwrite=True)
    assert texts(root / f"tags.{kind}") == dict.fromkeys(("a.png", "b.png", "c.png"), "new")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_after_its_last_row_is_finished(root, kind, monkeypatch):
    def interrupt(_: Table) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Table, "_merge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tag(root, kind, "new")
    assert not (root / f"tags.{kind}").exists()
    assert not tag(root, kind).pending
    assert texts(root / f"tags.{kind}") == dict.fromkeys(("a.png", "b.png", "c.png"), "new")
    assert len(list(root.iterdir())) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_edits_made_during_a_run_stay(root, kind):
    tag(root, kind, "old", inputs="a.png")
    job = Job.plan([str(root)], True, kind, CaptionStyle())
    path = root / f"tags.{kind}"
    path.write_text(path.read_text().replace("old", "edited"))
    with path.open("a") as file:
        file.write("b.png,mine\n" if kind == "csv" else '{"file_name": "b.png", "text": "mine"}\n')
    job.run(cast(Tagger, Words("new")), 0.5)
    assert texts(path) == {"a.png": "edited", "b.png": "mine", "c.png": "new"}


def test_a_second_writer_of_a_table_is_refused(root):
    job = Job.plan([str(root)], True, "csv", CaptionStyle())
    with Table(root / "tags.csv").opened(), pytest.raises(InUse, match=r"tags\.csv: .* \(process \d+ on .*, since "):
        job.run(cast(Tagger, Words("new")), 0.5)
    assert not (root / "tags.csv").exists()


def test_complete_tables_in_read_only_folders_need_nothing(root):
    tag(root, "csv", "new")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.iterdir()]}
    tag(root, "csv", "new")
    assert {path: path.stat().st_mtime_ns for path in [root, *root.iterdir()]} == before

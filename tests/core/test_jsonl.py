"""Lines of JSON are appended and read, even after an interruption."""

import pytest

from joytag.core import jsonl


def test_a_missing_file_is_empty(tmp_path):
    assert jsonl.read(tmp_path / "gone.jsonl") == []


def test_appended_lines_are_read(tmp_path):
    rows: list[dict] = [{"a": 1}, {"b": "ü\u2028"}, {"c": [1.5, None]}]
    for row in rows:
        jsonl.append(tmp_path / "log.jsonl", row)
    assert jsonl.read(tmp_path / "log.jsonl") == rows


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1', b"", b"\0\0\0", b'{"a": "\xff"}', b"[1]", b"12", b"[" * 100_000],
    ids=["incomplete", "empty", "zeros", "not UTF-8", "array", "number", "nested"],
)
def test_lines_without_an_object_are_skipped(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"first": 1}\n' + line + b'\n{"last": 2}\n')
    assert jsonl.read(path) == [{"first": 1}, {"last": 2}]


def test_appending_after_an_incomplete_line_begins_a_new_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"first": 1}\n{"cut o')
    jsonl.append(path, {"last": 2})
    assert jsonl.read(path) == [{"first": 1}, {"last": 2}]

"""One table of all images' tags, `tags.jsonl` or `tags.csv`, which people may edit."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import filterfalse
from pathlib import Path
from typing import Any, Protocol

from joytag.core import files, jsonl
from joytag.core.lock import sole_editor, unfinished
from joytag.tagging.captions import Captions
from joytag.tagging.outputs import rounded

COLUMNS = ("file_name", "text")  # that every table has
BOM = "\ufeff"  # spreadsheets write it


class Rows(Protocol):
    """The rows of a table. Columns and rows that people add are kept unchanged."""

    def names(self) -> list[str]:
        """Return the file name of each row."""

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""

    def update(self, position: int, row: dict[str, Any]) -> None:
        """Change the row at a position, but not the columns that `row` lacks."""

    def __str__(self) -> str:
        """Return the text of the file."""


class CsvRows:
    """A table of comma-separated values; a spreadsheet may have saved it with semicolons or tabs.

    Raises ValueError for a text that is no such table, and csv.Error for a damaged one.
    """

    def __init__(self, text: str) -> None:
        self.bom = BOM if text.startswith(BOM) else ""
        text = text.removeprefix(BOM) or ",".join(COLUMNS)
        for self.delimiter in ",;\t":
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True)
            with suppress(csv.Error):  # in line 1, where quotes end before another delimiter
                self.header = next(lines)
                if set(COLUMNS) <= set(self.header):
                    break
        else:
            raise ValueError(f"line 1 does not name the columns {' and '.join(COLUMNS)}")
        self.rows = [row for row in lines if row]
        self._name, self._text = map(self.header.index, COLUMNS)

    def names(self) -> list[str]:
        """Implement Rows."""
        return [row[self._name] if len(row) > self._name else "" for row in self.rows]

    def append(self, row: dict[str, Any]) -> None:
        """Implement Rows."""
        self.rows.append([""] * len(self.header))
        self.update(len(self.rows) - 1, row)

    def update(self, position: int, row: dict[str, Any]) -> None:
        """Implement Rows."""
        cells = (self.rows[position] + [""] * len(self.header))[: len(self.header)]
        cells[self._name], cells[self._text] = (row[column] for column in COLUMNS)
        self.rows[position] = cells

    def __str__(self) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self.delimiter).writerows([self.header, *self.rows])
        return self.bom + text.getvalue()


class JsonRows:
    """A table of JSON lines. Raises ValueError for a text that is no such table."""

    def __init__(self, text: str) -> None:
        self.bom = BOM if text.startswith(BOM) else ""
        self.lines = [line for line in text.removeprefix(BOM).replace("\r\n", "\n").split("\n") if line.strip()]
        self.rows: list[dict[str, Any]] = []
        for number, line in enumerate(self.lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not all(isinstance(row.get(column), str) for column in COLUMNS):
                raise ValueError(f"row {number} is no JSON object with the texts {' and '.join(COLUMNS)}")
            self.rows.append(row)

    def names(self) -> list[str]:
        """Implement Rows."""
        return [row[COLUMNS[0]] for row in self.rows]

    def append(self, row: dict[str, Any]) -> None:
        """Implement Rows."""
        self.lines.append(json.dumps(row))

    def update(self, position: int, row: dict[str, Any]) -> None:
        """Implement Rows."""
        self.lines[position] = json.dumps(self.rows[position] | row)

    def __str__(self) -> str:
        return self.bom + "".join(line + "\n" for line in self.lines)


class Table:
    """One file for all images, `tags.jsonl` or `tags.csv`, with paths relative to its folder.

    Images that have a row are done, unless `overwrite`. New rows are collected in a hidden folder, with which an
    interrupted run continues; they enter the table when all images are done. With `overwrite` a run starts from the
    beginning, and its rows replace earlier ones of the same images.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        self.overwrite = overwrite
        self._new = unfinished(path) / "rows.jsonl"

    def __str__(self) -> str:
        return f"into {self.path}"

    def pending(self, paths: Sequence[Path]) -> list[Path]:
        """Implement Output. Raises ValueError when an existing table is damaged, or another program's."""
        done = {_escaped(name) for name in self._read().names()}
        done |= {row[COLUMNS[0]] for row in jsonl.read(self._new)}
        return [image for image in paths if self.overwrite or self._name(image) not in done]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Implement Output. Raises InUse when another process writes the table."""
        with sole_editor(self.path):
            if self.overwrite:
                self._new.unlink(missing_ok=True)
            yield
            self._merge()
            self._new.unlink(missing_ok=True)

    def write(self, image: Path, names: dict[str, float], captions: Captions) -> str:
        """Implement Output."""
        row = {"file_name": self._name(image), "text": captions.join(names), "tags": rounded(names)}
        jsonl.append(self._new, row)
        return ""

    def finish(self) -> None:
        """Implement Output: complete a run that was killed after its last image."""
        if self._new.exists():
            with self.opened():
                pass

    def _merge(self) -> None:
        """Add the new rows to the current table, which somebody may have edited during the run."""
        new = {row[COLUMNS[0]]: row for row in jsonl.read(self._new)}
        if not new:
            return
        rows = self._read()
        names = [_escaped(name) for name in rows.names()]
        for position, name in enumerate(names):
            if self.overwrite and name in new:
                rows.update(position, new[name])
        for name in filterfalse(set(names).__contains__, new):
            rows.append(new[name])
        files.remove_partials(self.path.parent, files.ABANDONED)
        files.write_text(self.path, str(rows))

    def _name(self, image: Path) -> str:
        return _escaped(relative_name(image, self.path.parent))

    def _read(self) -> Rows:
        try:
            text = self.path.read_bytes().decode() if self.path.exists() else ""
            return CsvRows(text) if self.path.suffix == ".csv" else JsonRows(text)
        except UnicodeDecodeError:
            reason = "not UTF-8 text; save it as UTF-8"
        except (ValueError, csv.Error) as error:
            reason = str(error)
        raise ValueError(f"{self.path}: cannot be extended: {reason}; correct it, or move it to another folder")


def real_path(image: Path) -> Path:
    """Return an image's absolute path, without `..` and links to folders; a link to a file keeps its name."""
    return _real_folder(image.parent.absolute()) / image.name


@lru_cache
def _real_folder(folder: Path) -> Path:
    return folder.resolve()


def relative_name(image: Path, folder: Path) -> str:
    """Return an image's path relative to a folder, with forward slashes."""
    return Path(os.path.relpath(real_path(image), _real_folder(folder.absolute()))).as_posix()


def _escaped(name: str) -> str:
    r"""Return a file name as UTF-8 can hold it: with `\udc..` for undecodable bytes."""
    return name.encode("utf-8", "backslashreplace").decode()

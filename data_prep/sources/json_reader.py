"""Read untrusted JSON lines by byte range, as rows of a declared type; report each line that is not one."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

import msgspec

MAX_LINE = 4 << 20  # bytes, a hundred times the longest row of Danbooru's dumps
PART = 16 << 20  # bytes of a part

RowT = TypeVar("RowT", bound=msgspec.Struct)


class Part(NamedTuple):
    """The lines that begin in a byte range of a file."""

    path: Path
    start: int
    stop: int


class Line(NamedTuple, Generic[RowT]):
    """The line that begins at byte `offset`: a row, or None and the reason why it is not one."""

    offset: int
    row: RowT | None
    reason: str


def parts(path: Path, size: int = PART) -> list[Part]:
    """Divide a file into parts of `size` bytes; each line belongs to exactly one part.

    Raises ValueError for UTF-16, which Windows writes, since its lines cannot be told apart by bytes.
    """
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError(f"{path}: UTF-16 text; save it as UTF-8")
    length = path.stat().st_size
    return [Part(path, start, min(start + size, length)) for start in range(0, length, size)]


def read(part: Part, row: type[RowT]) -> Iterator[Line[RowT]]:
    """Yield the lines of a part; skip empty lines, and fields that `row` does not declare."""
    decoder = msgspec.json.Decoder(row, strict=False)  # integers are strings in Danbooru's dumps
    for offset, line in _lines(part):
        if offset == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE:
            yield Line(offset, None, f"line longer than {MAX_LINE} bytes")
        elif line.strip():
            try:
                yield Line(offset, decoder.decode(line), "")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield Line(offset, None, f"not a valid row: {error}")


def _lines(part: Part) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their offsets; a line that is too long is cut."""
    with part.path.open("rb") as file:
        if part.start:  # a line that crosses the start belongs to the part before
            file.seek(part.start - 1)
            _skip_line(file)
        while (offset := file.tell()) < part.stop and (line := file.readline(MAX_LINE + 1)):
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                _skip_line(file)
            yield offset, line


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(MAX_LINE)) and not piece.endswith(b"\n"):
        pass


def line_numbers(path: Path, offsets: list[int]) -> list[int]:
    """Return the numbers, starting at 1, of the lines that begin at ascending byte offsets."""
    numbers, number = [], 1
    with path.open("rb") as file:
        for offset in offsets:
            while (rest := offset - file.tell()) > 0:
                number += file.read(min(rest, PART)).count(b"\n")
            numbers.append(number)
    return numbers

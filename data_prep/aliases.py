"""Read tag aliases from a file: a mirror's, or one of your own."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from data_prep.sources import danbooru2021, json_reader
from data_prep.sources.posts import Unreadable
from data_prep.tags import resolve_aliases
from joytag.data.tag_names import canonical

COLUMNS = ("antecedent_name", "consequent_name")


def _read_json(path: Path) -> list[tuple[str, str]]:
    unreadable: list[Unreadable] = []
    pairs = danbooru2021.read_pairs(path, unreadable)
    if unreadable:
        (number,) = json_reader.line_numbers(path, [unreadable[0].offset])
        raise ValueError(f"{path}: line {number}: {unreadable[0].reason}; write one row a line, as mirrors do")
    return pairs


def _read_csv(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise ValueError(f"{path}: line 1: must name the columns {' and '.join(COLUMNS)}")
            pairs = [(row[COLUMNS[0]], row[COLUMNS[1]]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}: not valid CSV ({error})") from None
    for number, (old, new) in enumerate(pairs, start=1):
        if not old or not new:
            raise ValueError(f"{path}: row {number}: lacks one of the two names")
    return pairs


def _read_yaml(path: Path) -> list[tuple[str, str]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping; write one line `old: new` for each alias")
    for old, new in content.items():
        if not isinstance(old, str) or not isinstance(new, str) or not old or not new:
            raise ValueError(f"{path}: {old!r}: {new!r} are not two names; put quotes around them")
    return list(content.items())


READERS = {".json": _read_json, ".csv": _read_csv, ".yaml": _read_yaml, ".yml": _read_yaml}


def read_aliases(path: Path) -> dict[str, str]:
    """Map each aliased name to its final name, both canonical; chains, cycles and repetitions are resolved.

    The file is a mirror's `tag_aliases*.json`, of which active rows are read, a `.csv` with the columns of COLUMNS,
    or a `.yaml` of `old: new`. Raises ValueError with the file, the line or row, and the remedy.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: not a {', '.join(READERS)}; use a mirror's tag_aliases*.json, or lines `old: new` in YAML"
        )
    try:
        pairs = read(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    if not pairs:
        raise ValueError(f"{path}: holds no aliases")
    return resolve_aliases((canonical(old), canonical(new)) for old, new in pairs)

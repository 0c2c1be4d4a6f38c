"""Aliases from a file, a mirror's or one's own, to each name's final one."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import yaml

from data_prep.sources import json_reader
from data_prep.tags import resolve_aliases
from joytag.data.tag_names import danbooru_spelling

COLUMNS = ("antecedent_name", "consequent_name")


class _Alias(msgspec.Struct):
    antecedent_name: str = ""
    consequent_name: str = ""
    status: str = ""


def read_aliases(path: Path) -> dict[str, str]:
    """Each aliased name to its final name, in Danbooru's spelling; chains, cycles and repetitions are survived.

    The file is a mirror's `tag_aliases*.json`, of which the active rows count, a `.csv` with the columns of COLUMNS,
    or a `.yaml` of `old: new`. Raises ValueError with the file, the place and the remedy.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path}: not a {', '.join(readers)}; give a mirror's tag_aliases*.json, or `old: new` in YAML"
        )
    try:
        pairs = readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    if not pairs:
        raise ValueError(f"{path}: holds no aliases")
    return resolve_aliases((danbooru_spelling(old), danbooru_spelling(new)) for old, new in pairs)


def _read_json(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for part in json_reader.parts(path):
        for line in json_reader.read(part, _Alias):
            if line.row is None:
                (number,) = json_reader.line_numbers(path, [line.offset])
                raise ValueError(f"{path}: line {number}: {line.reason}; give one row a line, as mirrors have it")
            if line.row.status == "active" and line.row.antecedent_name and line.row.consequent_name:
                pairs.append((line.row.antecedent_name, line.row.consequent_name))
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
            raise ValueError(f"{path}: row {number}: lacks one of its two names")
    return pairs


def _read_yaml(path: Path) -> list[tuple[str, str]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not names by name; write a line `old: new` for each")
    for old, new in content.items():
        if not isinstance(old, str) or not isinstance(new, str) or not old or not new:
            raise ValueError(f"{path}: {old!r}: {new!r} are not two names; put quotes around them")
    return list(content.items())

"""Strict YAML into typed settings: `base:` inheritance, `key=value` overrides, errors that help."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

_PACKAGE = Path(__file__).parents[1]
SHIPPED = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent  # has configs/: installed, or a checkout


class SettingsError(ValueError):
    """A mistake in a configuration: one line that names the file, the key and the remedy."""


class Settings(BaseModel):
    """Base class of all settings: immutable, no type coercion, no unknown keys.

    The string below a field is its description, in the documentation and in the JSON schema.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SettingsT = TypeVar("SettingsT", bound=Settings)
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # a shell leaves `~` in `key=~/x` to the program


@dataclass(frozen=True)
class Choice:
    """Restrict a setting to the keys of a table: `name: Annotated[str, Choice(LOSSES)]`.

    The error for another value names the nearest key; the JSON schema lists the keys as an enum.
    """

    table: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"enum": list(self.table)}

    def _check(self, value: str) -> str:
        if value not in self.table:
            raise ValueError(f"{value!r} is unknown{_nearest(value, list(self.table))}")
        return value


@dataclass(frozen=True)
class MayChange:
    """Mark a setting that work in progress need not keep: `workers: Annotated[int, MayChange("when it resumes")]`.

    `flatten` leaves out the settings of a mark; the documentation shows it.
    """

    when: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"mayChange": self.when}


def flatten(settings: Settings, without: Collection[MayChange] = (), prefix: str = "") -> dict[str, Any]:
    """Return settings as JSON values by their keys with dots, except those that have one of some marks.

    As in `model_dump`, a value that the field's `exclude_if` excludes is left out, too: the default of a setting that
    is younger than work in progress, which then goes on.
    """
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        key, value = f"{prefix}{name}", getattr(settings, name)
        if any(mark in field.metadata for mark in without) or (field.exclude_if and field.exclude_if(value)):
            continue
        items = {f"{key}.": value} if not isinstance(value, list) else {f"{key}.{i}.": v for i, v in enumerate(value)}
        if items and all(isinstance(item, Settings) for item in items.values()):
            for start, item in items.items():
                values |= flatten(item, without, start)
        else:
            values[key] = list(value) if isinstance(value, tuple) else value
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads 1e-6 as a number and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise SettingsError(f"line {key_node.start_mark.line + 1}: {key}: cannot be a key")
            if key in seen:
                raise SettingsError(f"line {key_node.start_mark.line + 1}: {key}: given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def find(name: str | Path, folder: str = "") -> Path:
    """Return a configuration file: `name` as given, or in configs/FOLDER, with or without `.yaml`.

    Looks in the working directory first, then at the configs that are installed with this package. Raises
    SettingsError naming the nearest file when there is none.
    """
    directory = Path("configs", folder)
    for root in (Path(), SHIPPED):
        for candidate in (root / name, root / directory / name, root / directory / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    pattern = f"*{Path(name).suffix or '.yaml'}"
    paths = {path.relative_to(top) for top in (directory, SHIPPED / directory) for path in top.rglob(pattern)}
    known = sorted(path.as_posix() for path in paths)
    raise SettingsError(f"{name}: no such file, nor in {directory.as_posix()}/{_nearest(str(name), known)}")


def load(schema: type[SettingsT], path: Path, overrides: Sequence[str] = ()) -> SettingsT:
    """Read a YAML file, its chain of `base:` files and `key=value` overrides into `schema`.

    A `base:` path is relative to the file that names it; mappings merge key by key, all else is
    replaced. In a schema with a setting `base`, it is that. Raises SettingsError with the file, the full key and the
    nearest valid one.
    """
    values = read_mapping(path) if "base" in schema.model_fields else read(path)
    for override in overrides:
        _override(values, override)
    return validate(schema, values, str(path))


def validate(schema: type[SettingsT], values: dict[str, Any], origin: str) -> SettingsT:
    """Return `values` as `schema`. Raises SettingsError with their origin, the full key and the nearest valid one."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise SettingsError(" ".join(f"{origin}: {_explain(error, schema)}".split())) from None


def read(path: Path, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in a YAML file with its `base:` files merged in, not validated."""
    if path.resolve() in _above:
        raise SettingsError(f"{path}: base: the files include each other")
    values = read_mapping(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise SettingsError(f"{path}: base: no such file: {base}")
    return _merge(read(path.parent / base, (*_above, path.resolve())), values)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises SettingsError."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold `key: value` lines, not a {type(values).__name__}")
    return values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"{override}: write an override as section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        raise SettingsError(f"{key}: {text!r} is not a YAML value") from None
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):
        value = text.strip()  # what looks like a comment belongs to it: output=runs/try #2
    *parents, last = key.split(".")
    target: Any = values
    for depth, part in enumerate(parents):
        if isinstance(target, list):
            target = target[_index(target, part, key)]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        if not isinstance(target, dict | list):
            raise SettingsError(f"{key}: {'.'.join(parents[: depth + 1])} is a single value, it has no {last!r}")
    target[_index(target, last, key) if isinstance(target, list) else last] = value


def _index(items: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        remedy = f"use 0 to {len(items) - 1}" if items else "give the whole list"
        raise SettingsError(f"{key}: {part!r} is not an index into a list of {len(items)}; {remedy}")
    return int(part)


def _explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """Return the first problem as one line. An unknown key goes first: it may be a misspelt required one."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, name = problem["loc"]
        prefix = "".join(f"{part}." for part in parents)
        return f"{key}: unknown key{_nearest(str(name), _keys(schema, parents), prefix)}"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        begins_with_key = reason.partition(":")[0] in _keys(schema, problem["loc"])
        separator = "." if begins_with_key else ": "
        return f"{key}{separator}{reason}" if key else reason
    value = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}{value}"


def _keys(schema: Any, parents: Sequence[int | str]) -> list[str]:
    """Return the valid keys of the section at `parents`."""
    section = [schema]
    for part in parents:
        if isinstance(part, str):
            fields = [s.model_fields[part].annotation for s in section if part in s.model_fields]
            section = [model for field in fields for model in _models(field)]
    return [name for model in section for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes inside an annotation such as `list[Stage] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)]


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; known: {', '.join(known)}" if known else ""

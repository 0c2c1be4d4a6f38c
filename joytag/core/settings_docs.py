"""Documentation of a settings class: a Markdown reference for readers, a JSON schema for editors."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from joytag.core.settings import Settings

WIDTH = 110
NAMES = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}  # of JSON types


def json_schema(schema: type[Settings]) -> dict[str, Any]:
    """Return the JSON schema of a configuration file.

    A file may leave out keys that its `base:` provides, so they are not required. Only the items of lists, which
    replace those of the base, have required keys.
    """
    document = schema.model_json_schema()
    sections = [document, *document.get("$defs", {}).values()]
    in_lists = {
        _definition(document, value["items"])["title"]
        for section in sections
        for value in section["properties"].values()
        if "$ref" in value.get("items", {})
    }
    for section in sections:
        if section["title"] not in in_lists:
            section.pop("required", None)
        for value in section["properties"].values():
            value.pop("title", None)  # repeats the key
            value.pop("mayChange", None)  # means nothing to editors
    base = {"type": "string", "description": "A file, relative to this one, whose values this one changes."}
    document["properties"] = {"base": base, **document["properties"]}
    _accept_underscores(document)
    return document


def _accept_underscores(schema: Any) -> None:
    """Accept numbers such as 220_000_000: PyYAML reads them as integers, but editors as text, following YAML 1.2."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            schema |= {"type": ["integer", "string"], "pattern": r"^\d[\d_]*$"}
        for value in schema.values():
            _accept_underscores(value)
    elif isinstance(schema, list):
        for value in schema:
            _accept_underscores(value)


def markdown(schema: type[Settings]) -> str:
    """Return a Markdown list of all keys with type, default and description, with a section for each nested class."""
    document = schema.model_json_schema()
    title, _, rest = document["description"].partition("\n")
    origin = f"Generated from the fields of `{schema.__module__}.{schema.__qualname__}`."
    keys = "A key with dots is nested in a file and written with dots in an override: `section.key=value`."
    introduction = _wrap(f"{rest} {origin} {keys}")
    return "\n\n".join([f"# {title.removesuffix('.')}", introduction, *_sections(document, document, "")]) + "\n"


def _sections(document: dict[str, Any], section: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the list of a section's own keys, then the sections below it, each with heading and description."""
    nested = {}
    items = []
    for name, value in section["properties"].items():
        if "$ref" in value:
            nested[f"{prefix}{name}"] = value, value
        elif "$ref" in value.get("items", {}):
            nested[f"{prefix}{name}.N"] = value, value["items"]
        elif "$ref" in value.get("anyOf", [{}])[0]:  # or null
            nested[f"{prefix}{name}"] = value, value["anyOf"][0]
        else:
            items.append(_item(f"{prefix}{name}", value, name in section.get("required", ())))
    if items:
        yield "\n".join(items)
    for key, (value, reference) in nested.items():
        definition = _definition(document, reference)
        text = f"{definition['description']}{_may_change(value)}"
        if key.endswith(".N"):
            text = f"{value.get('description', '')} {text} A list: `N` is 0 for the first item."
        elif reference is not value:
            text = f"{text} {value['description']}"
        yield f"## {key.removesuffix('.N')}"
        yield _wrap(text)
        yield from _sections(document, definition, f"{key}.")


def _item(key: str, value: dict[str, Any], required: bool) -> str:
    default = "required" if required else f"default `{_literal(value['default'])}`"
    description = f": {value['description']}" if "description" in value else ""
    return _wrap(f"- `{key}` ({_type(value)}; {default}){description}{_may_change(value)}", "  ")


def _may_change(value: dict[str, Any]) -> str:
    return f" May change {value['mayChange']}." if "mayChange" in value else ""


def _type(value: dict[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "anyOf" in value:
        return " or ".join(_type(option) for option in value["anyOf"])
    if "enum" in value:
        *others, last = (f"`{_literal(option)}`" for option in value["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if "const" in value:
        return f"`{_literal(value['const'])}`"
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {_type(value['prefixItems'][0])} each"
    if value["type"] == "array":
        return f"list of {_type(value['items'])}"
    if "pattern" in value:
        return f"text matching `{value['pattern']}`"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {_literal(value[name])}" for name, words in bounds.items() if name in value]
    return " ".join([NAMES.get(value["type"], value["type"]), " and ".join(limits)]).strip()


def _literal(value: Any) -> str:
    """Write a value as a configuration file has it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}"
    return value if isinstance(value, str) else json.dumps(value)


def _definition(document: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    definition: dict[str, Any] = document["$defs"][reference["$ref"].rpartition("/")[2]]
    return definition


def _wrap(text: str, indent: str = "") -> str:
    words = " ".join(text.split())
    return textwrap.fill(words, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

"""The page that describes the API, written from its OpenAPI schema: FastAPI's own load scripts from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any


def page(schema: dict[str, Any]) -> str:
    """Return the page, HTML without a script, for an OpenAPI schema."""
    info, body = schema["info"], "".join(_operations(schema))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/app.css">
<title>{escape(info["title"])} API</title>
<main class="reference">
<h1>{escape(info["title"])} API {escape(info["version"])}</h1>
<p>{escape(info.get("summary", ""))} As a schema for programs: <a href="/api/openapi.json">openapi.json</a>.</p>
{body}</main>
"""


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>\n"
            yield "".join(f"<p>{escape(text)}</p>\n" for text in operation.get("description", "").split("\n\n"))
            rows = [(p["name"], p["schema"], p.get("description", "")) for p in operation.get("parameters", ())]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                rows += _fields(schema, content["schema"])
            yield _table("Takes", schema, rows)
            for status, answer in operation["responses"].items():
                yield f"<h3>{escape(status)}</h3>\n<p>{escape(answer.get('description', ''))}</p>\n"
                for content in answer.get("content", {}).values() if status == "200" else ():
                    yield _table("Returns", schema, _fields(schema, content["schema"]))
            yield "</section>\n"


def _fields(schema: dict[str, Any], kind: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """Return the name, the type and the description of each field of an object, or of the objects in a list.

    Fields of an object within the object follow it, as `files.name`.
    """
    resolved = _resolve(schema, kind)
    if resolved.get("type") == "array":
        return _fields(schema, resolved["items"])
    rows = []
    for name, field in resolved.get("properties", {}).items():
        rows.append((name, field, field.get("description", "")))
        for one in field.get("anyOf", [field]):
            rows += [(f"{name}.{inner}", kind, text) for inner, kind, text in _fields(schema, one)]
    return rows


def _table(title: str, schema: dict[str, Any], rows: Iterable[tuple[str, dict[str, Any], str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(schema, kind))}<td>{escape(text)}\n"
        for name, kind, text in rows
    )
    return f"<table><caption>{title}</caption>\n<tr><th>field<th>type<th>meaning\n{cells}</table>\n" if cells else ""


def _type(schema: dict[str, Any], kind: dict[str, Any]) -> str:
    """Return a type in words, such as `list of number` or `integer or null`."""
    if "anyOf" in kind:
        return " or ".join(_type(schema, one) for one in kind["anyOf"])
    resolved = _resolve(schema, kind)
    if resolved.get("type") == "array":
        return f"list of {_type(schema, resolved['items'])}"
    is_file = "contentMediaType" in resolved or resolved.get("format") == "binary"
    return "file" if is_file else str(resolved.get("type", "any"))


def _resolve(schema: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    reference = kind.get("$ref")
    return schema["components"]["schemas"][reference.rpartition("/")[2]] if reference else kind

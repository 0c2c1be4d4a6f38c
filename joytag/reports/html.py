"""Shared HTML rendering: templates with number formats, and the long sortable table."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pyarrow as pa
from markupsafe import Markup, escape

from joytag.reports.formats import (
    UNDEFINED,
    break_words,
    breakable,
    format_count,
    format_difference,
    format_number,
    format_percent,
    format_threshold,
)

TEMPLATES = Path(__file__).parent / "templates"
FILTERS: dict[str, Callable[..., str]] = {
    "breakable": breakable,
    "count": format_count,
    "difference": format_difference,
    "number": format_number,
    "percent": format_percent,
    "threshold": format_threshold,
}


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a page from a template; all values are escaped unless they are Markup.

    Pages extend base.html. Its content security policy forbids every request and every script but script.js.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: _mark_undefined(format_value) for name, format_value in FILTERS.items()}
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(**values, script=Markup(script), script_hash=digest)


def _mark_undefined(format_value: Callable[..., str]) -> Callable[..., str]:
    """Wrap a format so that "undefined" looks different from numbers on the page."""

    def wrapped(*arguments: Any) -> str:
        text = format_value(*arguments)
        return Markup('<span class="none">undefined</span>') if text == UNDEFINED else text

    return wrapped


class TableColumn(NamedTuple):
    """A column of a sortable table: header, values and, unless their type decides, how to format one of them."""

    title: str
    values: pa.ChunkedArray
    format_value: Callable[[Any], str] | None = None


def sortable_table(columns: Iterable[TableColumn]) -> Markup:
    """Return a table that script.js sorts and searches: text is escaped, integers get commas, floats 3 decimals."""
    heads, cells = [], []
    for title, values, format_value in columns:
        is_text = pa.types.is_string(values.type)
        heads.append(f'<th scope="col"{" data-text" if is_text else ""}>{escape(title)}</th>')
        by_type = break_words if is_text else format_count if pa.types.is_integer(values.type) else format_number
        texts = map(format_value or by_type, values.to_pylist())
        undefined = None if is_text else UNDEFINED
        # HTML may leave out the closing tags of cells and rows. With them the table would be half as large again.
        cells.append([f"<td class=none>{text}" if text == undefined else f"<td>{text}" for text in texts])
    rows = "\n".join("<tr>" + "".join(row) for row in zip(*cells, strict=True))
    return Markup(
        f'<table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>'
    )

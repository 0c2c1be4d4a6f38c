"""report.html: an analysis as one page that loads nothing, for a screen of any width, in the dark and on paper."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

UNDEFINED = "undefined"


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from a template, in which whatever comes from elsewhere is escaped; HTML.

    Pages extend base.html, whose policy forbids every request and every script but script.js.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for write in (figure, count, threshold, signed, percent):
        environment.filters[write.__name__] = _styled(write)
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(**values, script=Markup(script), script_hash=digest)


def _styled(write: Callable[..., str]) -> Callable[..., str]:
    """The same in HTML: the word for what is undefined looks different from figures."""

    def styled(*arguments: Any) -> str:
        text = write(*arguments)
        return Markup('<span class="none">undefined</span>') if text == UNDEFINED else text

    return styled


def _is_undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)


def figure(value: float | None, digits: int = 3) -> str:
    """A figure, or the word."""
    return UNDEFINED if _is_undefined(value) else f"{value:.{digits}f}".replace("-", "−")


def count(value: int | None) -> str:
    """A number with commas, or the word."""
    return UNDEFINED if _is_undefined(value) else f"{value:,.0f}"


def threshold(value: float | None) -> str:
    """A threshold: 0.4, 0.415; or the word."""
    return UNDEFINED if _is_undefined(value) else f"{value:.3f}".rstrip("0").rstrip(".")


def signed(value: float | None) -> str:
    """A difference: +0.021; or the word."""
    return UNDEFINED if _is_undefined(value) else f"{value:+.3f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share: 31 %; or the word."""
    return UNDEFINED if _is_undefined(value) else f"{value:.0%}".replace("%", " %")

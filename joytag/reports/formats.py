"""Numbers and facts as text, the same on pages and in terminal tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

UNDEFINED = "undefined"
MOST_NAMES = 12  # of a list that is written out


def _is_undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals: 0.631; "undefined" for NaN and None."""
    return UNDEFINED if _is_undefined(value) else f"{value:.{digits}f}".replace("-", "−")


def format_difference(value: float | None) -> str:
    """Format a difference with its sign: +0.021; "undefined" for NaN and None."""
    return UNDEFINED if _is_undefined(value) else f"{value:+.3f}".replace("-", "−")


def format_count(value: int | None) -> str:
    """Format a count with commas: 5,813; "undefined" for None."""
    return UNDEFINED if _is_undefined(value) else f"{value:,.0f}"


def format_threshold(value: float | None) -> str:
    """Format a threshold in as few characters as possible: 0.4, 0.415; "undefined" for NaN and None."""
    return UNDEFINED if _is_undefined(value) else f"{value:.3f}".rstrip("0").rstrip(".")


def format_percent(value: float | None) -> str:
    """Format a share from 0 to 1 as percent: 31 %; "undefined" for NaN and None."""
    return UNDEFINED if _is_undefined(value) else f"{value:.0%}".replace("%", " %")


def breakable(name: str) -> Markup:
    """Escape a name for HTML, so that it runs in its own direction and breaks after `_` and `/`, not within words."""
    return Markup(f"<bdi>{break_words(name)}</bdi>")


def break_words(name: str) -> Markup:
    """Escape a name for HTML and allow breaks after `_` and `/`."""
    return Markup(re.sub(r"([_/]+)(?!$)", r"\1<wbr>", str(escape(name))))


def format_facts(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and text of all facts, nested ones included; of long lists only the length."""
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from format_facts(value, f"{name}: ")
        elif isinstance(value, list) and len(value) > MOST_NAMES:
            yield name, f"{len(value):,}"
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

"""Tag names: one spelling for comparison, and the reader of top_tags.txt."""

from __future__ import annotations

import re

DEFAULT_THRESHOLD = 0.4  # a tag is predicted above it; that of the released model


def canonical(tag: str) -> str:
    """One form for all spellings of a tag: `Blue Hair \\(dyed\\)` and `blue_hair_(dyed)` are the same."""
    return re.sub(r"[\s_]+", "_", re.sub(r"\\([()])", r"\1", tag).strip().lower())


def is_kaomoji(tag: str) -> bool:
    """Whether a tag draws a face, such as `^_^` or `(o)_(o)`, whose underscore is a mouth.

    Those are the tags of at most three characters, and those without two letters or digits side by side.
    """
    return len(tag) <= 3 or re.search(r"[^\W_]{2}", tag) is None

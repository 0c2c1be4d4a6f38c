"""Tag names: how they are spelled and compared, the list of a release, the default threshold."""

from __future__ import annotations

import re
from pathlib import Path

FILE = "top_tags.txt"  # of a release and of a dataset: one name a line, in the order of the model's outputs
MAX_BYTES = 16 * 2**20  # of that file; a larger one is something else
DEFAULT_THRESHOLD = 0.4  # a tag is predicted above it; that of the released model


class TagListError(ValueError):
    """A list of tag names that cannot be used; one line with the file and the reason."""


def danbooru_spelling(tag: str) -> str:
    r"""Return a tag in Danbooru's spelling: `Blue Hair \(dyed\)` becomes `blue_hair_(dyed)`."""
    return re.sub(r"\s+", "_", re.sub(r"\\([()])", r"\1", tag).strip().lower())


def canonical(tag: str) -> str:
    """Return the form in which spellings of a tag are compared: Danbooru's, with runs of underscores as one."""
    return re.sub("_+", "_", danbooru_spelling(tag))


def is_kaomoji(tag: str) -> bool:
    """Whether a tag draws a face, such as `^_^` or `(o)_(o)`, whose underscore is a mouth.

    Those are the tags of at most three characters, and those without two adjacent letters or digits.
    """
    return len(tag) <= 3 or re.search(r"[^\W_]{2}", tag) is None


def read(path: Path) -> list[str]:
    """Return the names in a `top_tags.txt`, without white space around them and without empty lines.

    Raises TagListError when the file is missing, too large or not UTF-8, or when a name occurs twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TagListError(f"{path}: larger than {MAX_BYTES // 2**20} MB; it is not a list of tags")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise TagListError(f"{path}: missing") from None
    except UnicodeDecodeError:
        raise TagListError(f"{path}: not UTF-8 text; copy the file again") from None
    except OSError as error:
        raise TagListError(f"{path}: cannot be read ({error.strerror})") from None
    names = [name for line in lines if (name := line.strip())]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TagListError(f"{path}: {name}: given twice")
        seen.add(name)
    return names

"""Tag names: how they are spelled and compared, the list of a release, the default threshold."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

FILE = "top_tags.txt"  # of a release and of a dataset: one name a line, in the order of the model's outputs
MAX_BYTES = 16 * 2**20  # of that file; a larger one is something else
NEGATIVE = "-"  # in files of tags, before the name of one that the image does not have
DEFAULT_THRESHOLD = 0.4  # a tag is predicted above it; that of the released model


class TagListError(ValueError):
    """A list of tag names that cannot be used; one line with the file and the reason."""


# Characters that change no word: soft hyphen, zero-width space, word joiner, byte order mark, and marks of writing
# direction. The joiners U+200C and U+200D have a meaning between characters: in emoji, in Persian, in Hindi.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_ENDS = "\u200c\u200d" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())


def canonical(tag: str) -> str:
    r"""Return the form in which tags are stored and compared, Danbooru's: `Blue  Hair \(dyed\)` is `blue_hair_(dyed)`.

    Letters become lower-case and composed (Unicode NFC), invisible characters are removed, `\(` and `\)` become
    parentheses, and a run of white space and underscores becomes one underscore. Applying it twice changes nothing.
    """
    text = _INVISIBLE.sub("", tag).strip(_ENDS)
    text = unicodedata.normalize("NFC", re.sub(r"(?<!\\)\\+([()])", r"\1", text).lower())
    return re.sub(r"[\s_]+", "_", text)


def matcher(names: Iterable[str], tags: Iterable[str] = ()) -> Callable[[str], int | None]:
    """Return a function that maps a tag to the position of the first of the `names` that means it, else to None.

    Names may have any spelling. A name with `*`, such as `*_request`, is a pattern, unless it is itself one of the
    `tags`, such as `*_*`. Names that are no patterns take precedence.
    """
    known = {canonical(tag) for tag in tags if "*" in tag}
    exact: dict[str, int] = {}
    patterns: list[tuple[re.Pattern[str], int]] = []
    for position, name in enumerate(map(canonical, names)):
        if "*" in name and name not in known:
            patterns.append((_pattern(name), position))
        else:
            exact.setdefault(name, position)

    def find(tag: str) -> int | None:
        name = canonical(tag)
        if name in exact:
            return exact[name]
        return next((position for pattern, position in patterns if pattern.fullmatch(name)), None)

    return find


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", name))))


def describe_unknown(names: Iterable[str], tags: Iterable[str], limit: int = 5) -> str:
    """Return the names that mean none of the `tags`, each with the nearest tag, in one line; empty if all are known.

    At most `limit` names are listed, and the number of the others.
    """
    known = {canonical(tag): tag for tag in tags}
    unknown = [
        name
        for name in map(str.strip, names)
        if (written := canonical(name)) not in known
        and not ("*" in written and any(map(_pattern(written).fullmatch, known)))
    ]
    described = []
    for name in unknown[:limit]:
        close = difflib.get_close_matches(canonical(name), filter(str.isprintable, known), n=1)
        described.append(f"{name} (did you mean {known[close[0]]}?)" if close else name)
    more = [f"{len(unknown) - limit:,} more"] if len(unknown) > limit else []
    return ", ".join(described + more)


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

"""Encodings of text files that people and other programs write."""

from __future__ import annotations

import codecs
import re

# What Windows-1252 text consists of. Other characters, and words without an ASCII letter, show another encoding.
_WESTERN = re.compile(r"[\t\n\r -~ªºÀ-ÖØ-öø-ÿŠšŽžŒœŸ‘’“”–—…°´«»¡¿·™®©½²³€£§×\xa0]*")
_FOREIGN_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_a-zA-Z]{2,}(?![^\W\d_])|[^\W\d_a-zA-Z]{3}")


def decode(data: bytes) -> tuple[str, str]:
    """Return a text and its encoding: UTF-8 or UTF-16, with or without a byte order mark, or Windows-1252.

    Raises ValueError when it is none of these.
    """
    # ASCII letters, spaces and commas in UTF-16 have a zero on one side.
    zeros = data[::2].count(0), data[1::2].count(0)
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16"), "UTF-16"
        if len(data) % 2 == 0 and min(zeros) == 0 and max(zeros) >= max(2, len(data) / 5):
            return data.decode("utf-16-be" if zeros[0] else "utf-16-le"), "UTF-16"
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        is_broken = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = "\0" if is_broken else data.decode("cp1252", "replace")
    if not _WESTERN.fullmatch(text) or _FOREIGN_WORD.search(text):
        raise ValueError("not UTF-8, UTF-16 or Windows-1252 text; save it as UTF-8")
    return text, "Windows-1252"

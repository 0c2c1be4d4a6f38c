"""Styles of sidecars: how the files of a folder separate tags, weights, and sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

from joytag.core.terminal import plural
from joytag.data.tag_names import NEGATIVE, canonical, is_kaomoji

AUTO = "auto"  # the setting `separator` of a source
Shape = Literal["comma", "semicolon", "bar", "newline", "space", "phrase", "sentences", "word", "empty"]

# `;d` and `;_;` are faces: a semicolon that ends a tag is not at its start or after its underscore.
_SEMICOLON = r"；|(?<=[^\s;_]);"
_SPLIT = {
    "comma": r"[,，、\r\n]",
    "semicolon": rf"{_SEMICOLON}|;(?=\s)|[\r\n]",
    "bar": r"\s\|\s|[\r\n]",
    "newline": r"[\r\n]",
    "space": r"\s",
}
_JOIN = {"comma": ", ", "semicolon": "; ", "bar": " | ", "newline": "\n", "space": " "}
# The characters that end a tag, beside which brackets around it may be those of a weight.
_EDGES = {"comma": ",，、\r\n", "semicolon": ";；\r\n", "bar": "|\r\n", "newline": "\r\n", "space": " \t\r\n"}
_NAMES: dict[Shape, str] = {
    "comma": "tags separated by commas",
    "semicolon": "tags separated by semicolons",
    "bar": "tags separated by vertical bars",
    "newline": "one tag a line",
    "space": "tags separated by spaces",
    "phrase": "one tag of several words",
    "word": "one tag of one word",
    "sentences": "sentences instead of tags",
    "empty": "nothing",
}
MAX_DEPTH = 20  # of brackets around a tag
_MOSTLY = 0.8  # fraction of a folder's files that decides for the others

_CLEAR_COMMA = re.compile(r"[，、]|,\s|\s,")  # a comma inside a tag of Danbooru has no space beside it
_ARTICLES = {"a", "an", "the", "is", "are", "was", "were", "this", "there", "his", "her", "their"}
_FULL_STOP = re.compile(r"[^\W_]{2}\.(\s|$)|。")

_BRACKET = re.compile(r"(?<!\\)[()\[\]{}]")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_WORD = re.compile(r"[^\W_]{2}")
_WEIGHT = re.compile(r"(?<=[^\s(\[{]):\s*\d*\.?\d+\s*$")


class Style(NamedTuple):
    """How the sidecars of a folder separate tags.

    `separator` is a name of `_SPLIT` or the text between tags; if it is None, each file shows its own. `splits_phrases`
    means that words with nothing but spaces between them are several tags. `sentences` means that the folder holds
    captions instead of tags.
    """

    separator: str | None
    splits_phrases: bool = False
    sentences: bool = False

    def tags(self, text: str) -> list[str] | None:
        """Return the tags of a text, as they are written but without weights, or None if it holds sentences."""
        separator = self.separator
        if separator is None:
            shape = shape_of(text)
            if self.sentences or shape == "sentences":
                return None
            if shape == "phrase" and self.splits_phrases:
                shape = "space"
            separator = shape if shape in _SPLIT else "comma"
        text = _without_weights(text, _EDGES.get(separator, (separator.strip() or separator) + "\r\n"))
        return re.split(_SPLIT.get(separator) or rf"{re.escape(separator)}|[\r\n]", text)


def shape_of(text: str) -> Shape:
    """Return how a text seems to separate tags, judged by itself.

    A phrase is words with nothing but spaces between them and without underscores: one tag or several.
    """
    lines = [line for line in re.split(r"[\r\n]+", text.strip(" \t\r\n,，、")) if line.strip()]
    words = re.findall(r"[^\s,，、;；]+", text)
    if not lines:
        return "empty"
    if _is_prose(text, words):
        return "sentences"
    is_spaced = [any(map(_has_underscore, re.split(r"[\s,]", line))) for line in lines if len(line.split()) > 1]
    is_spaced_list = bool(is_spaced) and 2 * sum(is_spaced) >= len(is_spaced)
    if any(_CLEAR_COMMA.search(line.rstrip(" ,，、")) for line in lines):
        return "comma"
    if any("," in line.rstrip(" ,") for line in lines) and not is_spaced_list:
        return "comma"
    if len(lines) > 1 and all(line.rstrip().endswith((",", "，", "、")) for line in lines[:-1]):
        return "comma"
    if any(re.search(_SEMICOLON, line) for line in lines):
        return "semicolon"
    if any(" | " in line for line in lines):
        return "bar"
    if is_spaced_list:
        return "space"
    if len(lines) > 1:
        return "newline"
    return "phrase" if is_spaced else "word"


def edit(text: str, answers: Mapping[str, bool], negatives: bool = False) -> tuple[str, int]:
    """Return a text of tags with answers applied, and the number of tags that are added or removed.

    `answers` says of tags, in canonical spelling, whether the image has them. One that it has not is removed and, with
    `negatives`, written with a hyphen. Other tags stay as they are written. Raises ValueError for sentences, and for a
    tag that contains what separates tags in the text.
    """
    shape = shape_of(text)
    if shape == "sentences":
        raise ValueError("its text holds sentences instead of tags")
    shape = shape if shape in _SPLIT else "comma"
    written = [tag.strip() for tag in re.split(_SPLIT[shape], text) if tag.strip()]
    dropped = {NEGATIVE + tag if has else tag for tag, has in answers.items()}
    kept = [tag for tag in written if canonical(tag) not in dropped]
    there = set(map(canonical, kept))
    wanted = [tag if has else NEGATIVE + tag for tag, has in answers.items() if has or negatives]
    new = [tag for tag in wanted if tag not in there]
    for tag in new:
        if re.search(_SPLIT[shape], tag):
            raise ValueError(f"{tag} contains what separates tags there; write JSON lines instead")
    if any(" " in tag for tag in kept) and not any(map(_has_underscore, kept)):
        new = [tag if is_kaomoji(tag) else tag.replace("_", " ") for tag in new]
    if "\\(" in text:
        new = [re.sub(r"([()])", r"\\\1", tag) for tag in new]
    return _JOIN[shape].join([*kept, *new]) + "\n", len(new) + len(written) - len(kept)


def _has_underscore(word: str) -> bool:
    return "_" in word and not is_kaomoji(word)


def _is_prose(text: str, words: list[str]) -> bool:
    """Whether a text is a caption in sentences: long runs of words, with articles or full stops."""
    if 4 * sum(map(_has_underscore, words)) >= len(words):
        return False
    pieces = [piece.split() for piece in re.split(r"[,，、;；\r\n]|\s\|\s", text) if piece.strip()]
    has_articles = not _ARTICLES.isdisjoint(map(str.lower, words))
    has_full_stop = _FULL_STOP.search(text) is not None
    mean = len(words) / max(1, len(pieces))
    if has_articles and (mean >= 5 or (has_full_stop and mean >= 3)):
        return True
    longest = max(map(len, pieces), default=0)
    return has_full_stop and (longest >= 6 or re.search(r"[^\s,，、]{7}。", text) is not None)


def _without_weights(text: str, edges: str) -> str:
    """Remove the weights of prompts: `(tag:1.2)`, `((tag))`, `[tag]`, `(one, two:1.2)`.

    Only brackets around whole tags are removed, those that the `edges` of a tag or other brackets enclose. Those of
    faces such as `(o)_(o)` and `(9)` stay. A text with deeper brackets than MAX_DEPTH is no prompt and stays.
    """
    opened: list[int] = []
    removed: set[int] = set()
    for match in _BRACKET.finditer(text):
        position = match.end() - 1
        if text[position] in "([{":
            opened.append(position)
            if len(opened) > MAX_DEPTH:
                return text
        elif opened and text[opened[-1]] == _PAIRS[text[position]]:
            start = opened.pop()
            inside = text[start + 1 : position]
            weight = _WEIGHT.search(inside[-16:]) if text[position] == ")" else None
            before, after = text[max(0, start - 64) : start], text[position + 1 : position + 65]
            is_whole = _is_edge(before[::-1], "([{", edges) and _is_edge(after, ")]}", edges)
            if is_whole and (weight or _WORD.search(inside)):
                removed |= {start, *range(position - len(weight[0] if weight else ""), position + 1)}
    return "".join(character for position, character in enumerate(text) if position not in removed)


def _is_edge(beside: str, brackets: str, edges: str) -> bool:
    """Whether the text beside a bracket, nearest first, begins with an edge of a tag, other brackets aside."""
    beside = beside.lstrip("".join({*brackets, " ", "\t"} - set(edges)))
    return not beside or beside[0] in edges


@dataclass
class Evidence:
    """What the files of a folder look like: their number by shape and by encoding, and examples."""

    shapes: Counter[Shape] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)  # of each phrase
    sentences: str = ""

    def add(self, text: str, encoding: str) -> None:
        """Add a file."""
        shape = shape_of(text)
        self.shapes[shape] += 1
        self.encodings[encoding] += 1
        if shape == "phrase":
            self.words.append(len(text.split()))
        elif shape == "sentences":
            self.sentences = self.sentences or text.strip()[:60]

    def merge(self, other: Evidence) -> None:
        """Add the files of another folder."""
        self.shapes += other.shapes
        self.encodings += other.encodings
        self.words += other.words
        self.sentences = self.sentences or other.sentences

    def style(self) -> Style:
        """Return the style that most of the files have."""
        count = self.shapes
        if 2 * count["sentences"] > count.total() - count["empty"]:
            return Style(None, sentences=True)
        others = count["comma"] + count["semicolon"] + count["bar"] + count["newline"]
        for shape in ("newline", "semicolon"):  # a comma may be part of a tag here
            if count[shape] and count[shape] >= _MOSTLY * (others + count["space"]):
                return Style(shape)
        # Words without underscores: as the lines beside them, or, if all files have only words, tags if they are many.
        is_list = count["space"] > others
        if not others and not count["space"] and count["phrase"] > count["word"]:
            is_list = median(self.words) >= 4
        return Style(None, splits_phrases=is_list)

    def __str__(self) -> str:
        style = self.style()
        shapes: Counter[Shape] = Counter()
        for shape, count in self.shapes.items():
            shapes["space" if shape == "phrase" and style.splits_phrases else shape] += count
        found = [f"{_NAMES[shape]} in {count:,}" for shape, count in shapes.most_common()]
        if shapes["space"]:
            found.append(f"underscores and no commas in {self.shapes['space']:,}")
        found += [f"{name} in {count:,}" for name, count in self.encodings.items() if name != "UTF-8"]
        example = f" ({self.sentences!r})" if self.sentences else ""
        doubt = "; if that is wrong, set `separator` of the source" if self.shapes["phrase"] else ""
        return f"{self.shapes.total():,} {plural(self.shapes.total(), 'file')}: {', '.join(found)}{example}{doubt}"

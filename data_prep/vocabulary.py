"""From raw tags to final ones: apply the policy, merge the tags of copies, choose images and vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from data_prep.config import TagPolicy
from data_prep.negatives import NO_NEGATIVES, Negatives
from data_prep.tags import Chunk, Policy, Rows, odd_names
from joytag.core.terminal import plural, print
from joytag.data.tag_names import describe_unknown

THREADED = 4  # chunks in threads at a time, which bounds the memory


class Final(NamedTuple):
    """The final tags of images, and their names; `refused` counts the images that a tag was refused for, by name.

    It is refused where somebody has rejected it, or a tag that it implies.
    """

    chunks: list[Chunk]
    names: list[str]
    refused: dict[str, int]


def final_tags(raw: list[Chunk], names: list[str], keeper: np.ndarray, policy: Policy, negatives: Negatives) -> Final:
    """Apply a policy to raw tags without the rejected ones, and give the tags of copies to the image that is kept.

    `names` are those of the raw tags. `keeper` (int64 [all images]) is the row of the copy that is kept, -1 for
    unusable images. A tag that is refused implies nothing. Empties `raw`, to free memory.
    """
    mapping, final_names = policy.final(names)
    has_copies = np.bincount(keeper[keeper >= 0], minlength=len(keeper)) > 1
    rejected, meant = negatives.among(final_names), mapping.first()
    refused = [np.empty(0, dtype=np.int64)]

    def apply(chunk: Chunk) -> tuple[Chunk, Chunk]:
        """Return the final tags of images without copies, and the raw tags of copies, by the row that is kept."""
        kept, tags = keeper[chunk.rows], chunk.tags
        is_refused = rejected.contradict(Chunk(kept, tags), meant)
        if is_refused.any():
            refused.append(kept[tags.row_of_each()[is_refused]] << 32 | meant[tags.tags[is_refused]])
            tags = tags.without(is_refused)
        single = np.flatnonzero((kept >= 0) & ~has_copies[kept])
        copies = np.flatnonzero((kept >= 0) & has_copies[kept])
        final = tags.take(single).mapped(mapping).sets()
        return Chunk(chunk.rows[single], final), Chunk(kept[copies], tags.take(copies))

    applied: list[tuple[Chunk, Chunk]] = []
    with ThreadPoolExecutor() as pool:  # NumPy sorts without holding the interpreter lock
        while raw:
            applied += pool.map(apply, [raw.pop() for _ in raw[:THREADED]])
    rows, tags = _sorted([copies for _, copies in applied])
    kept, starts = np.unique(rows, return_index=True)
    merged = Rows(tags.offsets[[*starts, len(rows)]], tags.tags)
    chunks = [*(final for final, _ in applied), Chunk(kept, merged.mapped(mapping).sets())]
    uses = np.bincount(np.unique(np.concatenate(refused)) & 0xFFFFFFFF)  # once for each image
    return Final(
        chunks, final_names, _most_frequent_first({final_names[i]: int(uses[i]) for i in np.flatnonzero(uses)})
    )


class Labelled(NamedTuple):
    """The images of a dataset, and the tags that are learned.

    `rows` (int64, ascending) are those of the images in the image table; `tags` holds the tags of each, at least one,
    as numbers of the `vocabulary`, which is sorted. Only the images of `negatives` need no tag, since one that is
    rejected is a label, too. `unlabelled` (int64) are the rows of images with enough tags, but none of the vocabulary.
    `rare` and `one_sided` count the images of tags that are not learned, the most frequent
    first: tags used too little, and tags of which training and validation cannot both hold enough images.
    """

    rows: np.ndarray
    tags: Rows
    vocabulary: list[str]
    unlabelled: np.ndarray
    rare: dict[str, int]
    one_sided: dict[str, int]
    negatives: Negatives = NO_NEGATIVES

    def without(self, one_sided: np.ndarray) -> Labelled:
        """Drop tags, bool [tags], and the images that have no others."""
        uses = self.tags.uses(len(one_sided))
        dropped = {self.vocabulary[i]: int(uses[i]) for i in np.flatnonzero(one_sided)}
        number = np.cumsum(~one_sided) - 1
        mapping = Rows.of([[] if is_dropped else [number[i]] for i, is_dropped in enumerate(one_sided)])
        vocabulary = [name for name in self.vocabulary if name not in dropped]
        negatives = self.negatives.among(vocabulary)
        rows, tags, unlabelled = _split_unlabelled(self.rows, self.tags.mapped(mapping), negatives)
        return Labelled(
            rows,
            tags,
            vocabulary,
            np.concatenate([self.unlabelled, unlabelled]),
            self.rare,
            _most_frequent_first(self.one_sided | dropped),
            negatives,
        )

    def not_learned(self, min_count: int) -> list[str]:
        """Describe the tags that are not learned: a line on those below `min_count`, one on those of one side."""
        lines = []
        if self.rare:
            names = ", ".join(f"{name} ({count})" for name, count in islice(self.rare.items(), 5))
            others = f" and {len(self.rare) - 5:,} others" if len(self.rare) > 5 else ""
            lines.append(f"tags used fewer than {min_count} times (tags.min_count): {names}{others}")
        if self.one_sided:
            names = ", ".join(f"{name} ({count})" for name, count in self.one_sided.items())
            lines.append(f"tags with too few images for both training and validation (families stay together): {names}")
        return lines


def choose_tags(
    chunks: list[Chunk], names: list[str], policy: TagPolicy, keep: list[str], negatives: Negatives = NO_NEGATIVES
) -> Labelled:
    """Choose the images with enough tags, and the tags with enough of these images.

    Tags in `keep` belong to the vocabulary even if they are rare. Images of `negatives` need no tag, see Labelled.
    Empties `chunks`, to free memory.
    """
    uses = np.zeros(len(names), dtype=np.int64)
    for number, (rows, tags) in enumerate(chunks):
        has_enough = np.flatnonzero((tags.counts >= policy.min_tags) | np.isin(rows, negatives.rows))
        chunks[number] = Chunk(rows[has_enough], tags.take(has_enough))
        uses += chunks[number].tags.uses(len(names))
    vocabulary = sorted({names[i] for i in np.flatnonzero(uses >= policy.min_count)} | set(keep))
    index = {name: i for i, name in enumerate(vocabulary)}
    rare = {names[i]: int(uses[i]) for i in np.flatnonzero(uses) if names[i] not in index}
    mapping = Rows.of([[index[name]] if name in index else [] for name in names])
    chosen = []
    while chunks:
        rows, tags = chunks.pop()
        chosen.append(Chunk(rows, tags.mapped(mapping)))
    negatives = negatives.among(vocabulary)
    rows, tags, unlabelled = _split_unlabelled(*_sorted(chosen), negatives)
    return Labelled(rows, tags, vocabulary, unlabelled, _most_frequent_first(rare), {}, negatives)


def print_odd(raw: list[str]) -> None:
    """Print how many names cannot be tags, or may be sentences, and some of them."""
    for fault, names in odd_names(raw).items():
        if names:
            examples = ", ".join(repr(name if len(name) <= 100 else f"{name[:100]}...") for name in names[:3])
            print(f"{len(names):>9,} {plural(len(names), 'tag')}: {fault}, such as {examples}")


def print_unknown(blacklist: list[str], known: Iterable[str]) -> None:
    """Print which names of the blacklist mean no tag, with the nearest tags."""
    if unknown := describe_unknown(blacklist, known):
        print(f"{'':>9} on the blacklist, but no tag here: {unknown}")


def print_refused(refused: dict[str, int]) -> None:
    """Print how many tags were refused since they are rejected, too, and the most frequent of them."""
    if refused:
        names = ", ".join(f"{name} ({count})" for name, count in islice(refused.items(), 5))
        others = f" and {len(refused) - 5:,} others" if len(refused) > 5 else ""
        count = sum(refused.values())
        print(f"{count:>9,} {plural(count, 'label')}: both given and rejected, which counts: {names}{others}")


def _split_unlabelled(rows: np.ndarray, tags: Rows, negatives: Negatives) -> tuple[np.ndarray, Rows, np.ndarray]:
    """Return the rows with labels, their tags (without a copy, which would not fit into memory), and the other rows."""
    is_labelled = (tags.counts > 0) | np.isin(rows, negatives.rows)
    offsets = np.concatenate([tags.offsets[:1], tags.offsets[1:][is_labelled]])
    return rows[is_labelled], Rows(offsets, tags.tags), rows[~is_labelled]


def _most_frequent_first(uses: dict[str, int]) -> dict[str, int]:
    return dict(sorted(uses.items(), key=lambda item: (-item[1], item[0])))


def _sorted(chunks: list[Chunk]) -> Chunk:
    """Join chunks, sorted by row. The tags are moved chunk by chunk: an index of all of them would fill the memory."""
    rows = np.concatenate([np.empty(0, np.int64), *(chunk.rows for chunk in chunks)])
    counts = np.concatenate([np.empty(0, np.int64), *(chunk.tags.counts for chunk in chunks)])
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    starts = np.empty(len(rows), dtype=np.int64)
    starts[order] = offsets[:-1]
    joined, first = np.empty(offsets[-1], dtype=np.int32), 0
    for chunk_rows, tags in chunks:
        shift = starts[first : first + len(chunk_rows)] - tags.offsets[:-1]
        joined[np.arange(len(tags.tags)) + np.repeat(shift, tags.counts)] = tags.tags
        first += len(chunk_rows)
    return Chunk(rows[order], Rows(offsets, joined))

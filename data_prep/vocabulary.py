"""From raw tags to final ones: apply the policy, merge the tags of copies, choose images and vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_prep.config import TagPolicy
from data_prep.tags import Chunk, Policy, Rows, odd_names
from joytag.data.tag_names import describe_unknown

THREADED = 4  # chunks in threads at a time, which bounds the memory


def final_tags(raw: list[Chunk], names: list[str], keeper: np.ndarray, policy: Policy) -> tuple[list[Chunk], list[str]]:
    """Apply a policy to raw tags, and give the tags of copies to the image that is kept.

    `names` are those of the raw tags. `keeper` (int64 [all images]) is the row of the copy that is kept, -1 for
    unusable images. Returns the chunks and the names of their tags. Empties `raw`, to free memory.
    """
    mapping, final_names = policy.final(names)
    has_copies = np.bincount(keeper[keeper >= 0], minlength=len(keeper)) > 1

    def apply(chunk: Chunk) -> tuple[Chunk, Chunk]:
        """Return the final tags of images without copies, and the raw tags of copies, by the row that is kept."""
        kept = keeper[chunk.rows]
        single = np.flatnonzero((kept >= 0) & ~has_copies[kept])
        copies = np.flatnonzero((kept >= 0) & has_copies[kept])
        final = chunk.tags.take(single).mapped(mapping).sets()
        return Chunk(chunk.rows[single], final), Chunk(kept[copies], chunk.tags.take(copies))

    applied: list[tuple[Chunk, Chunk]] = []
    with ThreadPoolExecutor() as pool:  # NumPy sorts without holding the interpreter lock
        while raw:
            applied += pool.map(apply, [raw.pop() for _ in raw[:THREADED]])
    rows, tags = _sorted([copies for _, copies in applied])
    kept, starts = np.unique(rows, return_index=True)
    merged = Rows(tags.offsets[[*starts, len(rows)]], tags.tags)
    return [*(final for final, _ in applied), Chunk(kept, merged.mapped(mapping).sets())], final_names


def choose_tags(
    chunks: list[Chunk], names: list[str], policy: TagPolicy, keep: list[str]
) -> tuple[np.ndarray, Rows, list[str]]:
    """Choose the images with enough tags, and the tags with enough of these images.

    Returns the images' rows, ascending; their tags as numbers of the vocabulary; and the vocabulary, sorted. Tags in
    `keep` belong to it even if they are rare. Empties `chunks`, to free memory.
    """
    uses = np.zeros(len(names), dtype=np.int64)
    for number, (rows, tags) in enumerate(chunks):
        has_enough = np.flatnonzero(tags.counts >= policy.min_tags)
        chunks[number] = Chunk(rows[has_enough], tags.take(has_enough))
        uses += chunks[number].tags.uses(len(names))
    vocabulary = sorted({names[i] for i in np.flatnonzero(uses >= policy.min_count)} | set(keep))
    _print_rare(uses, names, set(vocabulary), policy.min_count)
    index = {name: i for i, name in enumerate(vocabulary)}
    mapping = Rows.of([[index[name]] if name in index else [] for name in names])
    chosen = []
    while chunks:
        rows, tags = chunks.pop()
        chosen.append(Chunk(rows, tags.mapped(mapping)))
    return *_sorted(chosen), vocabulary


def print_odd(raw: list[str]) -> None:
    """Print how many names cannot be tags, or may be sentences, and some of them."""
    for fault, names in odd_names(raw).items():
        if names:
            examples = ", ".join(repr(name if len(name) <= 100 else f"{name[:100]}...") for name in names[:3])
            print(f"{len(names):>9,} tags: {fault}, such as {examples}")


def print_unknown(blacklist: list[str], known: Iterable[str]) -> None:
    """Print which names of the blacklist mean no tag, with the nearest tags."""
    if unknown := describe_unknown(blacklist, known):
        print(f"{'':>9} on the blacklist, but no tag here: {unknown}")


def _print_rare(uses: np.ndarray, names: list[str], vocabulary: set[str], min_count: int) -> None:
    """Print how many tags are not learned, and which of them are the most frequent."""
    rare = sorted((-uses[i], names[i]) for i in np.flatnonzero(uses) if names[i] not in vocabulary)
    if rare:
        examples = ", ".join(f"{name} ({-count})" for count, name in rare[:5])
        print(f"{len(rare):>9,} tags: used less than {min_count} times, such as {examples}")


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

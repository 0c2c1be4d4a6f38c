"""Tags that somebody has rejected for an image, which outweigh the same tags given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.tags import Chunk, Policy, Rows


@dataclass(frozen=True)
class Negatives:
    """The rejected tags of those images that have some.

    `rows` (int64, ascending) are those of the images in the image table; `tags` holds the tags of each, at least one,
    sorted, as numbers of `names`.
    """

    rows: np.ndarray
    tags: Rows
    names: list[str]

    @classmethod
    def of(cls, raw: Sequence[Chunk], names: list[str], keeper: np.ndarray, policy: Policy) -> Negatives:
        """Apply a policy to raw rejected tags, and give those of copies to the image that is kept.

        `names` are those of the raw tags. `keeper` (int64 [all images]) is the row of the copy that is kept, -1 for
        unusable images.
        """
        rejected = policy.rejected(names)
        final_names = sorted({tag for tags in rejected for tag in tags})
        number = {name: i for i, name in enumerate(final_names)}
        mapping = Rows.of([[number[tag] for tag in tags] for tags in rejected])
        kept = keeper[np.concatenate([np.empty(0, np.int64), *(chunk.rows for chunk in raw)])]
        usable = np.flatnonzero(kept >= 0)
        by_row = usable[np.argsort(kept[usable], kind="stable")]
        tags = Rows.joined([chunk.tags for chunk in raw]).take(by_row)
        rows, starts = np.unique(kept[by_row], return_index=True)
        merged = Rows(tags.offsets[[*starts, len(by_row)]], tags.tags).mapped(mapping).sets()
        return cls(rows, merged, final_names)._without_empty()

    def __len__(self) -> int:
        return len(self.rows)

    def among(self, names: Sequence[str]) -> Negatives:
        """Return the rejections of some tags, as numbers of these `names`."""
        number = {name: i for i, name in enumerate(names)}
        mapping = Rows.of([[number[name]] if name in number else [] for name in self.names])
        return Negatives(self.rows, self.tags.mapped(mapping).sets(), [*names])._without_empty()

    def of_images(self, chosen: np.ndarray) -> Negatives:
        """Return the rejections of some images, bool [all images]."""
        kept = np.flatnonzero(chosen[self.rows])
        return Negatives(self.rows[kept], self.tags.take(kept), self.names)

    def of_rows(self, rows: np.ndarray) -> Rows:
        """Return the rejected tags of images, int64 [rows], in their order."""
        return Rows(np.append(self.tags.offsets, self.tags.offsets[-1]), self.tags.tags).take(self._positions(rows))

    def contradict(self, chunk: Chunk, final: np.ndarray) -> np.ndarray:
        """Return which tags of a chunk are rejected for their image, bool [tags].

        `final` (int64) is the number among `names` that each of the chunk's tags stands for, -1 for none.
        """
        if not len(self):
            return np.zeros(len(chunk.tags.tags), dtype=bool)
        image = np.repeat(self._positions(chunk.rows), chunk.tags.counts)
        keys = image << 32 | final[chunk.tags.tags] & 0xFFFFFFFF
        return np.isin(keys, self.tags.row_of_each() << 32 | self.tags.tags)

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        """Return the position of each image, int64 [rows], and after the last one for images without rejections."""
        position = np.searchsorted(self.rows, rows)
        is_known = np.append(self.rows, -1)[position] == rows
        return np.where(is_known, position, len(self))

    def _without_empty(self) -> Negatives:
        kept = np.flatnonzero(self.tags.counts)
        return Negatives(self.rows[kept], self.tags.take(kept), self.names)


NO_NEGATIVES = Negatives(np.empty(0, dtype=np.int64), Rows.of([]), [])

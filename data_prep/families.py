"""Families: images that ties join, directly or over other posts, and that stay on one side of the split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep import dedup
from data_prep.sources import posts

LOOK_ALIKES = "look_alikes"
TIES = (*posts.TIES, LOOK_ALIKES)


def read(files: Sequence[Path], ties: Collection[str]) -> np.ndarray:
    """Read what ties the posts of a source, refused ones too: int64 [1 + len(posts.TIES), tied posts], -1 for nothing.

    The rows are `post_id` and posts.TIES; those that `ties` lacks tie nothing. `files` are tables of `posts.SCHEMA`.
    """
    names = ("post_id", *posts.TIES)
    ignored = [row for row, name in enumerate(names) if row and name not in ties]
    parts = [np.empty((len(names), 0), dtype=np.int64)]
    for path in files:
        table = pq.read_table(path, columns=[*names])
        columns = np.stack([table[name].fill_null(-1).to_numpy() for name in names])
        columns[ignored] = -1
        parts.append(columns[:, (columns[1:] >= 0).any(axis=0)])
    return np.concatenate(parts, axis=1)


def join(
    sources: np.ndarray, post_ids: np.ndarray, alike: np.ndarray, keeper: np.ndarray, tied: Sequence[np.ndarray]
) -> np.ndarray:
    """Return each image's family, int64 [images]: the connected components of look-alikes, copies and tied posts.

    Images are sorted by `sources` and `post_ids`. `alike` (int64 [images]) numbers their groups of look-alikes from 0,
    `keeper` (int64 [images]) is the row of the copy that is kept or -1, and `tied` holds the result of `read` for each
    source. Families are numbered by the least of their `alike`, so without other ties they are these groups.
    """
    groups = nodes = int(alike.max(initial=-1)) + 1
    copies = np.flatnonzero((keeper >= 0) & (keeper != np.arange(len(keeper))))
    pairs = [np.stack([alike[copies], alike[keeper[copies]]])]
    of_works: list[tuple[np.ndarray, np.ndarray]] = []
    for source, (post_id, parent_id, pixiv_id, family) in enumerate(tied):
        rows = slice(*np.searchsorted(sources, [source, source + 1]))
        # Rows without an id are posts of their own, which can tie a parent and a work.
        post_id = np.where(post_id < 0, -1 - np.arange(len(post_id)), post_id)
        has_parent, has_family = parent_id >= 0, family >= 0
        wanted = np.concatenate([post_id, parent_id[has_parent]])
        node, nodes = _post_nodes(post_ids[rows], alike[rows], wanted, nodes)
        post, parent = np.split(node, [len(post_id)])
        pairs.append(np.stack([post[has_parent], parent]))
        names, number = np.unique(family[has_family], return_inverse=True)
        pairs.append(np.stack([post[has_family], nodes + number]))
        nodes += len(names)
        of_works.append((post[pixiv_id >= 0], pixiv_id[pixiv_id >= 0]))
    works, number = np.unique(np.concatenate([pixiv_id for _, pixiv_id in of_works]), return_inverse=True)
    pairs.append(np.stack([np.concatenate([post for post, _ in of_works]), nodes + number]))
    component = dedup.components(np.concatenate(pairs, axis=1), nodes + len(works))
    return component[:groups][alike]


def _post_nodes(ids: np.ndarray, node: np.ndarray, wanted: np.ndarray, nodes: int) -> tuple[np.ndarray, int]:
    """Return the nodes of some posts of a source, and the number of nodes so far.

    The images of the source have ascending `ids`, and their nodes in `node`; other posts get new nodes from `nodes` on.
    """
    position = np.searchsorted(ids, wanted)
    is_image = position < len(ids)
    is_image[is_image] = ids[position[is_image]] == wanted[is_image]
    found = np.empty(len(wanted), dtype=np.int64)
    found[is_image] = node[position[is_image]]
    others, number = np.unique(wanted[~is_image], return_inverse=True)
    found[~is_image] = nodes + number
    return found, nodes + len(others)


def with_relatives(sizes: np.ndarray, images: int) -> np.ndarray:
    """Return the chance that a validation image has a relative in training, float64 [families], for each family's.

    `sizes` (int64 [families]) are in images; of all of these, `images` are drawn at random for validation.
    """
    distinct, number = np.unique(sizes, return_inverse=True)
    others = np.arange(1, distinct.max(initial=1))
    # All others of the family are in validation, too: the factors are the chances of one after the other.
    all_held = np.cumprod(np.clip((images - others) / np.maximum(1, sizes.sum() - others), 0, 1))
    return 1 - np.concatenate([[1.0], all_held])[distinct - 1][number]

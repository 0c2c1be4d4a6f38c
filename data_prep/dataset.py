"""Write a dataset directory: splits, tags, rejected posts with reasons, and the description."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import yaml

from data_prep import families, inputs, rejected, scan
from data_prep.config import BuildSettings
from data_prep.image_table import ImageTable
from data_prep.negatives import Negatives
from data_prep.rejected import Ledger, Reason
from data_prep.split import RULES, giants
from data_prep.tags import Rows
from data_prep.vocabulary import Labelled
from joytag.core.files import write_text
from joytag.core.terminal import plural, print
from joytag.data import dataset, tag_names
from joytag.data.tables import write_table

ROW_GROUP = 1 << 16  # images
FILES = ("train.parquet", "validation.parquet", "tags.parquet", tag_names.FILE, rejected.FILE)
NAMED = 100  # tags that are not learned, named in the description
LIBRARIES = ("duckdb", "imagehash", "numpy", "pillow", "pyarrow", "scipy")


@dataclass(frozen=True)
class Content:
    """The images and tags of a dataset: `validation` (bool [labelled.rows]) marks held-out images.

    `categories` is by tag name. `family` (int64 [images]) is that of each image. `negatives` are numbers of the
    vocabulary; `refused` counts the images that each tag was refused for, see `vocabulary.Final`.
    """

    images: ImageTable
    labelled: Labelled
    validation: np.ndarray
    categories: dict[str, int]
    family: np.ndarray
    negatives: Negatives
    refused: dict[str, int]


class SourceCounts(TypedDict):
    """The posts of a source: all of them, those rejected for each reason, and those of each split."""

    posts: int
    rejected: dict[str, int]
    train: int
    validation: int


class FamilyCounts(TypedDict):
    """The families of a dataset, counted in its own images.

    `several` families have more than one image, together `images`; `largest` is the size of the largest. `too_large`
    of them always stay in training, with `training_images`; `giants` are the sizes of the largest of these, in order,
    by an image of theirs. `relatives` is the share of validation images, of each source, that would have a relative in
    training if they had been drawn one by one.
    """

    families: int
    several: int
    images: int
    largest: int
    too_large: int
    training_images: int
    giants: dict[str, int]
    relatives: dict[str, float]


def write(output: Path, content: Content, ledger: Ledger) -> None:
    """Write `tags.parquet`, `top_tags.txt`, `train.parquet` and `validation.parquet`."""
    vocabulary, n_tags = content.labelled.vocabulary, len(content.labelled.vocabulary)
    if n_tags > np.iinfo(np.int16).max:
        raise ValueError(f"tags.min_count: leaves {n_tags} tags, more than int16 can number; raise it")
    counts = _counts(content, len(ledger.sources))
    # The order of a release's top_tags.txt: most frequent in both splits together first, ties by name.
    (train, validation), total = counts.sum(axis=1), counts.sum(axis=(0, 1))
    order = sorted(range(n_tags), key=lambda i: (-total[i], vocabulary[i]))
    table = pa.table(
        {
            "index": list(range(n_tags)),
            "name": [vocabulary[i] for i in order],
            "category": [content.categories.get(vocabulary[i], 0) for i in order],
            "count": total[order],
            "count_train": train[order],
            "count_validation": validation[order],
            "count_by_source": counts.sum(axis=0).T[order].tolist(),
        }
    )
    write_table(table, dataset.TAGS_SCHEMA, output / "tags.parquet")
    write_text(output / tag_names.FILE, "\n".join(vocabulary[i] for i in order))
    index = np.empty(n_tags, dtype=np.int32)
    index[order] = np.arange(n_tags)
    paths = ledger.paths()
    for split, chosen in (("train", ~content.validation), ("validation", content.validation)):
        tables = _split_tables(content, np.flatnonzero(chosen), index, paths)
        schema = dataset.POSTS_SCHEMA.append(dataset.NEGATIVES).append(dataset.FAMILY).append(dataset.PATH)
        write_table(tables, schema, output / f"{split}.parquet")
        print(f"{chosen.sum():>9,} {plural(chosen.sum(), 'image')}: {split}")
    print(f"{n_tags:>9,} {plural(n_tags, 'tag')}")
    if lacking := dataset.TagTable.read(output / "tags.parquet").describe_lacking():
        print(f"{'':>9} {lacking}")


def _counts(content: Content, n_sources: int) -> np.ndarray:
    """Count the images of each tag: int64 [splits, sources, tags], training first."""
    n_tags = len(content.labelled.vocabulary)
    counts = np.zeros((2, n_sources, n_tags), dtype=np.int64)
    cells = content.validation * n_sources + content.images.source[content.labelled.rows].astype(np.int64)
    for start in range(0, len(cells), ROW_GROUP):
        group = np.arange(start, min(start + ROW_GROUP, len(cells)))
        tags = content.labelled.tags.take(group)
        flat = np.bincount(cells[group][tags.row_of_each()] * n_tags + tags.tags, minlength=counts.size)
        counts += flat.reshape(counts.shape)
    return counts


def _split_tables(
    content: Content, chosen: np.ndarray, index: np.ndarray, paths: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Yield row groups of some images; `index` is each vocabulary number's position in `tags.parquet`."""
    images = content.images
    for start in range(0, len(chosen), ROW_GROUP):
        group = chosen[start : start + ROW_GROUP]
        rows = content.labelled.rows[group]
        tags, negatives = content.labelled.tags.take(group), content.negatives.of_rows(rows)
        sha256 = pa.py_buffer(np.ascontiguousarray(images.sha256[rows]))
        yield pa.table(
            {
                "post_id": images.post_id[rows],
                "tags": _lists(tags, index),
                "negatives": _lists(negatives, index),
                "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(rows), [None, sha256]),
                "source": images.source[rows],
                "phash": images.phash[rows],
                "family": content.family[rows],
                "path": paths.take(rows),
            }
        )


def _lists(tags: Rows, index: np.ndarray) -> pa.ListArray:
    """Return lists of positions in `tags.parquet`, sorted; `index` is each vocabulary number's."""
    tags = Rows(tags.offsets, index[tags.tags]).sets()
    return pa.ListArray.from_arrays(tags.offsets.astype(np.int32), tags.tags.astype(np.int16))


def describe(
    output: Path,
    config: BuildSettings,
    content: Content,
    ledger: Ledger,
    reasons: Sequence[Reason],
    irregular: dict[str, int],
) -> None:
    """Write `config.yaml`, then `dataset.json`, whose presence means that the dataset is complete.

    `irregular` counts the irregularities of the tag relations.
    """
    labelled = content.labelled
    counts = count_families(content, config, ledger.paths())
    for line in describe_giants(counts):
        print(line)
    description = {
        "sources": [source.name for source in config.sources],
        "exhaustive": [source.exhaustive for source in config.sources],
        "extension": scan.extension(config.format) if config.images else "none",
        "counts": _count_posts(content, reasons, [source.name for source in config.sources]),
        "not_learned": {
            "rare": dict(islice(labelled.rare.items(), NAMED)),
            "one_sided": dict(islice(labelled.one_sided.items(), NAMED)),
        },
        "refused": dict(islice(content.refused.items(), NAMED)),
        "split_rules": RULES,
        "families": counts,
        "relations": irregular,
        "config": config.model_dump(),
        "inputs": {source.name: inputs.content_hashes(source) for source in config.sources},
        "outputs": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES},
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES},
    }
    write_text(output / dataset.CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    dataset.write_description(output, description)
    print(f"Dataset: {output}")


def count_families(content: Content, config: BuildSettings, paths: pa.ChunkedArray) -> FamilyCounts:
    """Count the families of a dataset; `paths` are those of all images."""
    rows = content.labelled.rows
    source, sources = content.images.source[rows], [source.name for source in config.sources]
    _, first, number, sizes = np.unique(
        content.family[rows], return_index=True, return_inverse=True, return_counts=True
    )
    chance = families.with_relatives(sizes, int(content.validation.sum()))[number]
    too_large = np.flatnonzero(giants(sizes, config.validation.wanted(len(rows))))
    too_large = too_large[np.argsort(-sizes[too_large], kind="stable")]
    names = {i: f"{sources[source[first[i]]]}/{paths[int(rows[first[i]])]}" for i in too_large[:NAMED]}
    return FamilyCounts(
        families=len(sizes),
        several=int((sizes > 1).sum()),
        images=int(sizes[sizes > 1].sum()),
        largest=int(sizes.max(initial=0)),
        too_large=len(too_large),
        training_images=int(sizes[too_large].sum()),
        giants={name: int(sizes[i]) for i, name in names.items()},
        relatives={name: float(chance[source == i].mean()) for i, name in enumerate(sources) if (source == i).any()},
    )


def describe_giants(counts: FamilyCounts) -> Iterator[str]:
    """Yield a line on the families that always stay in training, if there are any; it names the largest."""
    for name, size in islice(counts["giants"].items(), 1):
        several = f"{counts['too_large']:,} ({counts['training_images']:,} images)"
        yield f"families too large for validation: {several}, the largest that of {name} ({size:,})"


def _count_posts(content: Content, reasons: Sequence[Reason], sources: Sequence[str]) -> dict[str, SourceCounts]:
    """Count the posts of each source."""
    source, counts = content.images.source[content.labelled.rows], {}
    for number, name in enumerate(sources):
        refused = {reason.reason: reason.posts for reason in reasons if reason.source == name}
        train = int((~content.validation & (source == number)).sum())
        validation = int((content.validation & (source == number)).sum())
        posts = train + validation + sum(refused.values())
        counts[name] = SourceCounts(posts=posts, rejected=refused, train=train, validation=validation)
    return counts

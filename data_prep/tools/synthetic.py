"""A synthetic Danbooru 2021 mirror of any size, with the faults and families of real ones, and an answer key.

The key, `answers.json`, lists what a build must find: see `Key`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from data_prep.tools.synthetic_families import ties_of
from data_prep.tools.synthetic_images import COPIES, FAULTS, NEAR_COPIES, PLAIN, VARIANTS, file_of
from joytag.core import progress
from joytag.core.files import remove_partials, replacing, write_text
from joytag.core.signals import starting_processes

Generation = Literal["2021", "2020", "mixed"]
FILES = 12  # files of posts
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
SHARES = {"0": 0.55, "1": 0.15, "3": 0.08, "4": 0.2, "5": 0.02}  # fraction of the tags in each category
MEAN_TAGS = 33
STRANGE = ["d'artagnan", 'a,b_"quoted"', "🦊_ears", "ערבית", "\\o/", "<script>", "%s", "^_^", ";", "名前"]


@dataclass
class Key:
    """What a build must find. Numbers are post ids; every post that is not listed is kept.

    `rejected` maps a reason to ids; `lines` maps a reason to (file, line) of rows without a usable id; `copies` maps an
    id to that of the copy that is kept. `recoloured` and `retouched` are pairs that are not copies; those of the
    latter have similar colours, and pHashes that differ in 1 to 3 bits. `families` are the posts with an id that other
    ties than looks join, by the kind and number of the family.
    """

    posts: int = 0  # rows in the files of posts, good or bad
    rejected: dict[str, list[int]] = field(default_factory=dict)
    lines: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    recoloured: list[tuple[int, int]] = field(default_factory=list)
    retouched: list[tuple[int, int]] = field(default_factory=list)
    families: dict[str, list[int]] = field(default_factory=dict)
    deleted: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, other: Key) -> None:
        """Add the key of another part of the mirror."""
        for reason, ids in other.rejected.items():
            self.rejected.setdefault(reason, []).extend(ids)
        for reason, lines in other.lines.items():
            self.lines.setdefault(reason, []).extend(lines)
        for family, ids in other.families.items():
            self.families.setdefault(family, []).extend(ids)
        self.copies |= other.copies
        self.recoloured += other.recoloured
        self.retouched += other.retouched
        self.posts += other.posts
        self.deleted += other.deleted
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))


class World(NamedTuple):
    """All tags by rank: names, categories, and the cumulative fraction of all uses."""

    names: list[str]
    categories: list[str]
    cumulative: np.ndarray


class Job(NamedTuple):
    """One file of posts, with ids from `first` to `last` - 1 of all `posts`, and the settings of the mirror."""

    directory: Path
    number: int
    first: int
    last: int
    posts: int
    n_tags: int
    generation: Generation
    images: bool
    seed: int


def write(directory: Path, posts: int, *, images: bool = True, generation: Generation = "mixed", seed: int = 0) -> Key:
    """Write a mirror with about `posts` posts: `metadata/`, `original/` if `images`, `answers.json`. Return the key."""
    n_tags = max(400, min(498_000, posts // 10))
    edges = np.linspace(1, posts + 1, FILES + 1).astype(int)
    jobs = [
        Job(directory, i, int(low), int(high), posts, n_tags, generation, images, seed)
        for i, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    (directory / "metadata").mkdir(parents=True, exist_ok=True)
    for folder in (directory / "metadata", *directory.glob("original/*")):
        remove_partials(folder)
    key = Key()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        with starting_processes():
            parts = pool.map(write_posts, jobs)
        for part in progress.track(parts, "Posts", len(jobs), "files"):
            key.add(part)
    write_tags(directory / "metadata", world(n_tags))
    write_text(directory / "answers.json", json.dumps(asdict(key), indent=1) + "\n")
    return key


def world(n_tags: int) -> World:
    """Draw tags whose frequencies follow Zipf's law."""
    rng = np.random.default_rng(n_tags)
    categories = rng.choice(list(SHARES), n_tags, p=list(SHARES.values())).tolist()
    names = [f"{CATEGORIES[c]}_{np.base_repr(i * 7919 + 46656, 36).lower()}" for i, c in enumerate(categories)]
    for i, name in enumerate(STRANGE):
        names[17 + 3 * i] = name
    shares = 1 / (np.arange(n_tags) + 12.0)
    return World(names, categories, np.cumsum(shares / shares.sum()))


def write_tags(metadata: Path, tags: World) -> None:
    """Write the tables of tags, aliases and implications, with the irregularities of real ones.

    The rank of a tag determines its irregularity: tags around rank 100 are aliased in chains, around 130 in a cycle.
    """
    n = tags.names
    aliases = [(n[200 + i], n[20 + i]) for i in range(40)]
    aliases += [(n[100], n[101]), (n[101], n[102]), (n[102], n[103])]  # a chain
    aliases += [(n[130], n[131]), (n[131], n[132]), (n[132], n[130]), (n[133], n[130])]  # a cycle, and an alias into it
    aliases += [
        (n[140], n[140]),
        (n[141], n[142]),
        (n[141], n[143]),
        (n[200], n[20]),
    ]  # to itself, conflicting, repeated
    aliases += [("never_used", n[5]), (n[144], "unheard_of")]
    implications = [(n[60 + i], n[10 + i % 7]) for i in range(30)]
    implications += [(n[150], n[151]), (n[151], n[152]), (n[152], n[153])]  # a chain
    implications += [(n[160], n[161]), (n[161], n[160])]  # a cycle
    implications += [(n[100], n[170]), (n[171], n[200])]  # of aliased names
    implications += [(n[150], n[151]), (n[172], n[172])]  # repeated, of itself
    suffix = "000000000000.json"
    rows = [
        {"name": name, "category": category, "post_count": "0", "id": str(i + 1)}
        for i, (name, category) in enumerate(zip(tags.names, tags.categories, strict=True))
        if i % 97  # some tags are not in the table
    ]
    _write_lines(metadata / f"tags{suffix}", rows)
    for kind, pairs in (("aliases", aliases), ("implications", implications)):
        rows = [{"antecedent_name": a, "consequent_name": c, "status": "active"} for a, c in pairs]
        rows += [
            {"antecedent_name": n[1], "consequent_name": n[2], "status": s} for s in ("deleted", "pending", "retired")
        ]
        _write_lines(metadata / f"tag_{kind}{suffix}", [{"id": str(i)} | row for i, row in enumerate(rows)])


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    encoder = msgspec.json.Encoder()
    write_text(path, "".join(encoder.encode(row).decode() + "\n" for row in rows))


def write_posts(job: Job) -> Key:
    """Write one file of posts, and their images; return its part of the key."""
    tags, key = world(job.n_tags), Key()
    rng = np.random.default_rng((job.seed, job.number))
    ids = _some_ids(rng, job)
    drawn = _draw_tags(rng, tags, len(ids))
    old = job.generation == "2020" or (job.generation == "mixed" and job.number % 3 == 2)
    encoder = msgspec.json.Encoder()
    path = job.directory / "metadata" / f"posts{job.number:012d}.json"
    line = 0
    with replacing(path) as partial, partial.open("wb") as file:

        def emit(data: bytes) -> None:
            nonlocal line
            file.write(data + b"\n")
            line += 1

        for post_id, ranks, file_fields in zip(ids, drawn, _files(job, ids, rng, key), strict=True):
            ties = ties_of(post_id, job.posts)
            row = _row(post_id, ranks, tags, old, file_fields | ties.fields)
            row = {name: value for name, value in row.items() if name not in ties.lacks}
            key.deleted += row["is_deleted"]
            emit(encoder.encode(row))
            if ties.lacks:
                key.lines.setdefault("without id or md5", []).append((f"metadata/{path.name}", line))
            if ties.family and "id" in row:
                key.families.setdefault(ties.family, []).append(post_id)
            if post_id % 499 == 0:
                reason, data = _bad_line(post_id // 499, row, encoder)
                emit(data)
                if reason == "listed twice":
                    key.rejected.setdefault(reason, []).append(post_id)
                else:
                    key.lines.setdefault(reason, []).append((f"metadata/{path.name}", line))
    key.posts = line
    return key


def _some_ids(rng: np.random.Generator, job: Job) -> list[int]:
    """Draw ids of a file, in random order as in an export; one in forty is missing, and posts that should be."""
    ids = np.arange(job.first, job.last)
    ties = [ties_of(post_id, job.posts) for post_id in ids.tolist()]
    has_row = (rng.random(len(ids)) > 0.025) | [its.family is not None for its in ties]
    return rng.permutation(ids[has_row & [not its.missing for its in ties]]).tolist()


def _draw_tags(rng: np.random.Generator, tags: World, posts: int) -> Iterator[list[int]]:
    """Yield the ranks of each post's tags; one post in fifty has less than five tags."""
    for start in range(0, posts, 10_000):
        size = min(10_000, posts - start)
        counts = rng.gamma(4, MEAN_TAGS * 1.13 / 4, size).astype(int) + 6  # repetitions are dropped below
        counts[rng.random(size) < 0.02] = 2
        ranks = np.searchsorted(tags.cumulative, rng.random(counts.sum()))
        for post in np.split(ranks, np.cumsum(counts)[:-1]):
            yield np.unique(post).tolist()


def _row(post_id: int, ranks: list[int], tags: World, old: bool, file: dict[str, str]) -> dict[str, Any]:
    """Return a post as in the dumps: integers are strings, booleans are booleans, null keys are left out."""
    row: dict[str, Any] = {
        "id": str(post_id),
        "created_at": "2019-03-07 05:03:29 UTC",
        "score": str(post_id % 40),
        "source": f"https://example.org/{post_id}",
        "rating": "sqe"[post_id % 3],
        "has_children": False,
        "is_banned": False,
        "is_deleted": post_id % 23 == 0,
        "is_flagged": False,
        **file,
    }
    if old:
        listed = [{"id": str(r + 1), "name": tags.names[r], "category": tags.categories[r]} for r in ranks]
        return row | {"tags": listed + listed[:1]}  # a tag may be repeated
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for rank in ranks:
        by_category[tags.categories[rank]].append(tags.names[rank])
    row |= {f"tag_string_{CATEGORIES[category]}": " ".join(names) for category, names in by_category.items()}
    return row | {"tag_string": " ".join(tags.names[rank] for rank in ranks)}


def _bad_line(number: int, row: dict[str, Any], encoder: msgspec.json.Encoder) -> tuple[str, bytes]:
    """Return a bad line as in real and hostile dumps, and the reason why a build rejects it."""
    ways: list[tuple[str, Any]] = [
        ("without id or md5", {k: v for k, v in row.items() if k != "id"}),
        ("without id or md5", {k: v for k, v in row.items() if k not in ("id", "md5")}),
        ("listed twice", row),
        ("bad row", row | {"id": "../../../../etc/passwd"}),
        ("bad row", row | {"id": "-5"}),
        ("bad row", [row]),
        ("bad row", encoder.encode(row)[:50]),
        ("bad row", b"\x00\x00\xff\xfe"),
        ("bad row", row | {"tag_string": ["a", "list"]}),
    ]
    reason, bad = ways[number % len(ways)]
    return reason, bad if isinstance(bad, bytes) else encoder.encode(bad)


def _files(job: Job, ids: list[int], rng: np.random.Generator, key: Key) -> Iterator[dict[str, str]]:
    """Write each post's file, and yield its fields in the metadata; add faults and copies to the key."""
    if not job.images:
        for post_id in ids:
            yield {"md5": hashlib.md5(b"%d" % post_id).hexdigest(), "file_ext": "jpg", "file_size": "123456"}
        return
    kinds = [*COPIES, *NEAR_COPIES, *VARIANTS]
    weights = np.array([*COPIES.values(), *NEAR_COPIES.values(), *[2] * len(VARIANTS)]) / 1000
    drawn = rng.choice(len(kinds) + 1, len(ids), p=[*weights, 1 - weights.sum()])
    free: list[int] = []  # plain images that no other post is derived from yet
    for post_id, number in zip(ids, drawn, strict=True):
        if ties_of(post_id, job.posts).lacks:  # banned
            yield {"file_ext": "jpg"}
            continue
        kind = [*kinds, PLAIN][number]
        original = free.pop() if kind in (*COPIES, *NEAR_COPIES) and free else None
        data, extension, kind = file_of(kind, post_id, original)
        _add_to_key(key, kind, post_id, original)
        if kind == PLAIN:
            free.append(post_id)
        md5 = hashlib.md5(data + b"!" * (kind == "wrong md5")).hexdigest()
        if kind != "missing":
            file = job.directory / "original" / f"{post_id % 1000:04d}" / f"{post_id}.{extension}"
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as partial:
                partial.write_bytes(data)
        yield {"md5": md5, "file_ext": extension, "file_size": str(len(data))}


def _add_to_key(key: Key, kind: str, post_id: int, original: int | None) -> None:
    key.kinds[kind] = key.kinds.get(kind, 0) + 1
    if kind in FAULTS:
        key.rejected.setdefault(str(FAULTS[kind].verdict), []).append(post_id)
    elif kind in NEAR_COPIES and original is not None:
        pairs = key.recoloured if kind == "recoloured" else key.retouched
        pairs.append((post_id, original))
    elif kind in COPIES and original is not None:
        kept = original if kind == "resized" else min(post_id, original)
        key.copies[post_id + original - kept] = kept

"""A Danbooru 2021 mirror of any size, with everything that is wrong with real ones, and the answer key to it.

joytag synthetic --output data/raw/synthetic --posts 20000

The key, `answers.json`, says what a build must make of each planted fault: see `Key`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import imagehash
import msgspec
import numpy as np
from PIL import Image

from joytag.core import progress
from joytag.core.files import write_text

Generation = Literal["2021", "2020", "mixed"]
FILES = 12
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
SHARES = {"0": 0.55, "1": 0.15, "3": 0.08, "4": 0.2, "5": 0.02}  # of the tags' names
MEAN_TAGS = 33
STRANGE = ["d'artagnan", 'a,b_"quoted"', "🦊_ears", "ערבית", "\\o/", "<script>", "%s", "^_^", ";", "名前"]

# What becomes of a post's image, and how many of a thousand posts it happens to.
COPIES = {"same file": 8, "recompressed": 8, "resized": 8, "turned by EXIF": 2}
NEAR = {"recoloured": 6, "retouched": 4}
FAULTS = {  # the verdict that each deserves
    "truncated": "damaged", "empty": "not an image", "html": "not an image", "leftover": "not an image",
    "moving": "animated", "transparent": "transparent", "bomb": "too large", "tiny": "too small",
    "floating-point": "floating-point", "wrong md5": "md5 differs from the metadata", "missing": "missing",
}  # fmt: skip
ODD_BUT_GOOD = ("misnamed", "cmyk", "16-bit", "grey", "palette", "opaque alpha", "still gif", "flat")


@dataclass
class Key:
    """What a build must find. Ids are posts'; every post that is named nowhere is kept.

    `rejected`: reason to ids; `lines`: reason to [file, line] of rows without a usable id; `copies`: id to that of the
    image that stays in its place; `recoloured` and `retouched`: pairs that are no copies, the latter with
    pHashes 1 to 3 bits apart, alike in colour.
    """

    posts: int = 0  # rows in the files of posts, good or bad
    rejected: dict[str, list[int]] = field(default_factory=dict)
    lines: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    recoloured: list[tuple[int, int]] = field(default_factory=list)
    retouched: list[tuple[int, int]] = field(default_factory=list)
    deleted: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, other: Key) -> None:
        """Take in what another part of the mirror planted."""
        for reason, ids in other.rejected.items():
            self.rejected.setdefault(reason, []).extend(ids)
        for reason, lines in other.lines.items():
            self.lines.setdefault(reason, []).extend(lines)
        self.copies |= other.copies
        self.recoloured += other.recoloured
        self.retouched += other.retouched
        self.posts += other.posts
        self.deleted += other.deleted
        self.kinds = dict(Counter(self.kinds) + Counter(other.kinds))


class World(NamedTuple):
    """The tags that there are: names by rank, their categories, and the running sum of their shares of all uses."""

    names: list[str]
    categories: list[str]
    cumulative: np.ndarray


class Job(NamedTuple):
    """One file of posts: those with ids from `first` to `last`, and what to write of them."""

    directory: Path
    number: int
    first: int
    last: int
    n_tags: int
    generation: Generation
    images: bool
    seed: int


def write(directory: Path, posts: int, *, images: bool = True, generation: Generation = "mixed", seed: int = 0) -> Key:
    """Write a mirror of about `posts` posts, `metadata/` and (with `images`) `original/`, and its answer key."""
    n_tags = max(400, min(498_000, posts // 10))
    edges = np.linspace(1, posts + 1, FILES + 1).astype(int)
    jobs = [
        Job(directory, i, int(low), int(high), n_tags, generation, images, seed)
        for i, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    (directory / "metadata").mkdir(parents=True, exist_ok=True)
    key = Key()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for found in progress.track(pool.map(write_posts, jobs), "Posts", len(jobs), "files"):
            key.add(found)
    write_tags(directory / "metadata", world(n_tags))
    write_text(directory / "answers.json", json.dumps(asdict(key), indent=1) + "\n")
    return key


def world(n_tags: int) -> World:
    """The tags, ranked by use after Zipf's law."""
    rng = np.random.default_rng(n_tags)
    categories = rng.choice(list(SHARES), n_tags, p=list(SHARES.values())).tolist()
    names = [f"{CATEGORIES[c]}_{np.base_repr(i * 7919 + 46656, 36).lower()}" for i, c in enumerate(categories)]
    for i, name in enumerate(STRANGE):
        names[17 + 3 * i] = name
    shares = 1 / (np.arange(n_tags) + 12.0)
    return World(names, categories, np.cumsum(shares / shares.sum()))


def write_tags(metadata: Path, tags: World) -> None:
    """Write the tables of tags, aliases and implications, with all the oddities of real ones.

    The rank of a tag tells its part: those around 100 are aliased in chains, 130 in a cycle, and so on.
    """
    n = tags.names
    aliases = [(n[200 + i], n[20 + i]) for i in range(40)]
    aliases += [(n[100], n[101]), (n[101], n[102]), (n[102], n[103])]  # a chain
    aliases += [(n[130], n[131]), (n[131], n[132]), (n[132], n[130]), (n[133], n[130])]  # a cycle, and a way into it
    aliases += [(n[140], n[140]), (n[141], n[142]), (n[141], n[143]), (n[200], n[20])]  # of itself, conflicting, twice
    aliases += [("never_used", n[5]), (n[144], "unheard_of")]
    implications = [(n[60 + i], n[10 + i % 7]) for i in range(30)]
    implications += [(n[150], n[151]), (n[151], n[152]), (n[152], n[153])]  # a chain
    implications += [(n[160], n[161]), (n[161], n[160])]  # a cycle
    implications += [
        (n[100], n[170]),
        (n[171], n[200]),
        (n[150], n[151]),
        (n[172], n[172]),
    ]  # through aliases, twice, of itself
    suffix = "000000000000.json"
    rows = [
        {"name": name, "category": category, "post_count": "0", "id": str(i + 1)}
        for i, (name, category) in enumerate(zip(tags.names, tags.categories, strict=True))
        if i % 97  # some are not in the table
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
    """Write one file of posts, and their images; return what was planted."""
    tags, key = world(job.n_tags), Key()
    rng = np.random.default_rng((job.seed, job.number))
    ids = _some_ids(rng, job.first, job.last)
    drawn = _draw_tags(rng, tags, len(ids))
    old = job.generation == "2020" or (job.generation == "mixed" and job.number % 3 == 2)
    encoder = msgspec.json.Encoder()
    path = job.directory / "metadata" / f"posts{job.number:012d}.json"
    line = 0
    with path.open("wb") as file:

        def emit(data: bytes) -> None:
            nonlocal line
            file.write(data + b"\n")
            line += 1

        for post_id, places, files in zip(ids, drawn, _files(job, ids, rng, key), strict=True):
            row = _row(post_id, places, tags, old, files)
            key.deleted += row["is_deleted"]
            emit(encoder.encode(row))
            if post_id % 499 == 0:
                reason, data = _bad_line(post_id // 499, row, encoder)
                emit(data)
                if reason == "listed twice":
                    key.rejected.setdefault(reason, []).append(post_id)
                else:
                    key.lines.setdefault(reason, []).append((f"metadata/{path.name}", line))
    key.posts = line
    return key


def _some_ids(rng: np.random.Generator, first: int, last: int) -> list[int]:
    """Ids of a range, out of order, as exported; one in forty was purged."""
    ids = np.arange(first, last)
    return rng.permutation(ids[rng.random(len(ids)) > 0.025]).tolist()


def _draw_tags(rng: np.random.Generator, tags: World, posts: int) -> Iterator[list[int]]:
    """The ranks of each post's tags; one post in fifty has less than five."""
    for start in range(0, posts, 10_000):
        size = min(10_000, posts - start)
        counts = rng.gamma(4, MEAN_TAGS * 1.13 / 4, size).astype(int) + 6  # repeated draws are lost
        counts[rng.random(size) < 0.02] = 2
        ranks = np.searchsorted(tags.cumulative, rng.random(counts.sum()))
        for few in np.split(ranks, np.cumsum(counts)[:-1]):
            yield np.unique(few).tolist()


def _row(post_id: int, places: list[int], tags: World, old: bool, file: dict[str, str]) -> dict[str, Any]:
    """A post as the dumps have it: integers are strings, booleans are real, null keys are left out."""
    row: dict[str, Any] = {
        "id": str(post_id), "created_at": "2019-03-07 05:03:29 UTC", "score": str(post_id % 40),
        "source": f"https://example.org/{post_id}", "rating": "sqe"[post_id % 3],
        "has_children": False, "is_banned": False, "is_deleted": post_id % 23 == 0, "is_flagged": False, **file,
    }  # fmt: skip
    if old:
        listed = [{"id": str(p + 1), "name": tags.names[p], "category": tags.categories[p]} for p in places]
        return row | {"tags": listed + listed[:1]}  # a tag may occur twice
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for place in places:
        by_category[tags.categories[place]].append(tags.names[place])
    row |= {f"tag_string_{CATEGORIES[category]}": " ".join(names) for category, names in by_category.items()}
    return row | {"tag_string": " ".join(tags.names[place] for place in places)}


def _bad_line(number: int, row: dict[str, Any], encoder: msgspec.json.Encoder) -> tuple[str, bytes]:
    """One of the ways in which lines of real and hostile dumps are bad, and the reason to reject it for."""
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
    """What the metadata says of each post's file, which is written; the faults go into the key."""
    if not job.images:
        for post_id in ids:
            yield {"md5": hashlib.md5(b"%d" % post_id).hexdigest(), "file_ext": "jpg", "file_size": "123456"}
        return
    kinds = [*COPIES, *NEAR, *FAULTS, *ODD_BUT_GOOD]
    weights = np.array([*COPIES.values(), *NEAR.values(), *[2] * (len(FAULTS) + len(ODD_BUT_GOOD))]) / 1000
    drawn = rng.choice(len(kinds) + 1, len(ids), p=[*weights, 1 - weights.sum()])
    free: list[int] = []  # images that may yet be copied, once each
    for post_id, place in zip(ids, drawn, strict=True):
        kind = kinds[place] if place < len(kinds) else "plain"
        if kind in (*COPIES, *NEAR) and not free:
            kind = "plain"
        original = free.pop() if kind in (*COPIES, *NEAR) else None
        data, extension, kind = _image(kind, post_id, original)
        key.kinds[kind] = key.kinds.get(kind, 0) + 1
        if kind == "plain":
            free.append(post_id)
        elif kind in COPIES:
            assert original is not None
            stays = original if kind == "resized" else min(post_id, original)
            key.copies[post_id + original - stays] = stays
        elif original is not None and kind in NEAR:
            (key.recoloured if kind == "recoloured" else key.retouched).append((post_id, original))
        elif kind in FAULTS:
            key.rejected.setdefault(FAULTS[kind], []).append(post_id)
        md5 = hashlib.md5(data + b"!" * (kind == "wrong md5")).hexdigest()
        if kind != "missing":
            file = job.directory / "original" / f"{post_id % 1000:04d}" / f"{post_id}.{extension}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        yield {"md5": md5, "file_ext": extension, "file_size": str(len(data))}


def drawing(seed: int) -> Image.Image:
    """An image of its own: coarse coloured blots, 96 to 159 pixels a side."""
    rng = np.random.default_rng((seed, 1))
    blots = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return blots.resize((int(rng.integers(96, 160)), int(rng.integers(96, 160))), Image.Resampling.BICUBIC)


def _encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _image(kind: str, post_id: int, original: int | None) -> tuple[bytes, str, str]:
    """A file's bytes, its extension, and its kind: a copy that doesn't come out as one is a plain image."""
    image = drawing(post_id)
    if original is not None:
        made = _altered(kind, original)
        return (*made, kind) if made is not None else (_encode(image), "png", "plain")
    exotic: dict[str, Callable[[], tuple[bytes, str]]] = {
        "truncated": lambda: (_encode(image, "JPEG")[:-900], "jpg"),
        "empty": lambda: (b"", "jpg"),
        "html": lambda: (b"<html>404</html>" + b"%d" % post_id, "jpg"),
        "leftover": lambda: (b"8BPS" + b"%d" % post_id, ("swf", "zip", "mp4", "webm", "html", "psd")[post_id % 6]),
        "moving": lambda: (_encode(image, "GIF", save_all=True, append_images=[drawing(post_id + 1)]), "gif"),
        "transparent": lambda: (_encode(_with_alpha(image, post_id % 200)), "png"),
        "bomb": lambda: (_bomb(40_000, post_id), "png"),
        "tiny": lambda: (_encode(image.resize((8, 8))), "png"),
        "floating-point": lambda: (_encode(image.convert("F"), "TIFF"), "tif"),
        "misnamed": lambda: (_encode(image), "jpg"),
        "cmyk": lambda: (_encode(image.convert("CMYK"), "JPEG", quality=90), "jpg"),
        "16-bit": lambda: (_encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)), "png"),
        "grey": lambda: (_encode(image.convert("L"), "JPEG", quality=90), "jpg"),
        "palette": lambda: (_encode(image.quantize(64)), "png"),
        "opaque alpha": lambda: (_encode(_with_alpha(image, 255)), "png"),
        "still gif": lambda: (_encode(image, "GIF"), "gif"),
        "flat": lambda: (_encode(_flat(post_id)), "png"),
    }  # fmt: skip
    return (*exotic[kind](), kind) if kind in exotic else (_encode(image), "png", kind)


def _altered(kind: str, original: int) -> tuple[bytes, str] | None:
    """A copy or near-copy of another post's image, or None if its pHash does not come out as it should."""
    image = drawing(original)
    if kind == "same file":
        return _encode(image), "png"
    if kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        return _encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif), "png"
    for attempt in range(8):
        made, options = _changed(kind, image, attempt)
        data = _encode(made, **options)
        apart = int(imagehash.phash(Image.open(io.BytesIO(data)).convert("RGB")) - imagehash.phash(image))
        if (1 <= apart <= 3) if kind == "retouched" else apart == 0:
            return data, "jpg" if options else "png"
    return None


def _changed(kind: str, image: Image.Image, attempt: int) -> tuple[Image.Image, dict[str, Any]]:
    if kind == "recompressed":
        return image, {"kind": "JPEG", "quality": 88 + attempt, "subsampling": 0}
    if kind == "resized":
        share = 0.7 + attempt / 30
        return image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.LANCZOS), {}
    if kind == "recoloured":  # paler, in other colours, of the same structure
        y, cb, cr = image.convert("YCbCr").split()
        tint = [channel.point(lambda v: v // 2 + 32 + 8 * attempt) for channel in (cr, cb)]
        return Image.merge("YCbCr", [y.point(lambda v: v // 2 + 64), *tint]).convert("RGB"), {}
    # A faint wave, which moves a few bits of the pHash and hardly the colours.
    wave = np.cos(np.pi * (1 + attempt % 4) * np.arange(image.height) / image.height)[:, None, None] * (
        2 + attempt // 4
    )
    return Image.fromarray((np.asarray(image) + wave).clip(0, 255).astype(np.uint8)), {}


def _flat(post_id: int) -> Image.Image:
    return Image.new("RGB", (64, 64 + post_id % 99), (post_id % 256, post_id // 256 % 256, 90))


def _with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


def _bomb(side: int, post_id: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"tEXt", b"id\0%d" % post_id) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body

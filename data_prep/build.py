"""Raw sources to a dataset directory: the one place that knows the order of the stages.

joytag build --config configs/data/openmoji.yaml

Each stage goes on where an earlier run was stopped; `work/` in the dataset directory holds what they found.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import dataset, dedup, image_table, scan, shards
from data_prep.config import BuildSettings, Copies, Source, TagPolicy
from data_prep.image_table import ImageTable
from data_prep.shards import Backend
from data_prep.sources import registry
from data_prep.split import choose_validation
from data_prep.tags import Policy, Rows, read_names, survey
from joytag.core import settings
from joytag.core.files import write_text
from joytag.data import tag_names
from joytag.data.dataset import read_description

TOGETHER = 4  # chunks whose tags are settled at once
FINGERPRINTS = "sources.json"  # in work/


def build(config: BuildSettings, backend: Backend = "local") -> Path:
    """Build the dataset directory of a config, unless it is there already; return its path.

    Raises ValueError, naming what is missing or wrong, before anything is overwritten.
    """
    output, work = Path(config.output), Path(config.output) / "work"
    registry.check(config.sources, output)
    files = [settings.find(name, "data") for name in config.tags.blacklist_files]
    blacklist = [*config.tags.blacklist, *(name for file in files for name in read_names(file))]
    keep = [] if config.tags.keep is None else kept_tags(Path(config.tags.keep))
    fingerprints = [registry.fingerprint(source) for source in config.sources]
    if (output / "dataset.json").exists():
        _check_same(output, config, fingerprints)
        print(f"{output} is up to date")
        return output

    shutil.rmtree(work / scan.UNFINISHED, ignore_errors=True)
    parts = [registry.parts(source) for source in config.sources]
    posts, listings, scans = [], [], []
    for source, its_parts, fingerprint in zip(config.sources, parts, fingerprints, strict=True):
        place = work / source.name
        posts.append(
            shards.run(registry.read, its_parts, place / "posts", fingerprint, backend, f"{source.name}: posts")
        )
        listings.append(place / "images.parquet")
        image_table.write_listing(posts[-1], listings[-1])
        if config.images:
            scans.append(scan_all(source, listings[-1], config, place / "scan", backend))
    found = image_table.load(listings, scans, posts)
    if not found.usable.any():
        raise ValueError("sources: not one image can be used")

    keeper, group = merge_copies(found, scans, config.copies)
    relations, refused = registry.relations(config.sources)
    policy = Policy.of(relations.aliases, relations.implications, [*blacklist, *relations.deprecated])
    raw = image_table.raw_tags([file for files in posts for file in files], found)
    rows, tags, vocabulary = choose_tags(*final_tags(*raw, keeper, policy), config.tags, keep)
    if not vocabulary:
        raise ValueError(
            f"tags.min_count: no tag is used {config.tags.min_count} times by images with "
            f"{config.tags.min_tags} tags (tags.min_tags); lower one of them"
        )
    validation = hold_out(found.source[rows], group[rows], tags, len(vocabulary), config)

    content = dataset.Content(found, rows, tags, validation, vocabulary, relations.categories)
    dataset.write(output, content, [source.name for source in config.sources])
    ledger = dataset.Ledger(config.sources, list(zip(parts, posts, strict=True)), listings, scans, refused)
    counts = dataset.write_rejected(output, ledger, content, keeper, config.tags.min_tags)
    write_text(work / FINGERPRINTS, json.dumps(fingerprints))
    oddities = survey(relations.aliases, relations.implications, relations.categories)
    dataset.describe(output, config, counts, oddities)
    return output


def kept_tags(path: Path) -> list[str]:
    """The names in a release's `top_tags.txt`. Raises ValueError when it cannot be read."""
    try:
        return tag_names.read(path)
    except tag_names.TagListError as error:
        raise ValueError(f"tags.keep: {error}") from None


def _check_same(output: Path, config: BuildSettings, fingerprints: list[str]) -> None:
    """Raise ValueError when the dataset that is there is not what this config would build."""
    remedy = f"remove {output / 'dataset.json'} to build it anew (what was scanned is kept), or change `output:`"
    if read_description(output).get("config") != config.model_dump():
        raise ValueError(f"{output}: holds a dataset of another config; {remedy}")
    path = output / "work" / FINGERPRINTS
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != fingerprints:
        raise ValueError(f"{output}: its sources have changed since it was built; {remedy}")


def scan_all(source: Source, listing: Path, config: BuildSettings, directory: Path, backend: Backend) -> list[Path]:
    """Scan a source's images; the scan's files, in the listing's order."""
    store = scan.Store(Path(config.output), config.longest_side, config.format)
    folder = registry.folder(source)
    identity = hashlib.sha256(repr((scan.VERSION, config.longest_side, config.format)).encode())
    for table in map(pq.ParquetFile(listing).read_row_group, range(pq.read_metadata(listing).num_row_groups)):
        identity.update(repr([table.column(name).to_pylist() for name in ("post_id", "path", "md5")]).encode())
    if source.kind != "danbooru2021":  # whose images are never replaced under their id
        identity.update(registry.fingerprint(source).encode())
    parts = [scan.Part(listing, group, folder, store) for group in range(pq.read_metadata(listing).num_row_groups)]
    _forget_missing(parts, sorted(directory.glob("*.parquet")))
    return shards.run(scan.scan_part, parts, directory, identity.hexdigest(), backend, f"{source.name}: images")


def _forget_missing(parts: list[scan.Part], files: list[Path]) -> None:
    """Remove the shards of a scan with images that were missing then and are there now: downloads take weeks."""
    for file in files:
        part = parts[min(int(file.stem), len(parts) - 1)]
        try:
            reasons = pq.read_table(file, columns=["reason"])["reason"]
        except (OSError, pa.ArrowException):  # damaged, as shards.run will notice
            continue
        missing = np.flatnonzero(pc.equal(reasons, "missing").fill_null(False))
        if len(missing):
            paths = pq.ParquetFile(part.table).read_row_group(part.group, ["path"])["path"]
            if any((part.folder / paths[row].as_py()).exists() for row in missing if row < len(paths)):
                file.unlink()


def merge_copies(found: ImageTable, scans: list[list[Path]], copies: Copies) -> tuple[np.ndarray, np.ndarray]:
    """For each image the row of the copy that stays, -1 if it is unusable, and its group of look-alikes."""
    keeper, group = np.full(len(found), -1), np.arange(len(found))
    usable = np.flatnonzero(found.usable)
    if not scans:
        return usable, group
    first, phash = dedup.same_files(found.sha256[usable]), found.phash[usable]
    group[usable] = dedup.look_alikes(phash, copies.radius)
    wanted = usable[dedup.candidates(first, phash, group[usable])]
    thumbnails = image_table.thumbnails(scans, wanted)
    kept = dedup.keepers(
        first, phash, group[usable], found.area[usable], thumbnails, copies.radius, copies.max_difference
    )
    keeper[usable] = usable[kept]
    return keeper, group


Chunks = list[tuple[np.ndarray, Rows]]  # some images' rows, and their tags


def final_tags(raw: Chunks, names: list[str], keeper: np.ndarray, policy: Policy) -> tuple[Chunks, list[str]]:
    """Raw tags under a policy, copies' given to the image that stays; and the names of the tags."""
    mapping, tags = policy.final(names)
    has_copies = np.bincount(keeper[keeper >= 0], minlength=len(keeper)) > 1

    def settle(chunk: tuple[np.ndarray, Rows]) -> tuple[tuple[np.ndarray, Rows], tuple[np.ndarray, Rows]]:
        """The final tags of images without copies, and the raw tags of the others, by the row that stays."""
        rows, lists = chunk
        kept = keeper[rows]
        shared, alone = (np.flatnonzero((kept >= 0) & (has_copies[kept] == several)) for several in (True, False))
        return (rows[alone], lists.take(alone).mapped(mapping).sets()), (kept[shared], lists.take(shared))

    settled: list[tuple[tuple[np.ndarray, Rows], tuple[np.ndarray, Rows]]] = []
    with ThreadPoolExecutor() as pool:  # NumPy sorts without holding Python's lock
        while raw:
            settled += pool.map(settle, [raw.pop() for _ in raw[:TOGETHER]])
    done, merged = [[*chunks] for chunks in zip(*settled, strict=True)]
    rows, lists = _sorted(merged)
    keepers, starts = np.unique(rows, return_index=True)
    united = Rows(lists.offsets[[*starts, len(rows)]], lists.tags)
    return [*done, (keepers, united.mapped(mapping).sets())], tags


def choose_tags(
    chunks: Chunks, names: list[str], policy: TagPolicy, keep: list[str]
) -> tuple[np.ndarray, Rows, list[str]]:
    """The rows of images with enough tags, ascending; their tags in the vocabulary; and its names in order.

    Tags are counted over those images; the `keep` are in the vocabulary even if they are too rare.
    """
    uses = np.zeros(len(names), dtype=np.int64)
    for number, (rows, tags) in enumerate(chunks):
        rich = np.flatnonzero(tags.counts >= policy.min_tags)
        chunks[number] = rows[rich], tags.take(rich)
        uses += chunks[number][1].uses(len(names))
    vocabulary = sorted({names[i] for i in np.flatnonzero(uses >= policy.min_count)} | set(keep))
    _tell_rare(uses, names, set(vocabulary), policy.min_count)
    place = {name: index for index, name in enumerate(vocabulary)}
    mapping = Rows.of([[place[name]] if name in place else [] for name in names])
    known = []
    while chunks:  # each is let go as soon as it isn't needed
        rows, tags = chunks.pop()
        known.append((rows, tags.mapped(mapping)))
    return *_sorted(known), vocabulary


def _tell_rare(uses: np.ndarray, names: list[str], vocabulary: set[str], least: int) -> None:
    """Say how many tags are not learned, and which of them only just."""
    rare = sorted((-uses[i], names[i]) for i in np.flatnonzero(uses) if names[i] not in vocabulary)
    if rare:
        examples = ", ".join(f"{name} ({-count})" for count, name in rare[:5])
        print(f"{len(rare):>9,} tags: used less than {least} times, such as {examples}")


def _sorted(chunks: Chunks) -> tuple[np.ndarray, Rows]:
    """All chunks as one, by row. Chunk by chunk, since the places of a whole dataset's tags would fill the memory."""
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in chunks)])
    counts = np.concatenate([np.empty(0, np.int64), *(tags.counts for _, tags in chunks)])
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    starts = np.empty(len(rows), dtype=np.int64)
    starts[order] = offsets[:-1]
    found, first = np.empty(offsets[-1], dtype=np.int32), 0
    for these, tags in chunks:
        shift = starts[first : first + len(these)] - tags.offsets[:-1]
        found[np.arange(len(tags.tags)) + np.repeat(shift, tags.counts)] = tags.tags
        first += len(these)
    return rows[order], Rows(offsets, found)


def hold_out(source: np.ndarray, group: np.ndarray, tags: Rows, n_tags: int, config: BuildSettings) -> np.ndarray:
    """The mask of the validation images."""
    wanted = config.validation
    images = wanted.images if isinstance(wanted.images, int) else max(1, round(wanted.images * len(source)))
    uses = tags.uses(n_tags)
    # Kept tags that are too rare to be chosen are too rare to be promised.
    per_tag = np.where(uses >= config.tags.min_count, wanted.min_per_tag, 0)
    per_source = np.minimum(wanted.min_per_source, np.bincount(source, minlength=len(config.sources)) // 10)
    return choose_validation(group, tags, source, images, per_tag, per_source, wanted.seed)

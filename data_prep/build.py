"""Build a dataset directory from raw sources: the order of the stages.

An interrupted stage continues where it stopped; `work/` in the dataset directory holds the results of the stages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep import dataset, dedup, families, image_table, inputs, rejected, scan, shards
from data_prep.config import BuildSettings, Copies, Source, TagPolicy
from data_prep.image_table import ImageTable, SourceFiles
from data_prep.negatives import Negatives
from data_prep.rejected import Reason
from data_prep.shards import Backend
from data_prep.sources import posts
from data_prep.sources.registry import KINDS
from data_prep.split import RULES, Needs, choose_validation, shuffled
from data_prep.tags import Policy, read_names, survey
from data_prep.vocabulary import Labelled, choose_tags, final_tags, print_odd, print_refused, print_unknown
from joytag.core import settings
from joytag.core.files import remove_partials, write_text
from joytag.core.lock import sole_writer
from joytag.core.terminal import print
from joytag.data import tag_names
from joytag.data.dataset import read_description

FINGERPRINTS = "sources.json"  # in work/


class Outdated(ValueError):
    """A dataset exists, but the config, the sources or the lists of tags have changed since it was built."""


class NothingLeft(ValueError):
    """No image of the sources has a tag to learn; `rejected.parquet` has the reasons.

    `rare` and `one_sided` count the images of the tags that cannot be learned, as in Labelled.
    """

    def __init__(self, output: Path, reasons: Sequence[Reason], labelled: Labelled, min_count: int) -> None:
        self.rare, self.one_sided = labelled.rare, labelled.one_sided
        most_frequent = sorted(reasons, key=lambda reason: -reason.posts)[:3]
        why = [
            *map(str, most_frequent),
            *labelled.not_learned(min_count),
            f"all reasons are in {output / rejected.FILE}",
        ]
        remedy = "add images, or lower tags.min_count" if self.rare else "add images"
        super().__init__(f"sources: no image has a tag to learn; {'; '.join(why)}; {remedy}")


def build(config: BuildSettings, backend: Backend = "local") -> Path:
    """Build the dataset directory of a config, unless it exists already; return its path.

    Raises ValueError, naming what is missing or wrong, before anything is overwritten, and InUse when another process
    builds it.
    """
    output = Path(config.output)
    inputs.check(config.sources, output)
    blacklist, keep = _read_tag_lists(config.tags)
    fingerprints = [inputs.fingerprint(source) for source in config.sources]
    fingerprints.append(hashlib.sha256(json.dumps([blacklist, keep]).encode()).hexdigest())
    if _is_built(output, config, fingerprints):
        return output
    if not (output / "work").exists() and (others := [name for name in dataset.FILES if (output / name).exists()]):
        raise ValueError(
            f"output: {output / others[0]}: not of a build here; choose another folder, or remove the file"
        )
    with sole_writer(output):
        if not _is_built(output, config, fingerprints):  # by a process that ended just now
            run_stages(config, backend, blacklist, keep, fingerprints)
    return output


def run_stages(
    config: BuildSettings, backend: Backend, blacklist: list[str], keep: list[str], fingerprints: list[str]
) -> None:
    """Run all stages, without those that an earlier build has finished.

    `fingerprints` are those of the sources, in their order, and that of the lists of tags.
    """
    output = Path(config.output)
    shutil.rmtree(output / "work" / scan.UNFINISHED, ignore_errors=True)
    parts = [inputs.parts(source) for source in config.sources]
    files = [
        read_source(source, its_parts, fingerprint, config, backend)
        for source, its_parts, fingerprint in zip(config.sources, parts, fingerprints[:-1], strict=True)
    ]
    images = image_table.load(files)
    keeper, alike = merge_copies(images, files, config.copies)
    family = find_families(images, files, keeper, alike, config)
    relations, unreadable = inputs.relations(config.sources)
    policy = Policy.of(relations.aliases, relations.implications, [*blacklist, *relations.deprecated], keep)
    negatives = Negatives.of(*image_table.raw_negatives(files, images), keeper, policy)
    raw = image_table.raw_tags(files, images)
    print_odd(raw[1])
    related = [name for pair in [*relations.aliases, *relations.implications] for name in pair]
    print_unknown(blacklist, [*raw[1], *related])
    categories = policy.categories(raw[1], relations.categories)
    final = final_tags(*raw, keeper, policy, negatives)
    print_refused(final.refused)
    is_partial = ~np.array([source.exhaustive for source in config.sources])[images.source]
    labelled = choose_tags(final.chunks, final.names, config.tags, keep, negatives.of_images(is_partial))
    labelled, validation = hold_out(labelled, images.source, family, set(keep), config)

    for line in labelled.not_learned(config.tags.min_count):
        print(f"{'':>9} {line}")
    ledger = rejected.Ledger(config.sources, parts, files, unreadable)
    reasons = rejected.write(output, ledger, images, labelled, keeper, config.tags.min_tags)
    if not len(labelled.rows):
        raise NothingLeft(output, reasons, labelled, config.tags.min_count)
    if not validation.any():
        raise ValueError(
            f"validation.images: {config.validation.images} cannot be held out of {len(validation):,} images in "
            f"{len(np.unique(family[labelled.rows])):,} families; add images or change it "
            f"(rejected images are in {output / rejected.FILE})"
        )
    content = dataset.Content(
        images, labelled, validation, categories, family, negatives.among(labelled.vocabulary), final.refused
    )
    dataset.write(output, content, ledger)
    write_text(output / "work" / FINGERPRINTS, json.dumps(fingerprints))
    irregular = survey(relations.aliases, relations.implications, relations.categories)
    dataset.describe(output, config, content, ledger, reasons, irregular)


def _read_tag_lists(policy: TagPolicy) -> tuple[list[str], list[str]]:
    """Read the blacklist and the tags to keep. Raises ValueError when a file cannot be read."""
    paths = [settings.find(name, "data") for name in policy.blacklist_files]
    blacklist = [*policy.blacklist, *(name for path in paths for name in read_names(path))]
    try:
        return blacklist, [] if policy.keep is None else tag_names.read(Path(policy.keep))
    except tag_names.TagListError as error:
        raise ValueError(f"tags.keep: {error}") from None


def _is_built(output: Path, config: BuildSettings, fingerprints: list[str]) -> bool:
    """Whether the dataset exists. Raises Outdated when this config would build another one than the existing one."""
    if not (output / "dataset.json").exists():
        return False
    description = read_description(output)
    if description.get("config") != config.model_dump():
        raise Outdated(f"{output}: holds a dataset of another config")
    if description.get("split_rules") != RULES:
        raise Outdated(f"{output}: another version has chosen its validation images")
    path = output / "work" / FINGERPRINTS
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if recorded != fingerprints[: len(recorded)]:  # older versions did not record the lists of tags
        raise Outdated(f"{output}: its sources or lists of tags have changed since it was built")
    for source in config.sources if config.images else ():
        if outdated_scans(source, image_table.work_directory(output, source.name)):
            raise Outdated(f"{output}: images of {source.path} have changed since it was built")
    print(f"{output} is up to date")
    return True


def read_source(
    source: Source, parts: Sequence[inputs.Part], fingerprint: str, config: BuildSettings, backend: Backend
) -> SourceFiles:
    """Read the posts of a source, list its images, and scan them if the config wants images."""
    work = image_table.work_directory(Path(config.output), source.name)
    identity = f"{posts.VERSION} {fingerprint}"
    files = shards.run(inputs.read, parts, work.posts, identity, backend, f"{source.name}: posts")
    remove_partials(work.listing.parent)
    image_table.write_listing(files, work.listing)
    scans = scan_images(source, work, config, backend) if config.images else []
    return SourceFiles(files, work.listing, scans)


def scan_images(source: Source, work: image_table.WorkDirectory, config: BuildSettings, backend: Backend) -> list[Path]:
    """Scan the listed images of a source; return the scan's files, in the order of the listing."""
    is_opaque = (source.transparent or KINDS[source.kind].transparent) == "refuse"
    store = scan.Store(Path(config.output), config.longest_side, config.format, is_opaque)
    identity = hashlib.sha256(repr((scan.VERSION, *store[1:])).encode())
    groups = range(pq.read_metadata(work.listing).num_row_groups)
    for table in map(pq.ParquetFile(work.listing).read_row_group, groups):
        identity.update(repr([table.column(name).to_pylist() for name in ("post_id", "path", "md5")]).encode())
    has_copies = (store.directory / "images").exists()
    for file in outdated_scans(source, work) if has_copies else work.scans():
        file.unlink()
    parts = [scan.Part(work.listing, group, inputs.folder(source), store) for group in groups]
    return shards.run(scan.scan_part, parts, work.scan, identity.hexdigest(), backend, f"{source.name}: images")


def outdated_scans(source: Source, work: image_table.WorkDirectory) -> list[Path]:
    """Return the files of a source's scan with images that have changed or appeared since."""
    folder, are_final, files = inputs.folder(source), KINDS[source.kind].images_are_final, work.scans()
    if not files or not work.listing.exists():
        return []
    metadata = pq.read_metadata(work.listing)  # parsed once, since it may list thousands of row groups

    def is_outdated(file: Path) -> bool:
        if int(file.stem) >= metadata.num_row_groups:
            return True
        listing = pq.ParquetFile(work.listing, metadata=metadata)
        return scan.is_outdated(
            file, lambda: listing.read_row_group(int(file.stem), ["path"])["path"], folder, are_final
        )

    with ThreadPoolExecutor() as pool:  # network drives answer slowly
        return [file for file, outdated in zip(files, pool.map(is_outdated, files), strict=True) if outdated]


def merge_copies(images: ImageTable, files: Sequence[SourceFiles], copies: Copies) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each image, the row of the copy that is kept (-1 if unusable), and its group of look-alikes."""
    keeper, alike = np.full(len(images), -1), look_alikes(images, files, copies.radius)
    usable = np.flatnonzero(images.usable)
    if not any(its.scan for its in files):
        return usable, alike
    first, phash = dedup.same_files(images.sha256[usable]), images.phash[usable]
    candidates = usable[dedup.candidates(first, phash, alike[usable])]
    kept = dedup.keepers(
        first,
        phash,
        alike[usable],
        images.area[usable],
        image_table.thumbnails(files, candidates),
        copies.radius,
        copies.max_difference,
    )
    keeper[usable] = usable[kept]
    return keeper, alike


def look_alikes(images: ImageTable, files: Sequence[SourceFiles], radius: int) -> np.ndarray:
    """Return the group of look-alikes of each image, int64 [images]; unusable and unscanned images look like no other.

    Groups are numbered from 0, those of usable images first.
    """
    alike = np.arange(len(images))
    if any(its.scan for its in files):
        alike[images.usable] = dedup.look_alikes(images.phash[images.usable], radius)
        alike[~images.usable] = np.arange((~images.usable).sum()) + alike[images.usable].max(initial=-1) + 1
    return alike


def find_families(
    images: ImageTable, files: Sequence[SourceFiles], keeper: np.ndarray, alike: np.ndarray, config: BuildSettings
) -> np.ndarray:
    """Return each image's family, int64 [images], over the ties of the settings.

    `keeper` and `alike` are the results of `merge_copies`.
    """
    ties, radius = config.validation.families, config.validation.radius
    if families.LOOK_ALIKES not in ties:
        alike = np.arange(len(images))
    elif radius > config.copies.radius:
        alike = look_alikes(images, files, radius)
    tied = [families.read(its.posts, ties) for its in files]
    return families.join(images.source, images.post_id, alike, keeper, tied)


def hold_out(
    labelled: Labelled, source: np.ndarray, family: np.ndarray, keep: set[str], config: BuildSettings
) -> tuple[Labelled, np.ndarray]:
    """Choose the validation images, bool [rows]; drop the tags that both sides cannot hold enough of.

    `source` and `family` are those of all images. Tags in `keep` are never dropped. The families are shuffled with
    those of unlabelled images, so that the choice hardly depends on the vocabulary.
    """
    with_tags, order = np.concatenate([labelled.rows, labelled.unlabelled]), np.empty_like(family)
    order[with_tags] = shuffled(family[with_tags], config.validation.seed)
    while len(labelled.rows):
        kept = np.array([name in keep for name in labelled.vocabulary])
        its_source, uses = source[labelled.rows], labelled.tags.uses(len(kept))
        by_source = np.bincount(its_source, minlength=len(config.sources))
        needs = Needs.of(config.validation, uses, by_source, kept, config.tags.min_count)
        if needs.images >= len(its_source):
            break
        validation = choose_validation(order[labelled.rows], labelled.tags, its_source, needs)
        held = labelled.tags.take(np.flatnonzero(validation)).uses(len(kept))
        one_sided = ~kept & ((held < needs.per_tag) | (uses - held < needs.in_training(uses)))
        if not one_sided.any():
            _print_few_of_a_source(its_source[validation], needs.per_source, config)
            return labelled, validation
        # Without the rarest of them, families may be free that the others need.
        labelled = labelled.without(one_sided & (uses == uses[one_sided].min()))
    return labelled, np.zeros(len(labelled.rows), dtype=bool)


def _print_few_of_a_source(source: np.ndarray, wanted: np.ndarray, config: BuildSettings) -> None:
    """Print the sources of which fewer images than wanted (int64 [sources]) are held out; `source` is that of each."""
    held = np.bincount(source, minlength=len(wanted))
    for number in np.flatnonzero(held < wanted):
        name = config.sources[number].name
        print(f"{'':>9} validation holds {held[number]} images of {name}, not {wanted[number]}: families stay together")

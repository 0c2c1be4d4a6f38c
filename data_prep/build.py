"""Raw sources to a dataset directory: the one place that knows the order of the stages.

python -m data_prep.build --config configs/data/openmoji.yaml
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field
from rich.progress import track

from data_prep import danbooru2021, dedup, sidecar
from data_prep import tags as tag_policy
from data_prep.scan import Scan, scan_all
from data_prep.split import choose_validation
from joytag import records, settings
from joytag.cli import Parser, command_line
from joytag.settings import Settings


class Source(Settings):
    """A place that pictures come from; the name stays with every record."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    kind: Literal["danbooru2021", "sidecar"]
    path: str
    images: Literal["original", "512px"] = "original"  # of a danbooru2021 mirror


class TagPolicy(Settings):
    """Which tags and pictures are worth learning from."""

    min_count: int = Field(default=1200, ge=1)  # pictures that a tag of the vocabulary needs
    min_tags: int = Field(default=5, ge=1)  # tags that a picture needs
    blacklist: list[str] = []
    keep: str | None = None  # a release's top_tags.txt, whose tags stay in the vocabulary however rare here


class Validation(Settings):
    """The held-out pictures."""

    pictures: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 32_768  # or their share of all
    min_per_tag: int = Field(default=5, ge=0)
    seed: int = Field(default=0, ge=0)


class BuildSettings(Settings):
    """A file in configs/data/."""

    output: str
    sources: list[Source] = Field(min_length=1)
    longest_side: int = Field(default=512, ge=32)  # of the stored copies, pixels
    tags: TagPolicy = TagPolicy()
    validation: Validation = Validation()


def build(config: BuildSettings) -> Path:
    """Build the dataset directory of a config, unless it is there already; return its path.

    Raises ValueError, naming what is missing or wrong, before anything is overwritten.
    """
    output = Path(config.output)
    if (output / "dataset.json").exists():
        if records.read_description(output).get("config") == config.model_dump():
            print(f"{output} is up to date")
            return output
        raise ValueError(f"{output}: holds a dataset of another config; remove it or change `output:`")
    output.mkdir(parents=True, exist_ok=True)

    db = duckdb.connect()
    read_sources(db, config.sources)
    posts = db.execute("SELECT source, post_id, path, md5 FROM posts ORDER BY source, post_id").fetchall()
    scans = scan_posts(posts, output, config.longest_side)
    merge_copies(db, posts, scans)
    tag_policy.canonicalise(db, config.tags.blacklist)
    tag_policy.choose_vocabulary(db, config.tags.min_count, config.tags.min_tags, kept_tags(config.tags.keep))
    write_dataset(db, output, config, {(p[0], p[1]): s for p, s in zip(posts, scans, strict=True)})
    return output


def kept_tags(path: str | None) -> list[str]:
    """The names in a release's `top_tags.txt`, if there is a path. Raises ValueError when it cannot be read."""
    if path is None:
        return []
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tags.keep: {path}: cannot be read ({error})") from None


def read_sources(db: duckdb.DuckDBPyConnection, sources: Sequence[Source]) -> None:
    """Fill the tables `posts`, `categories`, `aliases` and `implications` from all sources."""
    db.execute(
        """
        CREATE TABLE posts(source SMALLINT, post_id BIGINT, path VARCHAR, md5 VARCHAR, tags VARCHAR[]);
        CREATE TABLE categories(name VARCHAR, category TINYINT);
        CREATE TABLE aliases(antecedent VARCHAR, consequent VARCHAR);
        CREATE TABLE implications(antecedent VARCHAR, consequent VARCHAR);
        """
    )
    if len({source.name for source in sources}) < len(sources):
        raise ValueError("sources: two have the same name")
    if any(source.name == "all" for source in sources):
        raise ValueError("sources: none may be called all, which stands for all of them in metrics")
    for number, source in enumerate(sources):
        if not Path(source.path).is_dir():
            hint = "; make it with: python -m data_prep.openmoji" if source.path.startswith("data/raw/") else ""
            raise ValueError(f"sources.{number}.path: {source.path}: no such folder{hint}")
        if source.kind == "sidecar":
            sidecar.read_posts(db, Path(source.path), number)
            continue
        try:
            danbooru2021.read_posts(db, Path(source.path), source.images, number)
            danbooru2021.read_relations(db, Path(source.path))
        except duckdb.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"sources.{number}.path: {source.path}: damaged metadata: {reason}") from None


def scan_posts(posts: Sequence[tuple[int, int, str, str | None]], output: Path, longest: int) -> list[Scan]:
    """Decode every picture once, with a progress bar, and say why pictures were left out."""
    jobs = [(path, md5) for _, _, path, md5 in posts]
    scans = list(track(scan_all(jobs, output, longest), description="Scan", total=len(jobs)))
    verdicts = Counter(scan.verdict for scan in scans)
    for verdict, count in verdicts.most_common():
        print(f"{count:>9,} pictures: {verdict}")
    if not verdicts["ok"]:
        raise ValueError("sources: not one picture can be used")
    return scans


def merge_copies(db: duckdb.DuckDBPyConnection, posts: Sequence[tuple[Any, ...]], scans: Sequence[Scan]) -> None:
    """Drop unusable pictures from table `posts`, and give each group of copies' tags to the one that stays."""
    usable = [row for row, scan in enumerate(scans) if scan.verdict == "ok"]
    good = [scans[row] for row in usable]
    keeper = dedup.keepers(
        [scan.sha256 for scan in good],
        np.array([scan.phash for scan in good], dtype=np.uint64),
        np.stack([scan.thumbnail for scan in good if scan.thumbnail is not None]),
        np.array([scan.width * scan.height for scan in good]),
    )
    copies = int((keeper != np.arange(len(keeper))).sum())
    print(f"{copies:>9,} pictures: copy of another, tags merged")
    kept = [posts[usable[row]] for row in keeper]
    merge = pa.table(
        {
            "source": [posts[row][0] for row in usable],
            "post_id": [posts[row][1] for row in usable],
            "keep_source": pa.array([post[0] for post in kept], pa.int16()),
            "keep_id": pa.array([post[1] for post in kept], pa.int64()),
        }
    )
    db.execute(
        """
        CREATE OR REPLACE TABLE posts AS
        SELECT keep_source AS source, keep_id AS post_id, list_distinct(flatten(list(tags))) AS tags
        FROM posts JOIN merge USING (source, post_id) GROUP BY ALL
        """
    )
    del merge  # DuckDB read it by this name


def write_dataset(
    db: duckdb.DuckDBPyConnection, output: Path, config: BuildSettings, scans: dict[tuple[int, int], Scan]
) -> None:
    """Split the pictures and write the parquet files, `dataset.json` last."""
    rows = db.execute(
        """
        SELECT source, post_id, list(tag) FILTER (vocabulary.tag IS NOT NULL)
        FROM post_tags SEMI JOIN kept USING (source, post_id) LEFT JOIN vocabulary USING (tag)
        GROUP BY ALL ORDER BY source, post_id
        """
    ).fetchall()
    vocabulary = db.execute("SELECT tag, category, count FROM vocabulary ORDER BY tag").fetchall()
    if not vocabulary:
        raise ValueError(f"tags.min_count: no tag is used {config.tags.min_count} times; lower it")
    found = {tag: index for index, (tag, _, _) in enumerate(vocabulary)}
    tags = [np.array([found[tag] for tag in names or []], dtype=np.int64) for _, _, names in rows]
    good = [scans[source, post_id] for source, post_id, _ in rows]
    phash = np.array([scan.phash for scan in good], dtype=np.uint64)
    wanted = config.validation
    pictures = wanted.pictures if isinstance(wanted.pictures, int) else max(1, round(wanted.pictures * len(rows)))
    # Kept tags that are too rare to be chosen are too rare to be promised.
    need = np.array([wanted.min_per_tag if count >= config.tags.min_count else 0 for _, _, count in vocabulary])
    validation = choose_validation(phash, tags, pictures, need, wanted.seed)

    sources = np.array([row[0] for row in rows])
    counts = np.zeros((2, len(config.sources), len(vocabulary)), dtype=np.int64)
    for row, picture_tags in enumerate(tags):
        counts[int(validation[row]), sources[row], picture_tags] += 1
    # By training count, descending, as in a release's top_tags.txt; ties by name.
    train = counts[0].sum(axis=0)
    order = sorted(range(len(vocabulary)), key=lambda i: (-train[i], vocabulary[i][0]))
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.arange(len(order))

    for split, mask in (("train", ~validation), ("validation", validation)):
        chosen = np.flatnonzero(mask)
        table = pa.table(
            {
                "post_id": [rows[row][1] for row in chosen],
                "tags": [np.sort(index[tags[row]]).tolist() for row in chosen],
                "hash": [good[row].sha256 for row in chosen],
                "source": sources[chosen],
                "phash": phash[chosen],
            }
        )
        records.write_table(table, records.POSTS_SCHEMA, output / f"{split}.parquet")
        print(f"{len(chosen):>9,} pictures: {split}")
    table = pa.table(
        {
            "index": list(range(len(order))),
            "name": [vocabulary[i][0] for i in order],
            "category": [vocabulary[i][1] for i in order],
            "count": counts.sum(axis=(0, 1))[order],
            "count_train": train[order],
            "count_validation": counts[1].sum(axis=0)[order],
            "count_by_source": counts.sum(axis=0).T[order].tolist(),
        }
    )
    records.write_table(table, records.TAGS_SCHEMA, output / "tags.parquet")
    records.write_description(
        output,
        {"sources": [s.name for s in config.sources], "extension": "jpg", "config": config.model_dump()},
    )
    print(f"{len(order):>9,} tags\nDataset: {output}")


def main() -> None:
    """The command line."""
    parser = Parser(description="Turn raw picture sources into a dataset directory.")
    parser.add_argument("--config", required=True, help="a file in configs/data/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the config's")
    arguments = parser.parse_args()
    build(settings.load(BuildSettings, settings.find(arguments.config, Path("configs/data")), arguments.overrides))


if __name__ == "__main__":
    command_line(main)

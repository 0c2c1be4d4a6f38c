"""A Danbooru 2021 mirror (`original/` or `512px/`, `metadata/*.json`) to posts and tag relations."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

# Every value in the dumps is a string, a boolean or left out; only the columns in use are named.
# Dumps up to 2020 carry `tags` where later ones carry `tag_string`.
_POSTS = {
    "id": "VARCHAR",
    "md5": "VARCHAR",
    "file_ext": "VARCHAR",
    "tag_string": "VARCHAR",
    "tags": "STRUCT(name VARCHAR)[]",
}
_TAGS = {"name": "VARCHAR", "category": "VARCHAR"}
_RELATIONS = {"antecedent_name": "VARCHAR", "consequent_name": "VARCHAR", "status": "VARCHAR"}


def read_posts(db: duckdb.DuckDBPyConnection, mirror: Path, images: str, source: int) -> None:
    """Append a mirror's posts to table `posts`; rows without id or md5 (banned, gold) are left out.

    `images` names the folder: `original` (file extension from the metadata, md5 to be checked) or
    `512px` (always jpg, no md5). Raises ValueError naming the mirror when it has no metadata.
    """
    resized = images == "512px"
    db.execute(
        f"""
        INSERT INTO posts
        SELECT DISTINCT ON (post_id) $source, post_id,
               concat($folder, '/', lpad((post_id % 1000)::VARCHAR, 4, '0'), '/', post_id, '.', extension),
               md5, tags
        FROM (
            SELECT try_cast(id AS BIGINT) AS post_id,
                   {"'jpg'" if resized else "lower(file_ext)"} AS extension,
                   {"NULL" if resized else "lower(md5)"} AS md5,
                   coalesce(string_split_regex(trim(tag_string), '\\s+'), [tag.name FOR tag IN tags], []) AS tags
            FROM {_json(mirror, "posts*.json", _POSTS)} AS dump
            WHERE dump.md5 IS NOT NULL
        )
        WHERE post_id >= 0 AND regexp_full_match(extension, '[a-z0-9]+')
        ORDER BY post_id, md5
        """,
        {"source": source, "folder": str(mirror / images)},
    )


def read_relations(db: duckdb.DuckDBPyConnection, mirror: Path) -> None:
    """Append a mirror's tag categories and active aliases and implications to their tables."""
    db.execute(
        f"""INSERT INTO categories SELECT name, try_cast(category AS TINYINT)
            FROM {_json(mirror, "tags*.json", _TAGS)} WHERE name IS NOT NULL AND category IS NOT NULL"""
    )
    for table, files in (("aliases", "tag_aliases*.json"), ("implications", "tag_implications*.json")):
        db.execute(
            f"""INSERT INTO {table} SELECT DISTINCT antecedent_name, consequent_name
                FROM {_json(mirror, files, _RELATIONS)}
                WHERE status = 'active' AND antecedent_name IS NOT NULL AND consequent_name IS NOT NULL"""
        )


def _json(mirror: Path, files: str, columns: dict[str, str]) -> str:
    """A DuckDB table function over JSON lines. Raises ValueError when no file matches."""
    paths = sorted((mirror / "metadata").glob(files))
    if not paths:
        raise ValueError(
            f"{mirror / 'metadata' / files}: no such file; a Danbooru 2021 mirror keeps its metadata there"
        )
    # DuckDB would take brackets in a folder's name for a pattern of its own.
    quoted = ", ".join("'" + re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''") + "'" for path in paths)
    return f"read_json([{quoted}], format = 'newline_delimited', columns = {columns})"

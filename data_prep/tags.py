"""Tag policy: aliases, implications, blacklist, and the choice of the vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import duckdb
import pyarrow as pa


def resolve_aliases(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each aliased name to its final name: chains followed, cycles broken, self-aliases ignored.

    Of conflicting aliases of one name the alphabetically first counts; a cycle ends at its
    alphabetically first member. Either way the outcome does not depend on the order of `pairs`.
    """
    step: dict[str, str] = {}
    for antecedent, consequent in sorted(pairs, reverse=True):
        if antecedent != consequent:
            step[antecedent] = consequent
    return {name: final for name in step if (final := _follow(name, step)) != name}


def _follow(name: str, step: dict[str, str]) -> str:
    path = [name]
    while (following := step.get(path[-1])) is not None:
        if following in path:
            return min(path[path.index(following) :])
        path.append(following)
    return path[-1]


def close_implications(pairs: Iterable[tuple[str, str]], aliases: dict[str, str]) -> dict[str, set[str]]:
    """Each tag to all tags that it implies, over any number of steps; names are first de-aliased."""
    direct: dict[str, set[str]] = {}
    for antecedent, consequent in pairs:
        direct.setdefault(aliases.get(antecedent, antecedent), set()).add(aliases.get(consequent, consequent))
    closed = {}
    for name in direct:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            new = direct.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
        closed[name] = reached - {name}
    return closed


def canonicalise(db: duckdb.DuckDBPyConnection, blacklist: Collection[str]) -> None:
    """Make table `post_tags(source, post_id, tag)` of final tags from `posts`, `aliases` and `implications`.

    Aliases are applied first, then implications; blacklisted names vanish, before aliasing or after.
    """
    aliases = resolve_aliases(db.execute("SELECT * FROM aliases").fetchall())
    implied = close_implications(db.execute("SELECT * FROM implications").fetchall(), aliases)
    names = aliases.keys() | implied.keys() | set(blacklist)
    pairs = [(raw, tag) for raw in sorted(names) for tag in _final(raw, aliases, implied, set(blacklist))]
    mapping = pa.table({"raw": [p[0] for p in pairs], "tag": pa.array([p[1] for p in pairs], pa.string())})
    db.execute("CREATE OR REPLACE TEMP TABLE tag_mapping AS SELECT * FROM mapping")
    del mapping  # DuckDB read it by this name
    db.execute(
        """
        CREATE OR REPLACE TABLE post_tags AS
        WITH raw_tags AS (SELECT source, post_id, unnest(tags) AS raw FROM posts)
        SELECT DISTINCT source, post_id, if(m.raw IS NULL, r.raw, m.tag) AS tag
        FROM raw_tags r LEFT JOIN tag_mapping m ON m.raw = r.raw
        WHERE r.raw <> '' AND (m.raw IS NULL OR m.tag IS NOT NULL)
        """
    )


def _final(raw: str, aliases: dict[str, str], implied: dict[str, set[str]], blacklist: set[str]) -> list[str | None]:
    """What a raw name becomes; [None] when nothing is left of it."""
    name = aliases.get(raw, raw)
    if raw in blacklist or name in blacklist:
        return [None]
    return [name, *sorted(implied.get(name, set()) - blacklist)]


def choose_vocabulary(db: duckdb.DuckDBPyConnection, min_count: int, min_tags: int, keep: Sequence[str] = ()) -> None:
    """Make table `vocabulary(tag, category, count)` of the tags used often enough, and of those to `keep` anyway.

    Counts are over pictures with at least `min_tags` final tags, in the vocabulary or not, which
    table `kept(source, post_id)` lists. A tag with several categories takes the lowest; a tag with
    none is general.
    """
    wanted = pa.table({"tag": pa.array(keep, pa.string())})
    db.execute(
        f"""
        CREATE OR REPLACE TABLE kept AS
        SELECT source, post_id FROM post_tags GROUP BY ALL HAVING count(*) >= {int(min_tags)};
        CREATE OR REPLACE TABLE vocabulary AS
        WITH counts AS (
                 SELECT tag, count(*) AS count FROM post_tags SEMI JOIN kept USING (source, post_id) GROUP BY tag
             ),
             named AS (SELECT name AS tag, min(category) AS category FROM categories GROUP BY name),
             chosen AS (SELECT tag FROM counts WHERE count >= {int(min_count)} UNION SELECT tag FROM wanted)
        SELECT tag, coalesce(category, 0) AS category, coalesce(count, 0) AS count
        FROM chosen LEFT JOIN counts USING (tag) LEFT JOIN named USING (tag)
        """
    )
    del wanted  # DuckDB read it by this name

"""A simple build of tags with dicts of sets: the reference for the results and the speed of the real build.

It shares no code with the build. Run it with `python -m data_prep.tools.baseline MIRROR OUTPUT`.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_posts(mirror: Path) -> dict[int, set[str]]:
    """Read the tags of all posts of a mirror by id; skip rows that cannot be read."""
    posts: dict[int, set[str]] = {}
    for path in sorted((mirror / "metadata").glob("posts*.json")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    post_id, _ = int(row["id"]), row["md5"]
                    names = row["tag_string"].split() if "tag_string" in row else [tag["name"] for tag in row["tags"]]
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if post_id >= 0:
                    posts.setdefault(post_id, set(names))
    return posts


def read_pairs(mirror: Path, kind: str) -> list[tuple[str, str]]:
    """Read the active rows of a mirror; `kind` is `aliases` or `implications`."""
    rows = [
        json.loads(line)
        for path in (mirror / "metadata").glob(f"tag_{kind}0*.json")
        for line in path.open(encoding="utf-8")
    ]
    return [(row["antecedent_name"], row["consequent_name"]) for row in rows if row["status"] == "active"]


def aliased(name: str, aliases: dict[str, str]) -> str:
    """Follow aliases to their end; a cycle ends at its alphabetically first name."""
    seen: list[str] = []
    while name in aliases and name not in seen:
        seen.append(name)
        name = aliases[name]
    return min(seen[seen.index(name) :]) if name in seen else name


def apply_policy(posts: dict[int, set[str]], mirror: Path) -> None:
    """Apply aliases and implications to each post's tags, in place."""
    aliases: dict[str, str] = {}
    for antecedent, consequent in read_pairs(mirror, "aliases"):
        if antecedent != consequent:
            aliases[antecedent] = min(consequent, aliases.get(antecedent, consequent))
    implied: dict[str, set[str]] = defaultdict(set)
    for antecedent, consequent in read_pairs(mirror, "implications"):
        implied[aliased(antecedent, aliases)].add(aliased(consequent, aliases))
    for post_id, names in posts.items():
        final = {aliased(name, aliases) for name in names}
        new = set(final)
        while new:
            new = {other for name in new for other in implied.get(name, ())} - final
            final |= new
        posts[post_id] = final


def build(mirror: Path, output: Path, min_count: int = 1200, min_tags: int = 5, images: int = 32_768) -> None:
    """Write `top_tags.txt`, `tags.parquet`, `train.parquet` and `validation.parquet` from a mirror's JSON."""
    posts = read_posts(mirror)
    apply_policy(posts, mirror)
    posts = {post_id: names for post_id, names in sorted(posts.items()) if len(names) >= min_tags}
    counts = Counter(name for names in posts.values() for name in names)
    vocabulary = {name for name, count in counts.items() if count >= min_count}
    by_tag: dict[str, list[int]] = defaultdict(list)
    for post_id, names in posts.items():
        for name in names & vocabulary:
            by_tag[name].append(post_id)
    rng = random.Random(0)
    validation: set[int] = set()
    for name in sorted(vocabulary, key=lambda name: counts[name]):
        missing = 5 - sum(post_id in validation for post_id in by_tag[name])
        if missing > 0:
            validation.update(rng.sample([i for i in by_tag[name] if i not in validation], missing))
    rest = [post_id for post_id in posts if post_id not in validation]
    validation.update(rng.sample(rest, images - len(validation)))
    order = sorted(vocabulary, key=lambda name: (-counts[name], name))
    index = {name: i for i, name in enumerate(order)}
    output.mkdir(parents=True, exist_ok=True)
    (output / "top_tags.txt").write_text("\n".join(order), encoding="utf-8", newline="\n")
    table = pa.table({"index": range(len(order)), "name": order, "count": [counts[name] for name in order]})
    pq.write_table(table, output / "tags.parquet")
    for split in ("train", "validation"):
        chosen = [post_id for post_id in posts if (post_id in validation) == (split == "validation")]
        tags = [sorted(index[name] for name in posts[post_id] & vocabulary) for post_id in chosen]
        pq.write_table(pa.table({"post_id": chosen, "tags": tags}), output / f"{split}.parquet")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))

"""The embedded corpora: OpenMoji as a Danbooru 2021 mirror, Twemoji as images with sidecars.

OpenMoji's drawings and table: "All emojis designed by OpenMoji - the open-source emoji and icon
project", CC BY-SA 4.0. Twemoji's drawings: Twitter and contributors, CC BY 4.0. See OPENMOJI.md.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from data_prep.tools import emoji_variants
from joytag.core import files, progress
from joytag.core.signals import starting_processes
from joytag.data.images import decode

TABLE = Path(__file__).with_name("openmoji.csv")
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
STOP_WORDS = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "or", "s", "the", "to", "with"]
)
GENERAL, ARTIST, META = "0", "1", "5"  # Danbooru's category numbers, as strings like in the dumps

# Synonyms in OpenMoji's table.
ALIASES = {
    "bike": "bicycle",
    "ears": "ear",
    "eyes": "eye",
    "fingers": "finger",
    "girlfried": "girlfriend",
    "hands": "hand",
    "hold": "holding",
    "run": "running",
    "smile": "smiling",
    "sports": "sport",
    "swim": "swimming",
    "twins": "twin",
    "walk": "walking",
}

Row = dict[str, str]


def read_table() -> list[Row]:
    """Read OpenMoji's official table, one dict of strings per image, in its published order."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tag_name(text: str) -> str:
    """Convert `Smiling Face` to `smiling_face`."""
    return re.sub(r"[\s,]+", "_", unicodedata.normalize("NFKC", text).strip().lower())


def human_tags(row: Row, base: Row) -> set[str]:
    """Return the tags that people gave an image: words of the annotation, keywords, skin tones and the subgroup.

    A skin-tone variant shows the same thing as its `base` and inherits its keywords.
    """
    subject, _, details = row["annotation"].partition(":")
    tags = {word for word in re.findall(r"[^\W\d_]+", subject.lower()) if word not in STOP_WORDS and len(word) > 1}
    phrases = [phrase for phrase in details.split(",") if "skin tone" not in phrase]
    for source in (row, base):
        phrases += source["tags"].split(",") + source["openmoji_tags"].split(",")
    tags |= {tag_name(phrase) for phrase in phrases if phrase.strip()}
    tags |= {f"{SKIN_TONES[int(tone) - 1]}_skin_tone" for tone in row["skintone"].split(",") if tone}
    tags.add(row["subgroups"])
    return tags


def family(row: Row) -> str:
    """Return what names the variants of an emoji in skin tone, hair and gender."""
    return emoji_variants.family(row["skintone_base_hexcode"] or row["hexcode"])


def subgroup_implications(rows: list[Row]) -> dict[str, str]:
    """Map each subgroup to its group, unless it is in several groups or has the name of a group."""
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(row["subgroups"], set()).add(row["group"])
    names = {row["group"] for row in rows}
    return {sub: group.pop() for sub, group in sorted(groups.items()) if len(group) == 1 and sub not in names}


def is_meta(tag: str) -> bool:
    """Return whether a tag describes an image's origin rather than its content."""
    return tag.startswith("extras-")


def render(job: tuple[Path, Path], size: int) -> None:
    """Rasterize one SVG (the first of `job`) onto a white square PNG (the second), atomically."""
    import resvg_py

    svg, png = job
    if png.exists():
        return
    data = bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size, background="white"))
    with files.replacing(png) as partial_file:
        partial_file.write_bytes(data)


def render_all(jobs: list[tuple[Path, Path]], size: int, title: str) -> None:
    """Render many images on all cores; skip those that exist."""
    for directory in {png.parent for _, png in jobs}:
        directory.mkdir(parents=True, exist_ok=True)
        files.remove_partials(directory)
    with ProcessPoolExecutor() as pool:
        with starting_processes():
            done = pool.map(partial(render, size=size), jobs, chunksize=64)
        for _ in progress.track(done, title, len(jobs), "images"):
            pass


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write JSON lines; null keys are left out, as in the dumps."""
    files.write_text(path, "".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))


def write_mirror(directory: Path, svgs: Path, size: int = 128) -> None:
    """Write OpenMoji as a Danbooru 2021 mirror: `original/BBBB/ID.png` and `metadata/*.json`."""
    rows = read_table()
    images = [directory / "original" / f"{number % 1000:04d}" / f"{number}.png" for number in range(1, len(rows) + 1)]
    render_all([(svgs / f"{row['hexcode']}.svg", png) for row, png in zip(rows, images, strict=True)], size, "OpenMoji")

    implications = subgroup_implications(rows)
    posts = list(_posts(rows, images, implications))
    categories: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for post in posts:
        for kind, category in (("general", GENERAL), ("artist", ARTIST), ("meta", META)):
            for tag in str(post[f"tag_string_{kind}"]).split():
                categories[tag] = category
                counts[tag] += 1
    for consequent in implications.values():
        categories.setdefault(consequent, GENERAL)

    metadata, suffix = directory / "metadata", "000000000000.json"
    files.remove_partials(metadata)
    tags = enumerate(sorted(categories), start=1)
    write_lines(
        metadata / f"tags{suffix}",
        ({"id": str(i), "name": t, "post_count": str(counts[t]), "category": categories[t]} for i, t in tags),
    )
    for kind, pairs in (("aliases", ALIASES), ("implications", implications)):
        write_lines(
            metadata / f"tag_{kind}{suffix}",
            (
                {"id": str(i), "antecedent_name": a, "consequent_name": c, "status": "active"}
                for i, (a, c) in enumerate(sorted(pairs.items()), start=1)
            ),
        )
    # Last, since its presence means that the mirror is complete.
    write_lines(metadata / f"posts{suffix}", posts)


def _posts(rows: list[Row], images: list[Path], implications: dict[str, str]) -> Iterator[dict[str, object]]:
    by_code = {row["hexcode"]: row for row in rows}
    variants = Counter(map(family, rows))
    parents: dict[str, int] = {}
    for number, (row, png) in enumerate(zip(rows, images, strict=True), start=1):
        parent = parents.setdefault(family(row), number)
        data = png.read_bytes()
        width, height = decode(data).size
        tags = human_tags(row, by_code.get(row["skintone_base_hexcode"], row))
        if row["subgroups"] not in implications:
            tags.add(row["group"])
        meta = sorted(filter(is_meta, tags))
        general = sorted(tags - set(meta))
        artist = tag_name(row["openmoji_author"])
        yield {
            "id": str(number),
            "created_at": f"{row['openmoji_date'] or '2018-01-01'} 00:00:00 UTC",
            "score": "0",
            "source": f"https://openmoji.org/library/emoji-{row['hexcode']}/",
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "rating": "s",
            "image_width": str(width),
            "image_height": str(height),
            "file_ext": "png",
            "file_size": str(len(data)),
            "parent_id": None if parent == number else str(parent),
            "has_children": parent == number and variants[family(row)] > 1,
            "is_banned": False,
            "is_deleted": False,
            "is_flagged": False,
            "tag_string": " ".join(sorted([*tags, artist])),
            "tag_string_general": " ".join(general),
            "tag_string_character": "",
            "tag_string_copyright": "",
            "tag_string_artist": artist,
            "tag_string_meta": " ".join(meta),
        }


def code_point(hexcode: str) -> str:
    """Return the form of a file name that both projects share: upper case, no leading zeros, no variation selector."""
    return "-".join(part.lstrip("0") for part in hexcode.upper().split("-") if part != "FE0F")


def write_sidecars(directory: Path, svgs: Path, size: int = 128) -> None:
    """Write the emoji of OpenMoji's table from Twemoji, as images with `.txt` sidecars, in a folder for each family."""
    rows = read_table()
    by_code = {row["hexcode"]: row for row in rows}
    drawings = {code_point(svg.stem): svg for svg in svgs.glob("*.svg")}
    jobs, sidecars = [], {}
    for row in rows:
        svg = drawings.get(code_point(row["hexcode"]))
        if svg is None:
            continue
        png = directory / family(row).lower() / f"{row['hexcode'].lower()}.png"
        tags = human_tags(row, by_code.get(row["skintone_base_hexcode"], row))
        jobs.append((svg, png))
        sidecars[png.with_suffix(".txt")] = ", ".join(sorted(tag for tag in tags if not is_meta(tag)))
    render_all(jobs, size, "Twemoji ")
    for path, text in sidecars.items():
        files.write_text(path, text)


def package_directory(package: str, inside: str) -> Path:
    """Return a folder of an installed package, without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return Path(spec.origin).parent / inside

"""A folder of 300 images as people have them: ten styles of sidecars, transparency, broken files, unusual names."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mirror import encode, random_image
from PIL import Image

VOCABULARY = [
    "1girl",
    "blue_hair",
    "saber_(fate)",
    "looking_at_viewer",
    "fate/stay_night",
    "naïve_art",
    "re:zero",
    "^_^",
    "o_o",
    ":3",
    "hat",
    "solo",
]
CATEGORIES = {"saber_(fate)": 4, "fate/stay_night": 3}
NAMESPACES = {"saber_(fate)": "character:", "fate/stay_night": "series:"}
NAMES = [
    "Screenshot 3.05\u202fPM{}",
    "全角\u3000{}",
    "👩\u200d👩\u200d👧{}",
    "with spaces {}",
    "[brackets] (and) {{more}} {}",
    "-leading{}",
    "dots.in.name.{}",
    "plain{}",
    "e\u0301te\u0301 {}",
    "it's {} & more; ok",
]
SUFFIXES = [".png", ".PNG", ".webp", ".jpg", ".JPG"]


class Mixed(NamedTuple):
    """The folder, the tags of each usable image by relative path, and the paths of those that are broken."""

    folder: Path
    tags: dict[str, set[str]]
    broken: set[str]


def _spaced(tag: str) -> str:
    return tag if len(tag) <= 3 else tag.replace("_", " ")


def _prompt(tags: list[str]) -> str:
    escaped = [_spaced(tag).replace("(", r"\(").replace(")", r"\)") for tag in tags]
    return ", ".join([f"({escaped[0]}:1.2)", *(f"(({tag}))" if len(tag) > 3 else tag for tag in escaped[1:])])


def _hydrus(tags: list[str]) -> str:
    return "\n".join(NAMESPACES.get(tag, "") + _spaced(tag) for tag in tags) + "\n"


# The pattern of the sidecar's name, and its content; each file shows its style even if it lies among those of others.
STYLES: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "commas": ("{stem}.txt", lambda tags: ", ".join(map(_spaced, tags)).encode()),
    "hydrus": ("{name}.txt", lambda tags: _hydrus(tags).encode()),
    "caption": ("{stem}.caption", lambda tags: ",".join(map(_spaced, tags)).title().encode()),
    "semicolons": ("{stem}.tags", lambda tags: "; ".join(tags).encode()),
    "booru": ("{stem}.txt", lambda tags: " ".join(["blue_hair", *tags]).encode()),
    "full width": ("{stem}.txt", lambda tags: "，".join(map(_spaced, tags)).encode()),
    "prompts": ("{stem}.txt", lambda tags: _prompt(tags).encode()),
    "western": ("{stem}.txt", lambda tags: ", ".join(["naïve art", *map(_spaced, tags)]).encode("cp1252")),
    "utf-16": ("{stem}.TXT", lambda tags: ", ".join(map(_spaced, tags)).encode("utf-16")),
    "lines": ("{stem}.txt", lambda tags: "\ufeff".encode() + "\r\n".join(map(_spaced, tags)).encode()),
}
ALWAYS = {"booru": ["blue_hair"], "western": ["naïve_art"]}


def write_mixed_folder(folder: Path) -> Mixed:
    """Write ten folders of 25 images, each in a style of its own, and one of 50 images with a mixture of styles.

    A third of the images are transparent. Five have sidecars but are broken.
    """
    rng = np.random.default_rng(0)
    own = [(style, style) for style in STYLES for _ in range(25)]
    mixed = [("mixed", style) for style in STYLES for _ in range(5)]
    tags: dict[str, set[str]] = {}
    for number, (directory, style) in enumerate([*own, *mixed]):
        is_transparent = number % 3 == 0
        suffixes = SUFFIXES[:3] if is_transparent else SUFFIXES
        file = NAMES[number % len(NAMES)].format(number) + suffixes[number // 10 % len(suffixes)]
        path = folder / directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(number, path.suffix.lower(), is_transparent))
        chosen = [str(tag) for tag in rng.choice(VOCABULARY, rng.integers(3, 6), replace=False)]
        pattern, content = STYLES[style]
        (path.parent / pattern.format(name=path.name, stem=path.stem)).write_bytes(content(chosen))
        tags[path.relative_to(folder).as_posix()] = {*chosen, *ALWAYS.get(style, [])}
    broken = [path for number, path in enumerate(tags) if number % 60 == 31]
    cut = (folder / broken[0]).read_bytes()[:150]
    for name, data in zip(broken, [cut, b"", b"hello, I am text", b"\x89PNG\r\n\x1a\n", bytes(999)], strict=True):
        (folder / name).write_bytes(data)
        del tags[name]
    return Mixed(folder, tags, set(broken))


def _image(seed: int, suffix: str, is_transparent: bool) -> bytes:
    image = random_image(seed)
    if is_transparent:
        alpha = np.full((image.height, image.width), 255, dtype=np.uint8)
        alpha[:12, :16] = 0
        alpha[12:20] = 128
        image.putalpha(Image.fromarray(alpha))
    return encode(image, {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG"}[suffix])

"""What preparing data costs, always as a ratio to a straightforward way that runs side by side with it."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageDraw

from data_prep import dedup, scan
from data_prep.tools import synthetic
from joytag.core.timing import side_by_side
from joytag.data import images

LONGEST = 512


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise with a photograph's spectrum (amplitude 1/f), coloured and grainy."""
    side = 640
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    spectrum = np.fft.rfft2(rng.normal(size=(3, side, side))) / np.maximum(frequency, 1 / side)
    planes = np.fft.irfft2(spectrum, (side, side))
    mix = planes[0] + 0.5 * planes[1:, :, :].sum(axis=0) * np.array([-1, 0, 1])[:, None, None]
    pixels = (mix - mix.mean()) / mix.std() * rng.uniform(35, 60) + rng.uniform(90, 160)
    small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(scale=rng.uniform(1, 5), size=large.shape)
    return Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))


def illustration(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Flat shapes with outlines on a soft background."""
    background = Image.fromarray(rng.integers(120, 256, (3, 3, 3), dtype=np.uint8))
    canvas = background.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(8, 30)):
        x, y, w, h = rng.uniform(size=4) * [width, height, width / 2, height / 2]
        colour, outline = (tuple(rng.integers(low, 256, 3).tolist()) for low in (60, 0))
        shape = pen.ellipse if rng.random() < 0.6 else pen.rectangle
        shape((x - w / 2, y - h / 2, x + w / 2, y + h / 2), colour, outline, int(rng.integers(1, 12)))
    return canvas


def originals(folder: Path, count: int, kind: str, seed: int = 0) -> list[Path]:
    """Write images of 1,500 to 2,500 px, half like photographs and half like drawings, as JPEG or PNG."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        sides = int(rng.integers(1500, 2501)), int(rng.integers(1000, 1501))
        draw = photograph if number % 2 else illustration
        image = draw(rng, *(sides if rng.random() < 0.5 else sides[::-1]))
        paths.append(folder / f"{number}.{kind.lower()}")
        options = (
            {"quality": int(rng.integers(85, 96)), "subsampling": int(rng.choice([0, 2]))} if kind == "JPEG" else {}
        )
        image.save(paths[-1], kind, **options)
    return paths


def three_passes(path: Path, copy: Path) -> int:
    """Scan an image as a script would: hash the opened file, open it again to check it, and again to resize it."""
    data = path.read_bytes()
    hashlib.sha256(data).digest()
    hashlib.md5(data, usedforsecurity=False).hexdigest()
    with Image.open(path) as opened:
        phash = int(str(imagehash.phash(opened)), 16)
    with Image.open(path) as opened:
        opened.load()
    with Image.open(path) as opened:
        image = opened.convert("RGB")
        scale = LONGEST / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image.resize(size, Image.Resampling.LANCZOS).save(copy, quality=95, subsampling=0)
    return phash


def scanning(n_images: int, rounds: int) -> str:
    """Images a second of the scan and of three passes, in one process, and how many pHashes are the same."""
    lines = [f"scan: {n_images} images of 1,500 to 2,500 px a kind, one process, {rounds} rounds"]
    for kind in ("JPEG", "PNG"):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            paths = originals(directory, n_images, kind)
            store = scan.Store(directory / "out", LONGEST, "jpeg")
            md5 = [hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths]
            found: dict[str, list[int | None]] = {}

            def ours() -> None:
                found["ours"] = [scan.scan(p, m, store).phash for p, m in zip(paths, md5, strict=True)]  # noqa: B023

            def reference() -> None:
                found["reference"] = [three_passes(p, directory / "copy.jpg") for p in paths]  # noqa: B023

            timings = side_by_side(ours, reference, rounds)
        apart = [((a or 0) ^ (b or 0)).bit_count() for a, b in zip(found["ours"], found["reference"], strict=True)]
        rates = timings.rates(n_images)
        lines.append(f"  {kind:<4} {rates[0]:6.1f} images/s, three passes {rates[1]:6.1f}; ratio {timings}")
        lines.append(f"       same pHash {apart.count(0) / n_images:.2%}, at most {max(apart)} bits apart")
    return "\n".join(lines)


def copies_of_originals(n_images: int) -> list[Image.Image]:
    """Images of `LONGEST` px, as a dataset stores them."""
    with tempfile.TemporaryDirectory() as folder:
        return [images.fit(images.decode(path), LONGEST) for path in originals(Path(folder), n_images, "JPEG")]


def stored(copies: list[Image.Image], format: scan.Format) -> list[bytes]:
    """The files of stored copies."""
    return [scan.encode(copy, format, hashlib.sha256(b"%d" % n).digest()) for n, copy in enumerate(copies)]


def formats(n_images: int, rounds: int) -> str:
    """What the formats of stored copies cost to keep and to decode, against JPEG, and what they lose."""
    copies = copies_of_originals(n_images)
    lines = [f"formats: {n_images} copies of {LONGEST} px, {rounds} rounds"]
    jpeg = stored(copies, "jpeg")
    for format in scan.FORMATS:
        files = stored(copies, format)
        decoding = side_by_side(lambda: [*map(images.decode, files)], lambda: [*map(images.decode, jpeg)], rounds)  # noqa: B023
        encoding = side_by_side(lambda: stored(copies, format), lambda: stored(copies, "jpeg"), 1)  # noqa: B023
        loss = [_psnr(copy, images.decode(data)) for copy, data in zip(copies, files, strict=True)]
        size = sum(map(len, files))
        lines.append(
            f"  {format:<6}{size / n_images / 1000:6.0f} kB an image ({size / sum(map(len, jpeg)):.2f} of JPEG's), "
            f"{np.median(loss):.1f} dB; decodes {decoding} times as fast, encodes {encoding}"
        )
    return "\n".join(lines)


def _psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.square(np.asarray(a, dtype=np.float64) - np.asarray(b)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def metadata(posts: int, mirror: Path | None) -> str:
    """Seconds and memory from a mirror's JSON to tables of tags and splits, against dicts of sets."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = str(mirror or f"{posts:,} posts")
        if mirror is None:
            mirror = place / "mirror"
            synthetic.write(mirror, posts, images=False)
        config = place / "config.yaml"
        config.write_text(
            f"output: {place / 'out'}\nimages: false\n"
            f"sources: [{{name: danbooru2021, kind: danbooru2021, path: {mirror}}}]\n"
        )
        theirs = _run([sys.executable, "-m", "data_prep.tools.baseline", str(mirror), str(place / "reference")])
        mine = _run([sys.executable, "-m", "joytag", "build", "--config", str(config)])
        names = [sorted((place / name / "top_tags.txt").read_text().split("\n")) for name in ("out", "reference")]
    return (
        f"metadata: {name}\n"
        f"  build               {mine[0]:7.1f} s {mine[1] / 1e6:7.0f} MB (all processes, at most)\n"
        f"  dicts of sets       {theirs[0]:7.1f} s {theirs[1] / 1e6:7.0f} MB\n"
        f"  ratio {theirs[0] / mine[0]:.2f} in time, {theirs[1] / mine[1]:.2f} in memory; "
        f"same vocabulary: {names[0] == names[1]}"
    )


def _run(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the most bytes of memory that it and its children held together."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"{' '.join(command[:3])}: failed with exit code {process.returncode}")
    return time.perf_counter() - start, peak


def _memory(pid: int) -> int:
    """Bytes that a process and its descendants hold (Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_memory(int(child)) for found in children for child in found)


def skewed_hashes(count: int, seed: int = 0) -> np.ndarray:
    """PHashes as real ones are: 5 % copies, as many again 1 to 3 bits from another, 1 % flat; uint64 [count]."""
    rng = np.random.default_rng(seed)
    hashes = np.empty(count, dtype=np.uint64)
    for start in range(0, count, 1 << 16):
        some = hashes[start : start + (1 << 16)]
        order = np.argsort(rng.random((len(some), 64), dtype=np.float32), axis=1) < 32  # half of the bits are set
        some[:] = np.packbits(order, axis=1).view(">u8").ravel()
    copies, near, flat = np.split(rng.permutation(count), [count // 20, count // 10, count // 10 + count // 98])[:3]
    hashes[copies] = rng.choice(hashes, len(copies))
    hashes[near] = rng.choice(hashes, len(near))
    for _ in range(3):
        hashes[near] ^= np.uint64(1) << rng.integers(0, 64, len(near)).astype(np.uint64)
    hashes[flat] = np.uint64(1 << 63)
    few = flat[: len(flat) // 2]  # nearly flat
    for _ in range(2):
        hashes[few] ^= np.uint64(1) << rng.integers(0, 63, len(few)).astype(np.uint64)
    return hashes


def all_pairs(hashes: np.ndarray, radius: int) -> np.ndarray:
    """The groups of `dedup.look_alikes` by comparing all pairs."""
    label = np.arange(len(hashes))
    for row in range(len(hashes)):
        near = np.flatnonzero(np.bitwise_count(hashes[row:] ^ hashes[row]) <= radius) + row
        joined = np.unique(label[near])
        if len(joined) > 1:
            label[np.isin(label, joined)] = joined[0]
    return label


def grouping(count: int, few: int) -> str:
    """Seconds and memory of finding look-alikes among many hashes; sameness and speed against all pairs of few."""
    hashes, small = skewed_hashes(count), skewed_hashes(few)
    lines = [f"groups: {count:,} hashes, 5 % copies, {count // 98:,} flat; against all pairs of {few:,}"]
    for radius in (0, 3):
        start = time.perf_counter()
        groups = dedup.look_alikes(hashes, radius).max() + 1
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        start = time.perf_counter()
        expected = all_pairs(small, radius)
        middle = time.perf_counter()
        found = dedup.look_alikes(small, radius)
        ratio = (middle - start) / (time.perf_counter() - middle)
        pairs = len(np.unique(np.stack([found, expected]), axis=1).T)
        same = pairs == len(np.unique(found)) == len(np.unique(expected))
        lines.append(
            f"  radius {radius}: {seconds:6.1f} s, {memory:.1f} GB at most, {groups:,} groups; "
            f"{ratio:,.0f} times faster than all pairs, same groups: {same}"
        )
    return "\n".join(lines)

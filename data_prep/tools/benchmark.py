"""Benchmarks of data preparation, always as a ratio to a simple implementation that runs beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageDraw

from data_prep import dedup, families, scan
from data_prep.tools import synthetic
from joytag.core.timing import Timings, side_by_side
from joytag.data import images, tag_names

LONGEST = 512  # pixels
BUILD = """
import sys
from pathlib import Path
from data_prep.build import build
from data_prep.config import BuildSettings
from joytag.core import settings
build(settings.load(BuildSettings, Path(sys.argv[1])))
"""


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw noise with a photograph's spectrum (amplitude 1/f), with colour and grain."""
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
    """Draw flat shapes with outlines on a soft background."""
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
    """Write images of 1,500 to 2,500 px as JPEG or PNG: half resemble photographs, half illustrations."""
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
    """Scan an image as a simple script would: open it to hash it, again to check it, and again to resize it."""
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
    """Compare the scan with three passes, in one process: images/s, and how many pHashes are the same."""
    lines = [f"scan: {n_images} images of 1,500 to 2,500 px per format, one process, {rounds} rounds"]
    for kind in ("JPEG", "PNG"):
        with tempfile.TemporaryDirectory() as folder:
            timings, bits = _scan_both(Path(folder), originals(Path(folder), n_images, kind), rounds)
        rates = timings.rates(n_images)
        lines.append(f"  {kind:<4} {rates[0]:6.1f} images/s, three passes {rates[1]:6.1f}; ratio {timings}")
        lines.append(f"       same pHash {bits.count(0) / n_images:.2%}, at most {max(bits)} bits apart")
    return "\n".join(lines)


def _scan_both(folder: Path, paths: list[Path], rounds: int) -> tuple[Timings, list[int]]:
    """Return the timings of the scan and of three passes, and the distance of their pHashes in bits."""
    store = scan.Store(folder / "out", LONGEST, "jpeg")
    md5 = [hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths]
    hashes: dict[str, list[int | None]] = {}

    def ours() -> None:
        hashes["ours"] = [scan.scan(path, its_md5, store).phash for path, its_md5 in zip(paths, md5, strict=True)]

    def reference() -> None:
        hashes["reference"] = [three_passes(path, folder / "copy.jpg") for path in paths]

    timings = side_by_side(ours, reference, rounds)
    pairs = zip(hashes["ours"], hashes["reference"], strict=True)
    return timings, [((a or 0) ^ (b or 0)).bit_count() for a, b in pairs]


def copies_of_originals(n_images: int) -> list[Image.Image]:
    """Return images of `LONGEST` px, as a dataset stores them."""
    with tempfile.TemporaryDirectory() as folder:
        return [images.fit(images.decode(path), LONGEST) for path in originals(Path(folder), n_images, "JPEG")]


def _encode_all(copies: list[Image.Image], format: scan.Format) -> list[bytes]:
    return [scan.encode(copy, format, hashlib.sha256(b"%d" % n).digest()) for n, copy in enumerate(copies)]


def formats(n_images: int, rounds: int) -> str:
    """Compare the formats of stored copies with JPEG: file size, speed of decoding and encoding, and loss."""
    copies = copies_of_originals(n_images)
    lines = [f"formats: {n_images} copies of {LONGEST} px, {rounds} rounds"]
    return "\n".join([*lines, *(_compare_with_jpeg(copies, format, rounds) for format in scan.FORMATS)])


def _compare_with_jpeg(copies: list[Image.Image], format: scan.Format, rounds: int) -> str:
    jpeg, files = _encode_all(copies, "jpeg"), _encode_all(copies, format)
    decoding = side_by_side(lambda: [*map(images.decode, files)], lambda: [*map(images.decode, jpeg)], rounds)
    encoding = side_by_side(lambda: _encode_all(copies, format), lambda: _encode_all(copies, "jpeg"), 1)
    psnr = [_psnr(copy, images.decode(data)) for copy, data in zip(copies, files, strict=True)]
    size = sum(map(len, files))
    return (
        f"  {format:<6}{size / len(copies) / 1000:6.0f} kB an image ({size / sum(map(len, jpeg)):.2f} of JPEG's), "
        f"{np.median(psnr):.1f} dB; decodes {decoding} times as fast, encodes {encoding}"
    )


def _psnr(a: Image.Image, b: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two images, dB."""
    error = np.square(np.asarray(a, dtype=np.float64) - np.asarray(b)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def metadata(posts: int, mirror: Path | None) -> str:
    """Compare a build without images with `baseline`, which uses dicts of sets: seconds and memory."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        name = str(mirror or f"{posts:,} posts")
        if mirror is None:
            mirror = root / "mirror"
            synthetic.write(mirror, posts, images=False)
        config = root / "config.yaml"
        config.write_text(
            f"output: {root / 'out'}\nimages: false\n"
            f"sources: [{{name: danbooru2021, kind: danbooru2021, path: {mirror}}}]\n"
        )
        theirs = _run([sys.executable, "-m", "data_prep.tools.baseline", str(mirror), str(root / "reference")])
        mine = _run([sys.executable, "-c", BUILD, str(config)])
        tags = [sorted(tag_names.read(root / name / tag_names.FILE)) for name in ("out", "reference")]
    return (
        f"metadata: {name}\n"
        f"  build               {mine[0]:7.1f} s {mine[1] / 1e6:7.0f} MB (all processes, at most)\n"
        f"  dicts of sets       {theirs[0]:7.1f} s {theirs[1] / 1e6:7.0f} MB\n"
        f"  ratio {theirs[0] / mine[0]:.2f} in time, {theirs[1] / mine[1]:.2f} in memory; "
        f"same vocabulary: {tags[0] == tags[1]}"
    )


def _run(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds, and the peak memory of it and its children in bytes."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"{' '.join(command[:3])}: failed with exit code {process.returncode}")
    return time.perf_counter() - start, peak


def _memory(pid: int) -> int:
    """Return the resident memory of a process and its descendants in bytes (Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except (OSError, IndexError):  # the process has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_memory(int(child)) for pids in children for child in pids)


def skewed_hashes(count: int, seed: int = 0) -> np.ndarray:
    """Draw hashes distributed like real pHashes, uint64 [count].

    5 % equal another hash, 5 % differ from another in 1 to 3 bits, 1 % belong to flat images.
    """
    rng = np.random.default_rng(seed)
    hashes = np.empty(count, dtype=np.uint64)
    for start in range(0, count, 1 << 16):
        chunk = hashes[start : start + (1 << 16)]
        order = np.argsort(rng.random((len(chunk), 64), dtype=np.float32), axis=1) < 32  # half of the bits are set
        chunk[:] = np.packbits(order, axis=1).view(">u8").ravel()
    copies, near, flat = np.split(rng.permutation(count), [count // 20, count // 10, count // 10 + count // 98])[:3]
    hashes[copies] = rng.choice(hashes, len(copies))
    hashes[near] = rng.choice(hashes, len(near))
    for _ in range(3):
        hashes[near] ^= np.uint64(1) << rng.integers(0, 64, len(near)).astype(np.uint64)
    hashes[flat] = np.uint64(1 << 63)
    nearly_flat = flat[: len(flat) // 2]
    for _ in range(2):
        hashes[nearly_flat] ^= np.uint64(1) << rng.integers(0, 63, len(nearly_flat)).astype(np.uint64)
    return hashes


def all_pairs(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Compute the groups of `dedup.look_alikes` by comparing all pairs."""
    label = np.arange(len(hashes))
    for row in range(len(hashes)):
        near = np.flatnonzero(np.bitwise_count(hashes[row:] ^ hashes[row]) <= radius) + row
        joined = np.unique(label[near])
        if len(joined) > 1:
            label[np.isin(label, joined)] = joined[0]
    return label


def tied_posts(count: int, seed: int = 0) -> np.ndarray:
    """Draw what ties posts, as `families.read` returns it: int64 [1 + len(posts.TIES), tied posts].

    60 % of posts are of pixiv, three pages a work on average, and 12 % have a parent, which is missing for one in ten.
    """
    rng = np.random.default_rng(seed)
    pixiv = np.where(rng.random(count) < 0.6, rng.integers(1, count // 5, count), -1)
    near = np.arange(count) - rng.geometric(0.01, count)
    parent = np.where(rng.random(count) < 0.12, np.where(rng.random(count) < 0.1, near + 2 * count, near), -1)
    tied = np.stack([np.arange(count), parent.clip(-1), pixiv, np.full(count, -1)])
    return tied[:, (tied[1:] >= 0).any(axis=0)]


def tying(count: int, alike: np.ndarray) -> str:
    """Join groups of look-alikes, int64 [count], by parents and pixiv works: seconds and memory."""
    rows, tied = np.arange(count), tied_posts(count)
    start = time.perf_counter()
    number = families.join(np.zeros(count, dtype=np.int16), rows, alike, rows, [tied]).max() + 1
    seconds = time.perf_counter() - start
    return f"  families: {seconds:6.1f} s, {_peak():.1f} GB at most, {number:,} families, {tied.shape[1]:,} tied posts"


def _peak() -> float:
    """Return the peak memory of this process, GB."""
    import resource  # here, since Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def grouping(count: int, few: int) -> str:
    """Find look-alikes and families of `count` images: seconds and memory; compare with all pairs of `few` hashes."""
    hashes, small = skewed_hashes(count), skewed_hashes(few)
    lines = [f"groups: {count:,} hashes, 5 % copies, {count // 98:,} flat; against all pairs of {few:,}"]
    for radius in (0, 3):
        start = time.perf_counter()
        alike = dedup.look_alikes(hashes, radius)
        seconds, memory = time.perf_counter() - start, _peak()
        start = time.perf_counter()
        expected = all_pairs(small, radius)
        middle = time.perf_counter()
        actual = dedup.look_alikes(small, radius)
        ratio = (middle - start) / (time.perf_counter() - middle)
        pairs = len(np.unique(np.stack([actual, expected]), axis=1).T)
        same = pairs == len(np.unique(actual)) == len(np.unique(expected))
        lines.append(
            f"  radius {radius}: {seconds:6.1f} s, {memory:.1f} GB at most, {alike.max() + 1:,} groups; "
            f"{ratio:,.0f} times faster than all pairs, same groups: {same}"
        )
        if radius == 0:
            lines.append(tying(count, alike))
    return "\n".join(lines)

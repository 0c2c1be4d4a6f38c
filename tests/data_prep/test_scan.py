"""A scan agrees with Pillow and imagehash on verdicts, hashes and stored copies."""

import errno
import hashlib
import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from mirror import encode, md5, random_image
from PIL import Image

from data_prep import dedup, scan
from joytag.data import dataset, images, preprocessing


def scan_bytes(tmp_path: Path, data: bytes, expected_md5: str | None = None, longest: int = 32) -> scan.Scan:
    path = tmp_path / "image"
    path.write_bytes(data)
    return scan.scan(path, expected_md5, scan.Store(tmp_path / "out", longest, "jpeg"))


def test_a_good_image_is_measured_and_stored(tmp_path):
    data = encode(random_image(0, 60, 48))
    scanned = scan_bytes(tmp_path, data, md5(data))
    assert (scanned.reason, scanned.width, scanned.height) == (None, 60, 48)
    assert scanned.sha256 == hashlib.sha256(data).digest()
    with Image.open(dataset.image_path(tmp_path / "out", scanned.sha256, "jpg")) as stored:
        assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (32, 26))
    assert not list((tmp_path / "out").rglob("*.part"))
    assert scanned.thumbnail
    colours = np.frombuffer(scanned.thumbnail, np.uint8).reshape(16, 16, 3).astype(int)
    shrunk = np.asarray(random_image(0, 60, 48).resize((16, 16), Image.Resampling.BOX)).astype(int)
    assert np.abs(colours - shrunk).mean() < 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(random_image(0), save_all=True, append_images=[random_image(1)]), "animated"),
        (encode(random_image(0), "JPEG")[:300], "damaged"),
        (b"hello", "not an image"),
        (b"", "not an image"),
        (encode(Image.new("RGB", (15, 400))), "too small"),
        (encode(Image.new("F", (40, 40)), "TIFF"), "floating-point"),
    ],
)
def test_a_refused_image_has_a_reason_and_is_not_stored(tmp_path, data, reason):
    assert scan_bytes(tmp_path, data).reason == reason
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("transparent", [Image.new("RGBA", (40, 40), (0, 0, 0, 9)), Image.new("LA", (40, 40), (0, 0))])
def test_a_transparent_image_is_refused_only_if_copies_must_be_opaque(tmp_path, transparent):
    (tmp_path / "image.png").write_bytes(encode(transparent))
    store = scan.Store(tmp_path / "out", 32, "jpeg")
    assert scan.scan(tmp_path / "image.png", None, store._replace(opaque=True)).reason == "transparent"
    assert not (tmp_path / "out").exists()
    assert scan.scan(tmp_path / "image.png", None, store).reason is None


def test_the_copy_of_a_transparent_image_is_what_tagging_sees(tmp_path):
    """Hidden colours, half-transparent edges: the same pixels on white, hashed and stored."""
    pixels = np.asarray(random_image(0, 64, 48).convert("RGBA")).copy()
    pixels[:20, :, 3], pixels[20:24, :, 3] = 0, 128
    (tmp_path / "image.png").write_bytes(encode(Image.fromarray(pixels)))
    tagged = images.decode(tmp_path / "image.png")
    assert (np.asarray(tagged)[:20] == 255).all()
    scanned = scan.scan(tmp_path / "image.png", None, scan.Store(tmp_path / "out", 64, "jpeg"))
    assert scanned.phash == scan.phash(tagged)
    assert scanned.sha256
    stored = dataset.image_path(tmp_path / "out", scanned.sha256, "jpg")
    trained = preprocessing.read_square(stored, 64).numpy().astype(int)
    assert np.abs(trained - np.asarray(preprocessing.square(tagged, 64))).mean() < 2  # levels, of JPEG at quality 95
    (tmp_path / "flat.png").write_bytes(encode(tagged))
    flat = scan.scan(tmp_path / "flat.png", None, scan.Store(tmp_path / "out", 64, "jpeg"))
    assert flat.sha256
    assert dataset.image_path(tmp_path / "out", flat.sha256, "jpg").read_bytes() == stored.read_bytes()


def test_an_image_with_another_md5_is_refused(tmp_path):
    assert scan_bytes(tmp_path, encode(random_image(0)), md5(b"else")).reason == "md5 differs from the metadata"


def test_a_missing_image_is_refused(tmp_path):
    store = scan.Store(tmp_path, 32, "jpeg")
    assert scan.scan(tmp_path / "nowhere.png", None, store).reason == "missing"
    assert scan.scan(tmp_path, None, store).reason == "cannot be read"


@pytest.mark.parametrize("seed", range(5))
def test_a_phash_has_the_bits_of_imagehash(seed):
    drawn = random_image(seed)
    bits = imagehash.phash(drawn).hash.flatten()
    assert scan.phash(drawn) == int("".join(str(int(bit)) for bit in bits), 2)


@pytest.mark.parametrize("colour", ["white", "black", "#808080"])
def test_the_phash_of_a_flat_image_is_flat(colour):
    hashes = [scan.phash(Image.new("RGB", (40, 40), colour)), scan.phash(random_image(0))]
    assert dedup.is_flat(np.array(hashes, np.uint64)).tolist() == [True, False]


@pytest.mark.parametrize("seed", range(12))
def test_the_phash_of_a_reduced_jpeg_is_that_of_the_whole_image_or_none(seed):
    data = encode(random_image(seed, 1501 + 7 * seed, 1203), "JPEG", quality=85)
    reduced = images.decode_reduced(data, 512)
    assert reduced.size == (1501 + 7 * seed, 1203)
    assert not reduced.is_whole
    exact = int(str(imagehash.phash(Image.open(io.BytesIO(data)))), 16)
    assert scan.reduced_phash(reduced) in (exact, None)


def test_some_reduced_jpegs_have_a_phash():
    assert any(
        scan.reduced_phash(images.decode_reduced(encode(random_image(s, 1500, 1200), "JPEG"), 512)) for s in range(12)
    )


def test_an_ambiguous_phash_is_computed_from_the_whole_image(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "SAFE_GAP", 1e9)
    data = encode(random_image(1, 1600, 1200), "JPEG")
    assert scan_bytes(tmp_path, data, longest=512).phash == scan.phash(images.decode(data))


@pytest.mark.parametrize("size", [(1500, 1003), (1003, 1500), (2047, 2049), (3001, 700), (513, 511)])
def test_the_copy_of_a_reduced_jpeg_is_close_to_that_of_the_whole_image(size):
    data = encode(random_image(3, *size), "JPEG", quality=92)
    whole = images.decode(data)
    expected = images.fit(whole, 512)
    result = images.decode_reduced(data, 512).fit(512)
    assert result.size == expected.size
    assert max(result.size) == 512
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected)).mean() < 1.5


def test_a_rotated_jpeg_is_decoded_upright_and_at_full_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(random_image(4, 1500, 1000), "JPEG", exif=exif)
    reduced = images.decode_reduced(data, 512)
    assert reduced.size == (1000, 1500) == reduced.image.size


@pytest.mark.parametrize(("format", "pillow"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("mixed", "WEBP")])
def test_copies_are_stored_in_the_chosen_format(tmp_path, format, pillow):
    path = tmp_path / "image.png"
    path.write_bytes(encode(random_image(5)))
    scanned = scan.scan(path, None, scan.Store(tmp_path, 32, format))
    assert scanned.sha256
    with Image.open(dataset.image_path(tmp_path, scanned.sha256, scan.extension(format))) as stored:
        assert stored.format == pillow
        assert stored.size == (32, 26)


def test_the_mixed_format_has_the_proportions_of_the_original_build():
    small = random_image(6, 24, 24)
    kinds = [scan.encode(small, "mixed", bytes([byte, 0, 0, 0] + [0] * 28)) for byte in range(256)]
    webp = [encode(small, "WEBP", quality=90), encode(small, "WEBP", quality=100), encode(small, "WEBP", lossless=True)]
    assert [round(kinds.count(data) / 256, 2) for data in webp] == [0.45, 0.45, 0.1]


def test_a_full_disk_leaves_no_partial_copy(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    data = encode(random_image(7))
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        scan.scan(tmp_path / "a.png", None, scan.Store(tmp_path / "out", 32, "jpeg"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]

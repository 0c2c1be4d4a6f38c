"""Images of every format become upright RGB on white; unusable files are refused quickly."""

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pixels import encode, image, noise

from joytag.data import images
from joytag.data.images import ImageError

ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")


def animation(kind: str) -> bytes:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#0000ff"))
    return encode(first, kind, save_all=True, append_images=[second])


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG that declares a size but holds almost no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    parts = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_alpha_is_composited_onto_white():
    pixels = noise(channels=4).astype(int)
    alpha = pixels[..., 3:] / 255
    decoded = np.asarray(images.decode(encode(Image.fromarray(pixels.astype(np.uint8)))))
    assert np.abs(decoded - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 1), 1)
    decoded = images.decode(encode(image, kind, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == (40, 50, 60)


@pytest.mark.parametrize("colour", [("L", 7), ("RGB", (7, 8, 9)), ("1", 0)])
def test_a_transparent_colour_becomes_white(colour):
    mode, value = colour
    image = Image.new(mode, (4, 4), value)
    assert images.decode(encode(image, transparency=value)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_rather_than_clipped(kind):
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = np.asarray(images.decode(encode(Image.fromarray(grey), kind)))
    assert decoded.shape == (8, 8, 3)
    assert np.abs(decoded - grey[..., None] / 257).max() <= 1
    assert decoded.min() == 0
    assert decoded.max() == 255


def test_cmyk_becomes_rgb():
    decoded = images.decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded)[4, 4], (255, 0, 0), atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(noise()), kind, exif=exif)
    decoded = images.decode(data)
    np.testing.assert_array_equal(decoded, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert decoded.size == ((16, 24) if orientation > 4 else (24, 16))
    reduced = images.decode_reduced(data, 100)
    np.testing.assert_array_equal(reduced.image, decoded)
    assert reduced.size == decoded.size


def test_an_orientation_in_xmp_is_applied_to_arrays_too():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(Image.fromarray(noise()), "JPEG", xmp=xmp)
    assert images.decode(data).size == (16, 24)
    np.testing.assert_array_equal(images.decode_array(data), images.decode(data))


@pytest.mark.parametrize("start", [encode(Image.fromarray(noise()), "JPEG"), b"\xff\xd8\xff\xe0\0\0"])
def test_a_file_too_large_to_be_an_image_is_refused(tmp_path, start):
    (tmp_path / "a.jpg").write_bytes(start)
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(1 << 40)  # which takes no space on the disk
    for decode in (images.decode, images.decode_array):
        with pytest.raises(ImageError, match=r"a\.jpg: larger than 1 GB"):
            decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ANIMATED)
def test_an_animation_is_read_as_its_first_frame(kind):
    np.testing.assert_allclose(np.asarray(images.decode(animation(kind)))[4, 4], (255, 0, 0), atol=2)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused_if_a_still_is_required(kind):
    with pytest.raises(ImageError, match=r"^animated$"):
        images.decode(animation(kind), still=True)


@pytest.mark.parametrize("kind", ANIMATED)
def test_a_still_in_a_format_for_animations_is_accepted(kind):
    images.decode(encode(Image.fromarray(noise()), kind), still=True)


def test_transparency_is_refused_only_if_required_and_visible():
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    assert images.decode(encode(image), opaque=True).getpixel((0, 0)) == (1, 2, 3)
    image.putpixel((3, 3), (1, 2, 3, 254))
    with pytest.raises(ImageError, match=r"^transparent$"):
        images.decode(encode(image), opaque=True)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_truncated_file_is_refused(kind):
    data = encode(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(ImageError, match=r"cannot be decoded|not an image"):
        images.decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_refused(data, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        images.decode(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_formats_are_not_decoded(tmp_path):
    with pytest.raises(ImageError, match="not an image in one of the formats JPEG"):
        images.decode(encode(Image.fromarray(noise()), "PPM"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError) as caught:
        images.decode(tmp_path / "nowhere.png")
    assert str(caught.value) == f"{tmp_path / 'nowhere.png'}: no such file"


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    started = time.perf_counter()
    with pytest.raises(ImageError, match=f"larger than {images.MAX_PIXELS} pixels"):
        images.decode(png_header(side, side))
    assert time.perf_counter() - started < 2


def test_the_format_is_recognized_by_content_not_by_name(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encode(Image.fromarray(noise())))
    np.testing.assert_array_equal(images.decode(str(path)), noise())


@given(width=st.integers(1, 300), height=st.integers(1, 300), longest=st.integers(1, 150))
def test_fit_shrinks_to_the_longest_side_and_never_enlarges(width, height, longest):
    fitted = images.fit(Image.new("RGB", (width, height)), longest)
    if max(width, height) <= longest:
        assert fitted.size == (width, height)
    else:
        scale = longest / max(width, height)
        assert max(fitted.size) == longest
        assert abs(fitted.width - max(1, width * scale)) <= 0.5
        assert abs(fitted.height - max(1, height * scale)) <= 0.5


@given(width=st.integers(1, 90), height=st.integers(1, 90), quality=st.integers(1, 100), subsampling=st.integers(0, 2))
@settings(max_examples=60)
def test_arrays_hold_pillows_pixels(width, height, quality, subsampling):
    options = {"quality": quality, "subsampling": subsampling}
    for mode, progressive in (("RGB", False), ("RGB", True), ("L", False), ("CMYK", False)):
        data = encode(image(width, height).convert(mode), "JPEG", progressive=progressive, **options)
        np.testing.assert_array_equal(images.decode_array(data), np.asarray(images.decode(data)))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (59, 39), (59, 40)])
def test_a_jpeg_too_large_for_memory_is_halved_in_an_array_too(monkeypatch, width, height):
    data = encode(image(width, height), "JPEG")
    monkeypatch.setattr(images, "HALVED", width * height - 1)
    np.testing.assert_array_equal(images.decode_array(data), np.asarray(images.decode(data)))
    assert images.decode_array(data).shape == (20, 30, 3)


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def grey_png(depth: int, values: list[int], transparent: int) -> bytes:
    """A PNG of one row of grey values with a transparent one, packed as its specification says."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in [*chunks, (b"IEND", b"")])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_any_depth_becomes_white(depth):
    top = 2**depth - 1
    values = sorted({0, 1, top // 3, top // 2, top})
    for transparent in values:
        expected = [255 if value == transparent else value * 255 / top for value in values]
        row = np.asarray(images.decode(grey_png(depth, values, transparent)))[0]
        np.testing.assert_allclose(row, np.repeat(expected, 3).reshape(-1, 3), atol=1)


BROKEN_CHUNKS = {
    "text of 2 MB": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))),
    "international text": chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
    "profile of 2 MB": chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2_000_000))),
    "many texts": b"".join(chunk(b"zTXt", b"a%d\0\0" % i + zlib.compress(bytes(1_000_000))) for i in range(70)),
    "wrong checksum": chunk(b"tEXt", b"a\0b", damage=1),
    "wrong checksum of EXIF": chunk(b"eXIf", b"MM\0*", damage=1),
    "no EXIF": chunk(b"eXIf", b"garbage"),
    "unknown compression": chunk(b"zTXt", b"a\0\5b"),
    **{f"short {kind}": chunk(kind.encode(), b"\0") for kind in ("gAMA", "pHYs", "cHRM", "acTL")},
}


@pytest.mark.parametrize("broken", BROKEN_CHUNKS)
def test_metadata_of_a_png_never_cost_its_pixels(tmp_path, broken):
    exif = Image.Exif()
    if "EXIF" not in broken:
        exif[0x0112] = 6
    plain = encode(Image.fromarray(noise()), exif=exif)
    path = tmp_path / "image.png"
    path.write_bytes(plain[:33] + BROKEN_CHUNKS[broken] + plain[33:])
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(images.decode(source), images.decode(plain))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(path)


def test_damaged_pixels_of_a_png_are_refused():
    data = bytearray(encode(Image.fromarray(noise(200, 200))))
    data[5_000:5_040] = bytes(40)
    with pytest.raises(ImageError, match="cannot be decoded"):
        images.decode(bytes(data))


SEGMENTS = (b"", b"JFIF", b"JFIF\0", b"JFXX\0", b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"Adobe", b"Photoshop 3.0\0")


@settings(max_examples=300)
@given(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.sampled_from(SEGMENTS), st.binary(max_size=20))
def test_metadata_of_a_jpeg_never_cost_its_pixels(marker, beginning, rest):
    simplejpeg = pytest.importorskip("simplejpeg")
    data = encode(Image.fromarray(noise()), "JPEG", quality=95)
    expected = simplejpeg.decode_jpeg(data)
    content = (beginning + rest)[:11] if beginning == b"Adobe" else beginning + rest  # a whole one changes the colours
    segment = bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content
    for other in (b"", data[2:20]):  # instead of the sound JFIF segment, or before it
        changed = data[:2] + segment + other + data[20:]
        np.testing.assert_array_equal(images.decode(changed), expected)


def test_a_jpeg_with_broken_metadata_keeps_its_orientation_and_its_damage():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(noise()), "JPEG", exif=exif)
    broken = data[:2] + b"\xff\xe0\0\7JFIF\0" + data[2:]
    np.testing.assert_array_equal(images.decode(broken), images.decode(data))
    for end in (3, 4, 5, 12, 40, 200, len(broken) // 2):
        with pytest.raises(ImageError):
            images.decode(broken[:end])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind):
    data = encode(Image.fromarray(noise()), kind, exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(images.decode(data), images.decode(encode(Image.fromarray(noise()), kind)))
    assert images.decode_reduced(data, 99).size == (24, 16)


def test_the_first_page_of_a_tiff_is_used():
    np.testing.assert_array_equal(images.decode(animation("TIFF"), still=True).getpixel((4, 4)), (255, 0, 0))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P")])
def test_huge_images_are_halved_band_by_band(monkeypatch, kind, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    original = image(302, 208).convert(mode)
    if mode == "RGBA":
        original.putalpha(Image.linear_gradient("L").resize(original.size))
    data = encode(original, kind, exif=exif)
    whole = images.decode(data)
    monkeypatch.setattr(images, "_BAND", 301 * 20)
    np.testing.assert_array_equal(images.decode(data), whole)
    monkeypatch.setattr(images, "HALVED", 60_000)
    half = images.decode(data)
    difference = np.abs(np.asarray(half).astype(int) - np.asarray(whole.reduce(2)))
    assert difference.mean() < (1.5 if kind == "JPEG" else 1e-9)
    reduced = images.decode_reduced(data, 100)
    assert (reduced.size, reduced.fit(100).size) == (whole.size, images.fit(whole, 100).size)


def test_heic_is_read():
    pytest.importorskip("pillow_heif")
    data = encode(image(64, 48), "HEIF", quality=90)
    difference = np.abs(np.asarray(images.decode(data, still=True)).astype(int) - np.asarray(image(64, 48)))
    assert difference.mean() < 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_an_image_of_88_megapixels_takes_less_than_1_gb(tmp_path, mode):
    Image.new(mode, (16_000, 5_500)).save(tmp_path / "image.png", compress_level=1)
    code = f"""if True:
        import resource
        from PIL import Image
        from joytag.data import images
        preprocessing.square(images.decode({str(tmp_path / "image.png")!r}), 448, Image.Resampling.BICUBIC)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(shown) * 1024 < 1e9


def test_decoding_does_not_touch_the_filters_of_warnings(tmp_path, monkeypatch):
    filters, opened = list(warnings.filters), []
    open_image = Image.open

    def recorded(*arguments, **options):
        opened.append(list(warnings.filters))
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", recorded)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    images.decode(tmp_path / "a.png")
    assert opened == [filters]  # they belong to all threads of the process

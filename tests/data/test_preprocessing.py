"""Images become squares on white, by Pillow and by torch alike, and a model's input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import FIXTURES
from PIL import Image
from pixels import encode, image, noise
from torchvision.transforms.functional import pil_to_tensor

from joytag.data import images, preprocessing
from joytag.data.images import ImageError

FIXTURE = FIXTURES / "preprocess.npz"


@pytest.mark.parametrize("number", range(4))
def test_an_image_becomes_the_tensor_of_the_published_example(number):
    fixture = np.load(FIXTURE)
    image, expected = fixture[f"image_{number}"], fixture[f"tensor_{number}"]
    decoded = images.decode(encode(Image.fromarray(image)))
    square = preprocessing.square(decoded, expected.shape[-1], Image.Resampling.BICUBIC)
    tensor = preprocessing.normalize(pil_to_tensor(square))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6, rtol=0)


def test_normalize_treats_all_images_of_a_batch_equally():
    pixels = torch.stack([pil_to_tensor(Image.fromarray(noise()))] * 2)
    batch = preprocessing.normalize(pixels)
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0], preprocessing.normalize(pixels[0]))


@given(width=st.integers(1, 40), height=st.integers(1, 40))
def test_square_centers_the_image_on_white(width, height):
    side = max(width, height)
    squared = np.asarray(preprocessing.square(Image.new("RGB", (width, height), (1, 2, 3)), side))
    left, top = (side - width) // 2, (side - height) // 2
    expected = np.full((side, side, 3), 255, np.uint8)
    expected[top : top + height, left : left + width] = (1, 2, 3)
    np.testing.assert_array_equal(squared, expected)


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 50))
def test_square_resizes_the_padded_image(width, height, size):
    image = Image.fromarray(noise(width, height))
    padded = preprocessing.square(image, max(width, height))
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        np.testing.assert_array_equal(
            preprocessing.square(image, size, resample), padded.resize((size, size), resample)
        )


def by_pillow(path: Path, size: int) -> np.ndarray:
    return np.asarray(preprocessing.square(images.decode(path), size)).astype(int)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 96), quality=st.integers(60, 100))
@settings(max_examples=60)
def test_training_squares_match_pillow(tmp_path_factory, width, height, size, quality):
    """Up to the rounding of two passes, for images that are not decoded at a fraction of their size."""
    path = tmp_path_factory.mktemp("images") / "image.jpg"
    image(width, height).save(path, quality=quality)
    size = max(size, max(width, height) // 2 + 1)
    ours = preprocessing.read_square(path, size)
    assert ours.shape == (size, size, 3)
    assert ours.dtype == torch.uint8
    difference = np.abs(ours.numpy() - by_pillow(path, size))
    assert difference.max() <= 2
    assert difference.mean() < 0.5


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@given(width=st.integers(1, 120), height=st.integers(1, 120), scale=st.sampled_from([*range(1, 13), 1 / 2, 1 / 3, 0.3]))
@settings(max_examples=100)
def test_white_that_is_not_resized_matches_pillow(resample, width, height, scale):
    """Also when several pixels become one, and when the image is a single line."""
    pixels = np.asarray(image(width, height))
    size = max(1, int(max(width, height) / scale))
    expected = np.asarray(preprocessing.square(Image.fromarray(pixels), size, resample)).astype(int)
    assert np.abs(preprocessing.square_tensor(pixels, size, resample).numpy() - expected).max() <= 2
    side = max(width, height)
    padded = preprocessing.square_tensor(np.array(preprocessing.square(Image.fromarray(pixels), side)), size, resample)
    torch.testing.assert_close(preprocessing.square_tensor(pixels, size, resample), padded, rtol=0, atol=0)


@pytest.mark.parametrize("size", [16, 40])
def test_squares_of_views_and_of_read_only_arrays_are_those_of_copies(size):
    pixels = np.asarray(image(40, 40))
    assert not pixels.flags.writeable
    for view in (pixels, pixels.copy()[::-1, ::-1], pixels.copy()[..., ::-1], pixels[:, 10:20]):
        expected = preprocessing.square_tensor(view.copy(), size)
        torch.testing.assert_close(preprocessing.square_tensor(view, size), expected, rtol=0, atol=0)


@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize(("width", "height", "bound"), [(512, 384, 0.5), (509, 333, 2.0)], ids=["even", "shifted"])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, divisor, width, height, bound, monkeypatch):
    path = tmp_path / "image.jpg"
    image(width, height).save(path, quality=95)
    size = width // divisor - 3
    shapes = []
    decode = images.simplejpeg.decode_jpeg

    def record(*arguments, **options):
        pixels = decode(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", record)
    difference = np.abs(preprocessing.read_square(path, size).numpy() - by_pillow(path, size))
    assert shapes == [(-(-height // divisor), -(-width // divisor), 3)]
    assert difference.mean() < bound


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 2}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("without", [False, True], ids=["simplejpeg", "pillow alone"])
def test_training_squares_of_every_format_match_pillow(tmp_path, monkeypatch, kind, mode, options, without):
    path = tmp_path / "image"
    image(60, 40).convert(mode).save(path, kind, **options)
    if without:
        monkeypatch.setattr(images, "simplejpeg", None)
    assert np.abs(preprocessing.read_square(path, 48).numpy() - by_pillow(path, 48)).max() <= 1


def test_damaged_files_are_refused_with_pillows_reason(tmp_path, monkeypatch):
    path = tmp_path / "image.jpg"
    data = encode(image(60, 40), "JPEG")
    for damaged, message in ((data[:200], "cannot be decoded"), (data[:-300], "cannot be decoded"), (b"", "not an im")):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=message):
            preprocessing.read_square(path, 48)
    with pytest.raises(ImageError, match="no such file"):
        preprocessing.read_square(tmp_path / "gone.jpg", 48)
    path.write_bytes(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ImageError, match="larger than"):
        preprocessing.read_square(path, 48)

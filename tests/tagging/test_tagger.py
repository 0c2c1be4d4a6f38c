"""Tests of joytag.tagging.tagger."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import FIXTURES
from PIL import Image
from requirements import needs_unix
from taggers import needs_int8

from joytag.data.images import ImageError
from joytag.data.preprocessing import normalize
from joytag.models import int8, release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging.tagger import Tagger, pick_precision, prepare

TINY = FIXTURES / "release_tiny"


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    """Nine images of different sizes; the fourth is damaged, the sixth empty."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(9):
        path = tmp_path_factory.getbasetemp() / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (20 + 3 * number, 40, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    paths[3].write_bytes(paths[3].read_bytes()[:-400])
    paths[5].write_bytes(b"")
    return paths


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_image_gets_the_published_preprocessing(tagger, number):
    """The scores are those for the published example's tensors, but for pixels that torch rounds to the next level."""
    fixture = np.load(FIXTURES / "preprocess.npz")
    with torch.inference_mode():
        scores = tagger.model(torch.from_numpy(fixture[f"tensor_{number}"])[None]).sigmoid()[0]
    np.testing.assert_allclose(tagger(fixture[f"image_{number}"]).scores, scores, atol=2e-4)


def test_a_result_has_all_scores_and_the_tags_above_the_threshold(tagger, paths):
    result = tagger(paths[0], threshold=0.5)
    assert result.error == ""
    assert result.scores.shape == (len(tagger.tags),)
    by_name = dict(zip(tagger.tags, result.scores, strict=True))
    assert result.tags == {tag: score for tag, score in by_name.items() if score > 0.5}
    assert list(result.tags.values()) == sorted(result.tags.values(), reverse=True)
    edge = max(by_name.values())
    assert tagger(paths[0], threshold=edge).tags == {}
    own = np.full(len(tagger.tags), 0.99)
    own[4] = 0.0
    assert list(tagger(paths[0], threshold=own).tags) == [tagger.tags[4]]


def test_all_forms_of_an_image_give_the_same_scores(tagger, paths):
    path = paths[0]
    opened = Image.open(path)
    expected = tagger(path).scores
    for form in (str(path), path.read_bytes(), opened, np.asarray(opened)):
        np.testing.assert_array_equal(tagger(form).scores, expected)


def test_transparency_orientation_and_grey_of_pil_images(tagger):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    np.testing.assert_array_equal(tagger(Image.fromarray(pixels)).scores, tagger(buffer.getvalue()).scores)
    np.testing.assert_array_equal(tagger(pixels).scores, tagger(buffer.getvalue()).scores)
    exif = Image.Exif()
    exif[0x112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(buffer, "JPEG", exif=exif)
    np.testing.assert_array_equal(tagger(Image.open(buffer)).scores, tagger(buffer.getvalue()).scores)
    grey = pixels[..., 0]
    np.testing.assert_array_equal(tagger(grey).scores, tagger(np.stack([grey] * 3, axis=-1)).scores)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8), b"text"]
    + [Image.new("RGB", size) for size in ((0, 0), (0, 5), (5, 0))],
    ids=lambda value: str(getattr(value, "shape", getattr(value, "size", value))),
)
def test_other_data_than_images_is_refused(tagger, wrong):
    with pytest.raises(ImageError):
        tagger(wrong)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100, None])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_stream_keeps_the_order_and_names_unusable_images(tagger, paths, batch_size, workers):
    results = list(tagger.stream(iter(paths), batch_size=batch_size, workers=workers))
    assert len(results) == len(paths)
    for number, (path, result) in enumerate(zip(paths, results, strict=True)):
        if number in (3, 5):
            assert str(path) in result.error
            assert not result.tags
            assert not result.scores.size
        else:
            np.testing.assert_allclose(result.scores, tagger(path).scores, atol=1e-6)


def test_other_images_of_a_batch_change_scores_only_by_rounding(tagger, paths):
    whole = list(tagger.stream(paths, batch_size=4))
    rest = list(tagger.stream(paths[2:], batch_size=4))
    for a, b in zip(whole[2:], rest, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-7)


def test_closing_a_stream_early_restores_the_number_of_threads(tagger, paths):
    threads = torch.get_num_threads()
    stream = tagger.stream(paths * 50, batch_size=1)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == threads


def test_running_out_of_memory_leads_to_smaller_batches(paths, monkeypatch):
    tagger = Tagger.load(TINY, device="cpu")
    expected = [result.scores for result in tagger.stream(paths, batch_size=4)]
    forward = type(tagger.model).forward
    seen = []

    def cramped(self, images):
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("no more")
        return forward(self, images)

    monkeypatch.setattr(type(tagger.model), "forward", cramped)
    with pytest.warns(UserWarning, match="2 images at once from now on"):
        results = list(tagger.stream(paths, batch_size=4, workers=1))
    for result, scores in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.scores, scores, atol=1e-6)
    assert seen.count(4) == 1
    assert set(seen[1:]) == {2}


def test_too_little_memory_for_one_image_is_an_error(paths, monkeypatch):
    tagger = Tagger.load(TINY, device="cpu")

    def none(self, images):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(type(tagger.model), "forward", none)
    with pytest.raises(ValueError, match="too little memory for a single image"):
        tagger(paths[0])


def test_precision_is_chosen_by_device_and_model_width(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("joytag.core.devices.has_amx", lambda: False)
    monkeypatch.setattr(int8, "supported", lambda: True)
    assert pick_precision("auto", cpu, 768) == "int8"
    assert pick_precision("auto", cpu, 192) == "fp32"
    assert pick_precision("fp32", cpu, 768) == "fp32"
    assert pick_precision("auto", torch.device("cuda"), 768) == "fp16"
    assert pick_precision("auto", torch.device("mps"), 768) == "fp32"
    with pytest.raises(ValueError, match="precision int8"):
        pick_precision("int8", torch.device("cuda"), 768)
    monkeypatch.setattr(int8, "supported", lambda: False)
    monkeypatch.setattr("joytag.core.devices.cpu_capabilities", dict)
    assert pick_precision("auto", cpu, 768) == "fp32"
    with pytest.raises(ValueError, match="needs an x86 CPU with AVX2"):
        pick_precision("int8", cpu, 768)
    monkeypatch.setattr("joytag.core.devices.has_amx", lambda: True)
    assert pick_precision("auto", cpu, 768) == "bf16"


@needs_int8
def test_int8_agrees_with_float32_at_every_batch_size(paths, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        n_tags=30, image_size=32, num_blocks=2, patch_size=8, d_model=64, mlp_dim=128, num_heads=2, cnn_stem=None
    )
    release.save(tmp_path, ViT(config), [f"tag_{i}" for i in range(30)], "focal2")
    exact, fast = (Tagger.load(tmp_path, "cpu", precision) for precision in ("fp32", "int8"))
    assert str(fast) == "int8 on cpu, batches of 1"
    for path, result in zip(paths, fast.stream(paths, batch_size=4), strict=True):
        if not result.error:
            np.testing.assert_array_equal(result.scores, fast(path).scores)
            np.testing.assert_allclose(result.scores, exact(path).scores, atol=0.01)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
def test_scores_that_are_no_numbers_are_refused(paths, precision):
    tagger = Tagger.load(TINY, device="cpu", precision=precision)
    with torch.no_grad():
        dict(tagger.model.named_parameters())["blocks.0.norm2.weight"].fill_(1e38)
    with pytest.raises(ValueError, match=f"scores in {precision} are not numbers"):
        tagger(paths[0])
    with pytest.raises(ValueError, match="not numbers"):
        list(tagger.stream(paths))


@pytest.mark.parametrize("name", ["meta", "xpu", "mps:9", "gpu", "cuda:x"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ValueError, match=f"device {name}: not "):
        Tagger.load(TINY, device=name)


def test_a_timm_backbone_tags_like_any_model(paths, tmp_path):
    model = TimmConfig(30, "test_convnext", 64).build().eval()
    release.save(tmp_path, model, [f"tag_{i}" for i in range(30)], "focal2")
    tagger = Tagger.load(tmp_path, "cpu")
    assert str(tagger) == "fp32 on cpu, batches of 64"
    for path, result in zip(paths, tagger.stream(paths), strict=True):
        if not result.error:
            expected = model(normalize(torch.from_numpy(prepare(path, 64)[None]))).sigmoid()[0]
            np.testing.assert_allclose(result.scores, expected.detach(), atol=1e-5)
    with pytest.raises(ValueError, match="precision int8: not for a backbone of timm"):
        Tagger.load(tmp_path, "cpu", "int8")


HUGE = """
import resource, struct, sys, zlib
from joytag.data import images

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header)
data += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
try:
    images.decode(b"warm up")
except images.ImageError:
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    images.decode(data)
except images.ImageError as error:
    assert "larger than" in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10))
"""


@needs_unix
def test_a_huge_header_allocates_no_memory():
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50, "megabytes"

"""`Tagger`: what it computes, whatever it is given, and in which order."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from requirements import needs_vnni

from joytag.core.parallel import batches, read_ahead
from joytag.data.images import ImageError, normalize
from joytag.models import int8, release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT, ViTConfig
from joytag.tagging.tagger import Tagger, pick_precision, prepare

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "release_tiny"


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
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
def test_a_image_goes_through_the_published_preprocessing(tagger, number):
    """The published example's tensors, and the model on them, give the scores."""
    fixture = np.load(FIXTURES / "preprocess.npz")
    with torch.inference_mode():
        scores = tagger.model(torch.from_numpy(fixture[f"tensor_{number}"])[None]).sigmoid()[0]
    np.testing.assert_allclose(tagger(fixture[f"image_{number}"]).scores, scores, atol=1e-5)


def test_a_result_has_all_scores_and_the_tags_above_the_threshold_best_first(tagger, pictures):
    result = tagger(pictures[0], threshold=0.5)
    assert result.error == ""
    assert result.scores.shape == (len(tagger.tags),)
    by_name = dict(zip(tagger.tags, result.scores, strict=True))
    assert result.tags == {tag: score for tag, score in by_name.items() if score > 0.5}
    assert list(result.tags.values()) == sorted(result.tags.values(), reverse=True)
    edge = max(by_name.values())
    assert tagger(pictures[0], threshold=edge).tags == {}
    own = np.full(len(tagger.tags), 0.99)
    own[4] = 0.0
    assert list(tagger(pictures[0], threshold=own).tags) == [tagger.tags[4]]


def test_all_forms_of_a_image_are_the_same(tagger, pictures):
    path = pictures[0]
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
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8), b"text"],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_what_is_no_image_is_refused(tagger, wrong):
    with pytest.raises(ImageError):
        tagger(wrong)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100, None])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_stream_keeps_the_order_and_names_what_is_wrong(tagger, pictures, batch_size, workers):
    results = list(tagger.stream(iter(pictures), batch_size=batch_size, workers=workers))
    assert len(results) == len(pictures)
    for number, (path, result) in enumerate(zip(pictures, results, strict=True)):
        if number in (3, 5):
            assert str(path) in result.error
            assert not result.tags
            assert not result.scores.size
        else:
            np.testing.assert_allclose(result.scores, tagger(path).scores, atol=1e-6)


def test_scores_depend_on_what_else_there_is_to_tag_by_rounding_alone(tagger, pictures):
    whole = list(tagger.stream(pictures, batch_size=4))
    rest = list(tagger.stream(pictures[2:], batch_size=4))
    for a, b in zip(whole[2:], rest, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-7)


def test_a_stream_may_be_left_early_and_gives_the_threads_back(tagger, pictures):
    threads = torch.get_num_threads()
    stream = tagger.stream(pictures * 50, batch_size=1)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == threads


def test_running_out_of_memory_leads_to_smaller_batches(pictures, monkeypatch):
    tagger = Tagger.load(TINY, device="cpu")
    expected = [result.scores for result in tagger.stream(pictures, batch_size=4)]
    forward = type(tagger.model).forward
    seen = []

    def cramped(self, images):
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("no more")
        return forward(self, images)

    monkeypatch.setattr(type(tagger.model), "forward", cramped)
    with pytest.warns(UserWarning, match="2 at once from here"):
        results = list(tagger.stream(pictures, batch_size=4, workers=1))
    for result, scores in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.scores, scores, atol=1e-6)
    assert seen.count(4) == 1
    assert set(seen[1:]) == {2}


def test_no_memory_at_all_is_one_line(pictures, monkeypatch):
    tagger = Tagger.load(TINY, device="cpu")

    def none(self, images):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(type(tagger.model), "forward", none)
    with pytest.raises(ValueError, match="too little memory for a single image"):
        tagger(pictures[0])


def test_precision_is_chosen_by_device_and_size(monkeypatch):
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
    monkeypatch.setattr("joytag.core.devices._capabilities", dict)
    assert pick_precision("auto", cpu, 768) == "fp32"
    with pytest.raises(ValueError, match="needs a CPU with VNNI"):
        pick_precision("int8", cpu, 768)
    monkeypatch.setattr("joytag.core.devices.has_amx", lambda: True)
    assert pick_precision("auto", cpu, 768) == "bf16"


@needs_vnni
def test_int8_agrees_with_float32_whatever_the_batch(pictures, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(n_tags=30, image_size=32, num_blocks=2, patch_size=8, d_model=64, mlp_dim=128, num_heads=2,
                       cnn_stem=None)  # fmt: skip
    release.save(tmp_path, ViT(config), [f"tag_{i}" for i in range(30)], "focal2")
    exact, fast = (Tagger.load(tmp_path, "cpu", precision) for precision in ("fp32", "int8"))
    assert str(fast) == "int8 on cpu, batches of 1"
    for path, result in zip(pictures, fast.stream(pictures, batch_size=4), strict=True):
        if not result.error:
            np.testing.assert_array_equal(result.scores, fast(path).scores)
            np.testing.assert_allclose(result.scores, exact(path).scores, atol=0.01)


def test_a_timm_backbone_tags_like_any_model(pictures, tmp_path):
    model = TimmConfig(30, "test_convnext", 64).build().eval()
    release.save(tmp_path, model, [f"tag_{i}" for i in range(30)], "focal2")
    tagger = Tagger.load(tmp_path, "cpu")
    assert str(tagger) == "fp32 on cpu, batches of 64"
    for path, result in zip(pictures, tagger.stream(pictures), strict=True):
        if not result.error:
            expected = model(normalize(torch.from_numpy(prepare(path, 64)[None]))).sigmoid()[0]
            np.testing.assert_allclose(result.scores, expected.detach(), atol=1e-5)
    with pytest.raises(ValueError, match="precision int8: not for a backbone of timm"):
        Tagger.load(tmp_path, "cpu", "int8")


def test_reading_ahead_is_ordered_bounded_and_stops():
    started = []

    def read(number: int) -> int:
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    values = read_ahead(read, iter(range(1000)), workers=4, depth=8)
    assert [next(values) for _ in range(20)] == list(range(20))
    values.close()
    assert len(started) <= 20 + 8 + 4
    assert list(read_ahead(read, range(10), workers=3, depth=4)) == list(range(10))
    assert list(read_ahead(read, [], workers=3, depth=4)) == []


def test_batches():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


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
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_huge_header_costs_nothing():
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50, "megabytes"

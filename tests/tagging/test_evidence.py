"""Evidence maps: their sums, their places, the precisions, drawings."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT, TINY
from PIL import Image
from taggers import needs_int8

from joytag.data import images, preprocessing
from joytag.data.dataset import Dataset
from joytag.models import release
from joytag.models.timm_backbone import TimmConfig
from joytag.models.vit import ViT, ViTConfig
from joytag.reports import evidence as drawings
from joytag.tagging.tagger import EvidenceError, Tagger, UnknownTag

QUICKSTART, RESTART = (ROOT / "runs" / run / "release" for run in ("openmoji", "openmoji_restart"))
PATCH = 8


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load(TINY, device="cpu")


def logit(score: np.ndarray) -> np.ndarray:
    score = score.astype(np.float64)
    return np.log(score / (1 - score))


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def at_size(directory, size: int) -> Tagger:
    """A release's tagger for another image size."""
    model, tags = release.load(directory)
    model.set_image_size(size)
    return Tagger(model, tags, torch.device("cpu"), "fp32")


@pytest.mark.parametrize("size", [64, 96])
def test_the_evidence_of_every_tag_sums_to_its_logit(size):
    check_sums(at_size(TINY, size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 128])
def test_the_evidence_of_the_quickstarts_model_sums_to_its_logits(size):
    check_sums(at_size(QUICKSTART, size))


def check_sums(tagger: Tagger) -> None:
    rng = np.random.default_rng(0)
    for shape in ((40, 40), (30, 70), (200, 90)):
        image = noise(rng, *shape)
        maps = tagger.evidence(image, tagger.tags)
        patches = tagger.size // tagger.model.config.patch_size
        assert maps.shape == (len(tagger.tags), patches, patches)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), logit(tagger(image).scores), atol=1e-4)


def sees_red() -> Tagger:
    """A tagger whose first tag is what its patches say of their redness, and nothing else."""
    sizes: dict[str, Any] = dict(image_size=64, num_blocks=1, patch_size=PATCH, d_model=8, mlp_dim=8, num_heads=1)
    model = ViT(ViTConfig(n_tags=2, cnn_stem=None, layerscale_init=0.0, use_sine=False, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # positions, too; blocks add nothing
        model.norm.weight.fill_(1)
        convolution = model.get_parameter("patch_embeddings.weight")
        convolution[0, 0], convolution[0, 1:] = 10 / PATCH**2, -5 / PATCH**2
        model.get_parameter("patch_embeddings.bias")[1] = 10  # what redness is normalized by
        model.head.weight[0, 0] = 1
    return Tagger(model, ["red", "nothing"], torch.device("cpu"), "fp32")


def planted(rng: np.random.Generator, canvas: np.ndarray, drawing: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Paste a drawing at a random place on a square canvas; return the image, and the drawing's box."""
    image = Image.fromarray(canvas)
    left, top = rng.integers(0, image.width - np.array(drawing.size) + 1)
    image.paste(drawing, (int(left), int(top)))
    return np.asarray(image), np.array([left, top, left + drawing.width, top + drawing.height])


def is_on(evidence: np.ndarray, box: np.ndarray, patch: int) -> bool:
    """Whether the patch with the most evidence touches a box: left, top, right, bottom."""
    (row, column), (left, top, right, bottom) = divmod(int(evidence.argmax()), evidence.shape[1]), box
    return left < (column + 1) * patch and right > column * patch and top < (row + 1) * patch and bottom > row * patch


def test_the_map_finds_what_a_tag_responds_to_in_every_place():
    tagger, rng = sees_red(), np.random.default_rng(0)
    red = Image.new("RGB", (2 * PATCH, 2 * PATCH), (255, 0, 0))
    for _ in range(200):
        image, box = planted(rng, noise(rng, 64, 64), red)
        evidence = tagger.evidence(image, "red")
        assert is_on(evidence, box, PATCH)
        assert not tagger.evidence(image, "nothing").any()


def drawn_cases(tagger: Tagger, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Held-out drawings that the model recognizes on light noise of twice their side: the best label's map, the box."""
    dataset, rng = Dataset.open(ROOT / "data" / "openmoji"), np.random.default_rng(0)
    posts = dataset.posts("validation")
    rows = rng.permutation(len(posts))
    for row, labels in zip(rows, posts.labels(rows, len(dataset.tags)), strict=True):
        drawing = images.decode(dataset.image_path(posts.hashes[row].tobytes()))
        drawing = preprocessing.square(drawing, tagger.size // 2, Image.Resampling.LANCZOS)
        light = 255 - np.abs(rng.normal(0, 12, (tagger.size, tagger.size, 3)))
        image, box = planted(rng, light.astype(np.uint8), drawing)
        maps = tagger.evidence(image, [tagger.tags[tag] for tag in np.flatnonzero(labels)])
        best = maps[maps.sum(axis=(1, 2)).argmax()]
        if best.sum() > 0 and count:  # a score above a half
            count -= 1
            yield best, box


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 192])
def test_a_trained_model_reads_a_drawing_where_it_is(size):
    """A random patch touches the drawing in 42 % and 33 % of the cases."""
    found = [is_on(evidence, box, 16) for evidence, box in drawn_cases(at_size(RESTART, size), 200)]
    print(f"\n{size} px: the strongest patch touches the drawing in {np.mean(found):.1%} of {len(found)} cases")
    assert np.mean(found) >= 0.85


def test_an_empty_image_has_the_same_evidence_everywhere(tagger):
    maps = tagger.evidence(np.full((20, 50, 3), 255, np.uint8), tagger.tags)
    assert np.ptp(maps, axis=(1, 2)).max() < 1e-6


def test_tags_may_have_any_spelling_and_unknown_ones_are_named(tagger):
    image = noise(np.random.default_rng(0), 30, 30)
    several = tagger.evidence(image, ["tag_2", "tag_3"])
    np.testing.assert_allclose(tagger.evidence(image, "Tag 3"), several[1], atol=1e-6)
    with pytest.raises(UnknownTag, match=r"the model has no tag tag_33 \(did you mean tag_\d+\?\)"):
        tagger.evidence(image, "tag_33")


def test_an_exact_name_comes_before_another_spelling(tagger):
    model, _ = release.load(TINY)
    tags = [*(f"tag {number}" for number in range(21)), "XD", "xd"]
    tagger = Tagger(model, tags, torch.device("cpu"), "fp32")
    assert [tagger.position(name) for name in ("XD", "xd", "Xd", "Tag_4")] == [21, 22, 22, 4]


def test_the_map_covers_the_white_square_around_an_image(tagger):
    """An image twice as wide as high fills the middle half of the rows."""
    rng = np.random.default_rng(0)
    base, changed = noise(rng, 32, 64), noise(rng, 32, 64)
    padded = np.full((64, 64, 3), 255, dtype=np.uint8)
    for image in (base, changed):
        padded[16:48] = image
        np.testing.assert_array_equal(tagger.evidence(image, "tag_0"), tagger.evidence(padded.copy(), "tag_0"))


@needs_int8
def test_int8_gives_the_evidence_of_its_own_scores(tmp_path):
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(image_size=32, num_blocks=2, patch_size=8, d_model=64, mlp_dim=128, num_heads=2)
    names = [f"tag_{number}" for number in range(30)]
    release.save(tmp_path, ViT(ViTConfig(n_tags=30, cnn_stem=None, **sizes)), names, "focal2")
    tagger, image = Tagger.load(tmp_path, "cpu", "int8"), noise(np.random.default_rng(0), 40, 40)
    np.testing.assert_allclose(tagger.evidence(image, names).sum(axis=(1, 2)), logit(tagger(image).scores), atol=1e-4)


def test_reduced_precision_rounds_the_tokens_alone():
    exact, rounded = Tagger.load(TINY, "cpu", "fp32"), Tagger.load(TINY, "cpu", "bf16")
    image = noise(np.random.default_rng(0), 40, 40)
    maps = rounded.evidence(image, exact.tags)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, exact.evidence(image, exact.tags), atol=0.02)


def test_a_backbone_without_a_head_over_patches_is_refused_in_one_line(tmp_path):
    release.save(tmp_path, TimmConfig(3, "test_convnext", 64).build(), ["a", "b", "c"], "focal2")
    tagger = Tagger.load(tmp_path, "cpu")
    assert not tagger.has_evidence
    with pytest.raises(EvidenceError, match=r"^evidence: not for a backbone of timm, [^\n]*$"):
        tagger.evidence(np.zeros((8, 8, 3), np.uint8), "a")


def test_a_drawing_colours_patches_for_and_against():
    evidence = np.array([[1.0, 0.0], [-0.5, 0.0]], dtype=np.float32)
    drawn = np.asarray(drawings.overlay(Image.new("RGB", (20, 20), (128, 128, 128)), evidence)).astype(int)
    half = len(drawn) // 2
    assert drawn[half // 2, half // 2].tolist() == [210, 103, 26]  # four fifths of orange, one of grey
    assert drawn[3 * half // 2, half // 2].tolist() == [77, 113, 149]  # two fifths of blue
    assert drawn[half // 2, 3 * half // 2].tolist() == [128, 128, 128]
    assert drawings.overlay(Image.new("RGB", (20, 10)), np.zeros((2, 2), np.float32)).size == drawn.shape[:2]


def test_rotated_photographs_are_drawn_and_explained_upright(tagger, tmp_path):
    pixels = noise(np.random.default_rng(0), 40, 64)
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    scores = drawings.write(tagger, tmp_path / "a.jpg", tagger.tags, tmp_path / "out" / "a.png")
    expected = dict(zip(tagger.tags, tagger(tmp_path / "a.jpg").scores, strict=True))
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert scores == pytest.approx({tag: expected[tag] for tag in scores}, abs=1e-5)
    assert Image.open(tmp_path / "out" / "a.png").size[0] > 0

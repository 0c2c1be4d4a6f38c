"""TrivialAugment, RandAugment and mixup against torchvision's, operation by operation."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from joytag.data import augment

NAMES = {name: "".join(part.capitalize() for part in name.split("_")) for name in augment.OPERATIONS}
NAMES["autocontrast"] = "AutoContrast"
AT_MOST = {"autocontrast": 0.1}  # mean difference, where it is more than a few values' rounding
TRIVIAL, RAND = augment.SPACES["trivial"], augment.SPACES["rand"]


def example_image(seed: int, size: int = 48) -> torch.Tensor:
    """A smooth image with some noise and a wide histogram, uint8 [3, size, size]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 6))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0]
    return (smooth + torch.from_numpy(rng.normal(0, 6, smooth.shape))).clamp(0, 255).to(torch.uint8)


def apply(images: torch.Tensor, operation: str, magnitude: float) -> torch.Tensor:
    index = torch.full((len(images),), list(augment.OPERATIONS).index(operation))
    return augment.apply(images.clone(), augment.Draws(index, torch.full((len(images),), magnitude)))


def draw(keys: Sequence[Sequence[int]], size: int = 48) -> augment.Draws:
    (draws,) = augment.draw(keys, TRIVIAL, size)
    return draws


@pytest.mark.parametrize(
    ("space", "theirs"),
    [
        (TRIVIAL, TrivialAugmentWide()._augmentation_space(augment.BINS)),
        (RAND, RandAugment()._augmentation_space(augment.BINS, (200, 200))),
    ],
    ids=["wide", "rand"],
)
def test_spaces_match_torchvision(space, theirs):
    assert {NAMES[name] for name in augment.OPERATIONS} == set(theirs)
    for name in augment.OPERATIONS:
        magnitudes, signed = theirs[NAMES[name]]
        assert signed == (space.strongest(name, 200) > 0)
        if magnitudes.ndim:
            ours = [space.magnitude(name, level, 200) for level in range(augment.BINS)]
            np.testing.assert_allclose(ours, magnitudes.numpy(), atol=1e-4)


def test_rand_augment_applies_two_operations_at_one_magnitude():
    defaults = RandAugment()
    assert (RAND.number, RAND.level) == (defaults.num_ops, defaults.magnitude)
    keys = [(0, 0, 0, row) for row in range(2_000)]
    first, second = augment.draw(keys, RAND, 224)
    assert not torch.equal(first.operations, second.operations)
    for draws in (first, second):
        for index, name in enumerate(augment.OPERATIONS):
            result = draws.magnitudes[draws.operations == index]
            torch.testing.assert_close(result.abs(), torch.full_like(result, RAND.magnitude(name, 9, 224)))
            assert ((result < 0).any() and (result > 0).any()) == (RAND.strongest(name, 224) > 0)


def test_mixup_mixes_neighbours_by_their_shares():
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.rand(4, 3, 2, 2, generator=rng), torch.tensor([[1.0, 0], [0, 0], [1, 1], [0, 1]])
    shares = torch.tensor([0.75, 1.0, 0.0, 0.5])
    mixed, targets = augment.mixup(images, labels, shares)
    for row, other in enumerate((1, 0, 3, 2)):
        expected = shares[row] * images[row] + (1 - shares[row]) * images[other]
        torch.testing.assert_close(mixed[row], expected)
    torch.testing.assert_close(targets, torch.tensor([[0.75, 0], [0, 0], [0, 1], [0.5, 1]]))


@pytest.mark.parametrize("operation", augment.OPERATIONS)
@pytest.mark.parametrize("level", [0, 1, 7, 15, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_match_torchvision_on_pil_images(operation, level, sign):
    magnitude = TRIVIAL.magnitude(operation, level, 48) * (sign if TRIVIAL.strongest(operation, 48) else 1)
    images = torch.stack([example_image(seed) for seed in range(3)])
    ours = apply(images, operation, magnitude)

    for image, our in zip(images, ours, strict=True):
        theirs = _apply_op(to_pil_image(image), NAMES[operation], magnitude, InterpolationMode.BILINEAR, [255] * 3)
        difference = (our.int() - pil_to_tensor(theirs).int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() <= AT_MOST.get(operation, 0.02)


def test_equalize_and_autocontrast_do_not_change_flat_images():
    images = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    for operation in ("equalize", "autocontrast"):
        assert torch.equal(apply(images, operation, 0), images)


def test_an_image_is_augmented_equally_in_any_batch():
    images = torch.stack([example_image(seed) for seed in range(40)])
    keys = [(0, 0, 1, row) for row in range(40)]
    whole = augment.apply(images.clone(), draw(keys))
    for row in range(40):
        alone = augment.apply(images[row : row + 1].clone(), draw(keys[row : row + 1]))
        assert torch.equal(alone[0], whole[row])


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
@settings(max_examples=20)
def test_draws_are_in_range_and_differ_between_epochs(seed, epoch):
    first = draw([(seed, 0, epoch, row) for row in range(64)])
    second = draw([(seed, 0, epoch + 1, row) for row in range(64)])
    assert first.operations.min() >= 0
    assert first.operations.max() < len(augment.OPERATIONS)
    assert not torch.equal(first.operations, second.operations)


def test_draws_are_uniform():
    draws = draw([(0, 0, 0, row) for row in range(14_000)])
    counts = torch.bincount(draws.operations, minlength=len(augment.OPERATIONS))
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    signed = draws.magnitudes[draws.operations == list(augment.OPERATIONS).index("rotate")]
    assert abs((signed < 0).float().mean() - 0.5) < 0.1

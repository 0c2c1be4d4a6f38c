"""Other programs: what they read from an export gives the tags of `joytag tag`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from clients import CLIENTS, PADS_LATE, RESIZES_OTHERWISE
from paths import ROOT
from PIL import Image

from joytag import Tagger
from joytag.data.dataset import Dataset
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.evaluation.contenders import open_taggers
from joytag.models.wd_onnx import OnnxTagger
from joytag.tagging.captions import read_thresholds

IMAGES = 200
SIZES = ((1, 1), (2, 3), (5, 300), (300, 5), (16, 16), (40, 31), (64, 64))  # tiny, tall, wide, the model's own, others
QUICKSTART = ROOT / "runs/openmoji/release"


def draw(count: int = IMAGES) -> list[Image.Image]:
    """Images of one or two colours, some of them transparent."""
    rng = np.random.default_rng(1)
    drawn = []
    for number in range(count):
        channels = 4 if number % 4 == 0 else 3
        colours = Image.fromarray(rng.integers(0, 256, (1, 1 + number % 2, channels), dtype=np.uint8))
        drawn.append(colours.resize(SIZES[number % len(SIZES)], Image.Resampling.BILINEAR))
    return drawn


def tags_of(tagger: Tagger, images: list[Image.Image], threshold=DEFAULT_THRESHOLD) -> list[set[str]]:
    return [set(tagger(image, threshold).tags) for image in images]


def read_by(name: str, exports: Path, images: list[Image.Image], threshold=DEFAULT_THRESHOLD) -> list[set[str]]:
    layout, client = CLIENTS[name]
    return [client(exports / layout, image, threshold) for image in images]


class Expected(NamedTuple):
    """Images, and the tags that `Tagger` finds in each."""

    tagger: Tagger
    images: list[Image.Image]
    tags: list[set[str]]

    @classmethod
    def by(cls, release: Path, images: list[Image.Image]) -> "Expected":
        tagger = Tagger.load(release, "cpu", "fp32")
        return cls(tagger, images, tags_of(tagger, images))


def check(name: str, exports: Path, expected: Expected) -> str:
    """Compare a program's tags with the tagger's image by image; say how many decisions and tags are equal.

    Programs that resize otherwise may decide otherwise on images that they resize, close to the threshold; images that
    they enlarge differ most, at the edges.
    """
    tagger, images, tags = expected
    if name in PADS_LATE:
        narrow = np.array([max(image.size) >= 2 * tagger.size * min(image.size) for image in images])
        for number in np.flatnonzero(narrow):
            with pytest.raises(ValueError, match="must be > 0"):
                read_by(name, exports, [images[number]])
        wide = np.flatnonzero(~narrow)
        images, tags = [images[number] for number in wide], [tags[number] for number in wide]
    found = read_by(name, exports, images)
    assert sum(map(len, tags)) > len(images) / 2, "there is something to tag"
    differing = [len(a ^ b) for a, b in zip(found, tags, strict=True)]
    if name not in RESIZES_OTHERWISE:
        assert not any(differing)
    assert not any(number for number, image in zip(differing, images, strict=True) if image.size == (tagger.size,) * 2)
    shrunk = [number for number, image in zip(differing, images, strict=True) if max(image.size) > tagger.size]
    assert sum(shrunk) <= 0.01 * len(tagger.tags) * len(shrunk)
    common = sum(len(a & b) for a, b in zip(found, tags, strict=True)) / sum(map(len, map(set.union, found, tags)))
    return f"{1 - sum(differing) / len(images) / len(tagger.tags):.3%} of decisions, {common:.1%} of the tags"


@pytest.mark.parametrize("name", CLIENTS)
def test_every_program_finds_the_tags_of_joytag_tag(name, drawn, exports):
    check(name, exports, drawn)


@pytest.fixture(scope="module")
def drawn(measured) -> Expected:
    return Expected.by(measured, draw())


def test_imgutils_uses_the_thresholds_that_the_evaluation_suggests(measured, exports):
    tagger = Tagger.load(measured, "cpu", "fp32")
    images = [image for image in draw() if image.size == (tagger.size,) * 2]
    thresholds = read_thresholds(measured / "thresholds.csv", tagger.tags, DEFAULT_THRESHOLD)
    assert read_by("imgutils", exports, images, None) == tags_of(tagger, images, thresholds)


def test_this_project_reads_its_own_wd_export(
    measured,
    exports,
):
    wd, _ = open_taggers([exports / "wd", measured], device="cpu")
    assert wd.onnx is not None
    assert wd.threshold == DEFAULT_THRESHOLD, "which the manifest names, not 0.35 as of other WD taggers"
    tags = wd.onnx.tags
    assert tags.names == ["red", "green", "blue", "light", "reddish_(hue)"]
    assert tags.categories.tolist() == [0, 0, 0, 4, 4]
    assert tags.counts.tolist() == Dataset.open(measured.with_name("data")).tags.totals.tolist()
    model = OnnxTagger.load(exports / "wd")
    squares = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    scores = np.stack([Tagger.load(measured, "cpu", "fp32")(square).scores for square in squares])
    np.testing.assert_allclose(model(squares), scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_every_program_finds_the_tags_of_the_quickstarts_model(name, quickstart):
    expected, exports = quickstart
    print(f"{name}: {check(name, exports, expected)}")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart's model, its exports, and 200 of its images: drawings as they are, transparent, tiny, tall."""
    from joytag.cli import export

    output, data = tmp_path_factory.mktemp("quickstart") / "exports", ROOT / "data/openmoji"
    export.main(["--model", str(QUICKSTART), "--to", "all", "--output", str(output), "--data", str(data)])
    dataset = Dataset.open(data)
    hashes = dataset.posts("validation").hashes[:IMAGES]
    images = [Image.open(dataset.image_path(row.tobytes())).convert("RGB") for row in hashes]
    for number, image in enumerate(images):
        if number % 5 == 0:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        if number % 5 == 1:
            images[number] = image.resize((40 + number % 60, 400))
        if number % 5 == 2:
            images[number] = image.resize((1 + number % 9, 1 + number % 7))
    return Expected.by(QUICKSTART, images), output

"""Training benchmarks run on small models, and ours and the references do the same work."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from small_steps import SETTINGS, SMALL, Local

from joytag.benchmarks import baselines, training
from joytag.benchmarks.remote import Remote
from joytag.benchmarks.stored_images import StoredImages
from joytag.core import devices
from joytag.core.timing import Timings
from joytag.data import decoders, loader
from joytag.models.architectures import training_flop
from joytag.models.stem import ITEMS
from joytag.models.vit import ViT, ViTConfig
from joytag.training import dry_run


@pytest.fixture
def copies() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 32, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(training, "Remote", Local)


def test_our_steps_have_the_losses_of_the_reference():
    """Clipping, decay and trust ratios included; without stochastic depth, whose draws differ."""
    for more in ((), ("micro_batch=4",)):
        case = training.Case(16, 8, "cpu", SETTINGS + more)
        ours, theirs = (list(islice(steps(case), 8)) for steps in (training.our_steps, training.reference_steps))
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert ours[-1] < ours[0]


@pytest.mark.parametrize("layer", ITEMS)
def test_the_reference_computes_the_model_with_every_kind_of_stem(layer):
    stem = "conv:c=8;ln;relu;conv:c=32" if layer == "conv" else f"conv:c=8;{layer};conv:c=32"
    config = ViTConfig(n_tags=5, image_size=16, **SMALL | {"cnn_stem": stem})
    torch.manual_seed(0)
    ours, theirs = ViT(config).train(), baselines.EagerViT(config).train()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)


@pytest.mark.benchmarks
def test_the_loader_and_augmentation_are_compared(copies, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SIZES", (16,))
    written = tmp_path / "figures.json"
    text = training.measure("loader", copies, "cpu", 8, 1, quick=True, json_file=written)
    assert text.count("Pillow, from JPEG") == text.count("Pillow, from WebP") == 1
    works = [figures["work"] for figures in json.loads(written.read_text())["comparisons"]]
    assert works == ["load 16 px", "load 16 px"]
    assert "torchvision" in training.measure("augment", copies, "cpu", 8, 1, quick=True, json_file=None)


def test_augmentation_is_compared_with_a_step(in_this_process):
    case = training.Case(16, 4, "cpu", SETTINGS)
    comparison = training.compare_augmentation_on_device(case, 1)
    assert comparison.work == "augment 4 at 16 px"
    assert comparison.count == 4


def test_feeding_is_compared_with_a_step(copies, in_this_process, monkeypatch):
    load, step, loaded, steps = loader.batches, training.train_step, [], []

    def counted_batches(*arguments, **options):
        for batch in load(*arguments, **options):
            loaded.append(len(batch))
            yield batch

    def counted_step(*arguments):
        steps.append(arguments)
        return step(*arguments)

    monkeypatch.setattr(loader, "batches", counted_batches)
    monkeypatch.setattr(training, "train_step", counted_step)
    comparison = training.compare_feeding(copies, training.Case(16, 4, "cpu", SETTINGS), workers=1, rounds=2)
    assert comparison.work == "feed 16 px by 1 processes"
    assert len(comparison.timings.ours) == len(comparison.timings.reference) == 2
    assert loaded == [4] * 2 * 3 * training.AHEAD, "each round those loaded ahead, then twice as many that are timed"
    assert len(steps) == 1 + 2, "one to warm up"


def test_settings_that_cannot_be_measured_are_refused_first(copies):
    with pytest.raises(ValueError, match=r"optimizer\.lrr: .*optimizer\.lr"):
        training.measure("step", [], "cpu", 8, 1, quick=True, json_file=None, settings=["optimizer.lrr=1"])
    for setting, message in (
        ("micro_batch=auto", "micro_batch: auto cannot be measured"),
        ("model.timm=resnet18", r"model\.timm: has no reference"),
    ):
        with pytest.raises(ValueError, match=message):
            training.measure("step", [], "cpu", 8, 1, quick=True, json_file=None, settings=[setting])


def test_all_writes_the_rates_that_a_dry_run_reads(copies, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SIZES", (16, 32))
    monkeypatch.setattr(dry_run, "RATES", tmp_path / "runs" / "rates.json")
    seconds = training.side_by_side(lambda: None, lambda: None, 1)
    comparison = training.Comparison("work", "another way", 8, "images", seconds)
    monkeypatch.setattr(training, "compare_steps", lambda *arguments: replace(comparison, note="losses 1.0% apart"))
    monkeypatch.setattr(training, "compare_loading", lambda *arguments: [comparison] * 4)
    monkeypatch.setattr(training, "compare_optimizers", lambda *arguments: comparison)
    monkeypatch.setattr(training, "training_flop", lambda config, size: 1000)
    text = training.measure("all", copies, "cpu", 8, 1, quick=True, json_file=None)
    rates = dry_run.read_rates()
    assert "\nwork: losses 1.0% apart\n" in text
    assert str(dry_run.RATES) in text
    assert rates is not None
    assert rates.loading.keys() == {16, 32}
    assert rates.workers == 0
    assert rates.flop == {16: pytest.approx(1000 * 8 / seconds.ours[0])}


def test_on_a_gpu_all_measures_steps_and_feeding_at_both_sizes(copies, monkeypatch, tmp_path):
    """On a simulated GPU."""
    measured = []

    def recorded(name):
        def compare(*arguments):
            (case,) = (value for value in arguments if isinstance(value, training.Case))
            measured.append((name, case.size, case.batch))
            return training.Comparison(name, "another way", case.batch, "images", Timings([1.0], [2.0]))

        return compare

    monkeypatch.setattr(dry_run, "RATES", tmp_path / "runs" / "rates.json")
    monkeypatch.setattr(devices, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(decoders, "default_workers", lambda *arguments: 16)
    other = training.Comparison("other", "another way", 8, "images", Timings([1.0], [2.0]))
    monkeypatch.setattr(training, "compare_loading", lambda *arguments: [other] * 4)
    monkeypatch.setattr(training, "compare_optimizers", lambda *arguments: other)
    names = ("compare_augmentation_on_device", "compare_steps", "compare_feeding")
    for name in names:
        monkeypatch.setattr(training, name, recorded(name))
    training.measure("all", copies, "cuda", None, 1, quick=False, json_file=None)
    assert measured == [(name, *case) for name in names for case in ((224, 256), (448, 64))]
    rates = dry_run.read_rates()
    assert rates is not None
    assert rates.machine.startswith("NVIDIA H100")
    assert rates.workers == 16
    assert rates.loading == {224: 256 / 16, 448: 64 / 16}
    assert rates.flop[448] == 64 * training_flop(ViTConfig(n_tags=5813), 448)


def test_the_share_of_the_peak_is_reported(monkeypatch, in_this_process):
    monkeypatch.setattr(training, "peak_flops", lambda device: 1e12)
    case = training.Case(16, 4, "cpu", SETTINGS)
    comparison = training.compare_steps(case, 1)
    ours, theirs = (rate * training.step_flop(case) / 1e12 for rate in comparison.rates())
    assert comparison.note.endswith(f"; {ours:.1%} of the peak of 1 TFLOP/s, the reference {theirs:.1%}")


@pytest.mark.faults
def test_a_process_that_dies_is_noticed():
    with Remote(dying) as remote, pytest.raises(ValueError, match="has died"):
        remote()
    assert not remote.process.is_alive()


@pytest.mark.benchmarks
def test_a_process_returns_one_value_per_call():
    with Remote(counting, 3) as remote:
        remote()
        remote()
    assert remote.results == [3.0, 4.0]


def dying():
    raise SystemExit(1)
    yield 0.0


def counting(start):
    yield from (float(start + number) for number in range(9))


def test_stored_images_are_found_by_their_hashes(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(3)]
    posts = StoredImages.of(files, n_tags=7).posts("train")
    assert [StoredImages.of(files).image_path(hash.tobytes()) for hash in posts.hashes] == files
    assert posts.labels(np.arange(3), 7).shape == (3, 7)

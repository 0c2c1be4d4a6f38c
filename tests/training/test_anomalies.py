"""Loss spikes and undecodable images during training."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from datasets import add_originals
from training_runs import build_run

from joytag.core import jsonl
from joytag.data.dataset import Dataset
from joytag.data.order import training_keys
from joytag.training import step as training_step
from joytag.training import trainer
from joytag.training.anomalies import SpikeDetector


def test_a_thousandfold_loss_is_a_spike_but_noise_is_not():
    rng = np.random.default_rng(0)
    losses = 1 / np.sqrt(1 + np.arange(1000) / 50) * np.exp(rng.normal(0, 0.1, 1000))
    spikes = SpikeDetector()
    assert [spikes.score(loss) for loss in losses] == [None] * 1000
    score = spikes.score(1000 * losses[-1])
    assert score is not None
    assert score > 100
    assert spikes.score(losses[-1]) is None


def test_the_score_is_the_robust_z_score():
    spikes = SpikeDetector(limit=0)
    for loss in range(101):
        spikes.score(float(loss))
    assert spikes.score(150.0) == pytest.approx(0.6745 * (150 - 50) / 25)


def test_equal_and_falling_losses_are_not_spikes():
    spikes = SpikeDetector()
    assert all(spikes.score(loss) is None for loss in [1.0] * 100 + [1.001] * 100 + [0.1] * 100)


def test_a_higher_loss_after_a_restart_is_not_a_spike(run_values, monkeypatch):
    stages = [{"image_size": 8, "samples": 400}, {"image_size": 16, "samples": 400}]
    run, batch_loss = build_run(run_values, stages=stages, every={"evaluate": 10_000}), training_step.batch_loss
    monkeypatch.setattr(
        training_step,
        "batch_loss",
        lambda *inputs: batch_loss(*inputs) * (1 if inputs[1].images.shape[-1] == 8 else 100),
    )
    trainer.train(run, None)
    assert jsonl.read(Path(run.config.output) / "events.jsonl") == []


@pytest.mark.parametrize("has_originals", [False, True])
def test_a_loss_spike_is_recorded_with_its_images(run_values, damaged, monkeypatch, has_originals):
    if has_originals:
        run_values["data"] |= {"directory": str(damaged[0]), "max_bad": 0.12}
    run = build_run(run_values, stages=[{"image_size": 8, "samples": 800}], every={"evaluate": 10_000})
    take_step, batch_loss = training_step.train_step, training_step.batch_loss

    def one_large_loss(state, *arguments):
        factor = 1000.0 if state.samples == 640 else 1.0
        monkeypatch.setattr(training_step, "batch_loss", lambda *inputs: batch_loss(*inputs) * factor)
        return take_step(state, *arguments)

    monkeypatch.setattr(trainer, "train_step", one_large_loss)
    trainer.train(run, None)
    [event] = jsonl.read(Path(run.config.output) / "events.jsonl")
    assert (event["event"], event["samples"]) == ("loss spike", 648)
    assert event["score"] > 100
    keys = next(training_keys(0, 0, 50, 640, 8, 8, 0, 1))
    assert event["ids"] == [row for _, row in keys], "rows are ids in this dataset"
    assert event.get("paths") == ([f"originals/{row}.png" for _, row in keys] if has_originals else None)


@pytest.fixture
def damaged(dataset_directory, tmp_path) -> tuple[Path, list[int]]:
    """A copy of the dataset with images damaged as disks and downloads damage them, and their rows.

    It records the images' original files.
    """
    directory = tmp_path / "damaged"
    shutil.copytree(dataset_directory, directory)
    add_originals(directory, "train")
    dataset = Dataset.open(directory)
    paths = [dataset.image_path(sha256.tobytes()) for sha256 in dataset.posts("train").hashes]
    paths[3].unlink()
    paths[11].write_bytes(b"")
    paths[19].write_bytes(paths[19].read_bytes()[:200])
    paths[27].write_bytes(b"<html>not found</html>")
    paths[35].unlink()
    paths[35].mkdir()
    (tmp_path / "huge.ppm").write_bytes(b"P6 60000 60000 255\n")
    paths[43].write_bytes((tmp_path / "huge.ppm").read_bytes())
    return directory, [3, 11, 19, 27, 35, 43]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_replaced_and_each_is_listed_once(run_values, damaged, workers):
    directory, bad = damaged
    loading = run_values["data"] | {"directory": str(directory), "workers": workers, "max_bad": 0.12}
    run = build_run(run_values, data=loading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = trainer.train(run, None)
    assert state.samples == 184
    lines = jsonl.read(Path(run.config.output) / "quarantine.jsonl")
    assert sorted(line["row"] for line in lines) == bad
    assert all(
        line["post_id"] == line["row"] and line["source"] == ["drawn", "photo"][line["row"] % 2] for line in lines
    )
    assert all(line["path"] == f"originals/{line['row']}.png" and line["reason"] for line in lines)


def test_too_many_bad_images_end_the_run(run_values, damaged):
    run = build_run(run_values, data=run_values["data"] | {"directory": str(damaged[0]), "max_bad": 0.05})
    with pytest.raises(ValueError, match=r"^data\.max_bad: \d+\.0% of the images cannot be decoded, see .*"):
        trainer.train(run, None)

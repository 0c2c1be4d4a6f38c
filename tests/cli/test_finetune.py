"""`joytag finetune`: mistakes, and which settings win."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from commands import assert_one_line, succeeded
from paths import TINY
from PIL import Image

from joytag.cli import finetune
from joytag.core.errors import Exit, ExitCode, Stopped
from joytag.data.dataset import SPLITS, Dataset
from joytag.evaluation import forgetting
from joytag.models import release
from joytag.training import step, trainer
from joytag.training.state import save_state


@pytest.fixture
def labelled_folder(image_folder) -> Path:
    """A folder of four images without tags, and twelve with one of two tags."""
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_folder / f"{number}.png")
        (image_folder / f"{number}.txt").write_text("gradient" if number % 2 else "ramp")
    return image_folder


def test_a_mistake_ends_in_one_line(call, image_folder, tmp_path):
    done = call("finetune", image_folder, "--model", TINY, "--output", tmp_path / "o", "optimizer.lrr=1")
    assert_one_line(done, "did you mean optimizer.lr?")
    assert not (tmp_path / "o").exists()
    (tmp_path / "empty").mkdir()
    assert_one_line(call("finetune", tmp_path / "gone", "--model", TINY, "--output", tmp_path / "o"), "gone")
    assert_one_line(call("finetune", tmp_path / "empty", "--model", TINY, "--output", tmp_path / "o"), "sidecars")
    assert_one_line(call("finetune", tmp_path, "--model", tmp_path / "no", "--output", tmp_path / "o"), "no such")


def test_what_is_no_setting_and_a_file_instead_of_a_folder_are_refused(call, image_folder, tmp_path):
    flags = ("--model", TINY, "--output", tmp_path / "o")
    assert_one_line(call("finetune", image_folder, tmp_path, *flags), f"{tmp_path}: give one folder")
    assert_one_line(call("finetune", tmp_path / "gone", *flags), f"finetune: {tmp_path / 'gone'}: no such folder")
    assert_one_line(call("finetune", image_folder, *flags, "tags.min_cuont=3"), "did you mean tags.min_count?")
    done = call("finetune", image_folder, *flags)
    assert_one_line(done, "sidecars here; write them first: joytag tag")


def test_settings_of_the_dataset_are_set_on_the_same_command_line(tmp_path):
    overrides = ["tags.min_count=3", "optimizer.lr=0.5", "sources.0.separator=space"]
    options = finetune.parse([str(tmp_path), "--model", str(TINY), "--output", "run", *overrides])
    dataset, run = finetune.build_settings(options, TINY), finetune.run_settings(options, TINY, [])
    assert dataset.tags.min_count == 3
    assert dataset.sources[0].separator == "space"
    assert dataset.sources[0].path == str(tmp_path)
    assert run.optimizer.lr == 0.5


def test_rejected_tags_reach_the_loss(call, labelled_folder, tmp_path, monkeypatch):
    """Beside every second image a new tag is rejected, and the labels leave the others open."""
    known = (TINY / "top_tags.txt").read_text().split("\n")[0]
    for number in range(12):
        text = f"-gradient, -{known}" if number % 2 else "gradient"
        (labelled_folder / f"{number}.txt").write_text(text)
    batches, read_labels = [], step.read_labels

    def recorded(*inputs):
        batches.append(read_labels(*inputs))
        return batches[-1]

    monkeypatch.setattr(step, "read_labels", recorded)
    settings = [
        "sources.0.negatives=true",
        "sources.0.exhaustive=false",
        "stages.0.samples=64",
        "tracking.wandb=disabled",
    ]
    done = call("finetune", labelled_folder, "--model", TINY, "--output", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "run" / "dataset")
    new, old = (dataset.tags.names.index(name) for name in ("gradient", known))
    assert dataset.exhaustive == [False]
    assert sum(len(dataset.posts(split)) for split in SPLITS) == 12, "an image with rejected tags alone is labelled"
    assert len(batches) == 2
    for targets, rejected in batches:
        assert rejected is not None
        assert torch.equal(rejected[:, new], targets[:, new] == 0)
        assert torch.equal(rejected[:, old], rejected[:, new])
        assert torch.equal(targets[:, old].isnan(), ~rejected[:, old])
        assert not targets[:, new].isnan().any()
        assert targets.isnan().sum() == targets[:, old].isnan().sum() + len(targets) * (len(dataset.tags) - 2)


@pytest.mark.parametrize(
    ("others", "settings", "is_warned"),
    [
        ("gradient", (), True),
        ("ramp", (), False),
        ("tag_0", ("sources.0.negatives=true", "sources.0.exhaustive=false"), True),
        ("tag_0, -gradient", ("sources.0.negatives=true", "sources.0.exhaustive=false"), False),
    ],
)
def test_a_new_tag_that_no_image_lacks_or_rejects_is_warned_of(
    call, labelled_folder, tmp_path, others, settings, is_warned
):
    for number in range(0, 12, 2):
        (labelled_folder / f"{number}.txt").write_text(others)
    run = ("--output", tmp_path / "run", "stages.0.samples=32", "tracking.wandb=disabled", *settings)
    done = succeeded(call("finetune", labelled_folder, "--model", TINY, *run))
    assert ("No training image lacks gradient, so the model will find it everywhere." in done.stdout) == is_warned
    if others == "gradient":
        assert "all of them have these tags, so false alarms do not count" in done.stdout


def test_an_interrupted_measurement_says_that_the_model_is_whole(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, "summary", Mock(side_effect=KeyboardInterrupt))
    run = tmp_path / "run"
    with pytest.raises(Exit, match="is whole, but not measured") as end:
        finetune.main([str(labelled_folder), "--model", str(TINY), "--output", str(run), "stages.0.samples=32"])
    assert end.value.code == ExitCode.INTERRUPTED
    assert release.is_complete(run / "release")


def test_labels_that_changed_since_an_interruption_need_a_new_run(call, labelled_folder, tmp_path):
    command = [str(labelled_folder), "--model", str(TINY), "--output", str(tmp_path / "run"), "tracking.wandb=disabled"]
    finetune.build(finetune.build_settings(finetune.parse(command), TINY))
    (labelled_folder / "0.txt").write_text("gradient")
    assert_one_line(call("finetune", *command), "have changed since it was built; start again with another --output")


def test_changed_settings_of_an_interrupted_run_are_named_with_the_flag_that_helps(
    call, labelled_folder, tmp_path, monkeypatch
):
    def save_and_stop(state, run, *_):
        save_state(state, run, required=True)
        raise Stopped("stopped", ExitCode.REQUEUE)

    command = ["finetune", labelled_folder, "--model", TINY, "--output", tmp_path / "run", "tracking.wandb=disabled"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "take_steps", save_and_stop)
        assert call(*command).returncode == ExitCode.REQUEUE
    for change in ("optimizer.lr=0.5", "seed=1"):
        done = call(*command, change)
        assert_one_line(done, "now; change them back to continue, or start again with another --output\n")


def test_settings_of_the_command_line_win_over_chosen_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = finetune.parse([".", "--model", str(TINY), "--output", "run", "optimizer.lr=0.5"])
    config = finetune.run_settings(options, TINY, ["stages.0.samples=5000", "optimizer.lr=0.25"])
    assert config.stages[0].samples == 5_000
    assert config.optimizer.lr == 0.5
    assert config.distill
    assert config.data.directory == str(Path("run/dataset"))


def test_a_config_of_ones_own_is_used_as_it_is(call, labelled_folder, tmp_path):
    values = {"output": "x", "init_from": "x", "data": {"directory": "x", "augment": "none"}, "batch_size": 8}
    values |= {"stages": [{"samples": 16}], "optimizer": {"lr": 0.125}, "tracking": {"wandb": "disabled"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    flags = ("--model", TINY, "--output", tmp_path / "run", "--config", "mine.yaml")
    done = call("finetune", labelled_folder, *flags)
    assert done.returncode == 0, done.stderr
    assert "training images: 16 samples, peak rate 0.125, retain 0\n" in done.stdout

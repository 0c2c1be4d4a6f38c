"""`joytag finetune`: mistakes, and which settings win."""

from pathlib import Path

import numpy as np
import yaml
from commands import assert_one_line
from paths import TINY
from PIL import Image

from joytag.cli import finetune


def test_a_mistake_ends_in_one_line(call, image_folder, tmp_path):
    done = call("finetune", image_folder, "--model", TINY, "--output", tmp_path / "o", "optimizer.lrr=1")
    assert_one_line(done, "did you mean optimizer.lr?")
    assert not (tmp_path / "o").exists()
    (tmp_path / "empty").mkdir()
    assert_one_line(call("finetune", tmp_path / "gone", "--model", TINY, "--output", tmp_path / "o"), "gone")
    assert_one_line(call("finetune", tmp_path / "empty", "--model", TINY, "--output", tmp_path / "o"), "sidecars")
    assert_one_line(call("finetune", tmp_path, "--model", tmp_path / "no", "--output", tmp_path / "o"), "no such")


def test_settings_of_the_command_line_win_over_chosen_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = finetune.parse(["images", "--model", str(TINY), "--output", "run", "optimizer.lr=0.5"])
    config = finetune.run_settings(options, TINY, ["stages.0.samples=5000", "optimizer.lr=0.25"])
    assert config.stages[0].samples == 5_000
    assert config.optimizer.lr == 0.5
    assert config.distill
    assert config.data.directory == str(Path("run/dataset"))


def test_a_config_of_ones_own_is_used_as_it_is(call, image_folder, tmp_path):
    values = {"output": "x", "init_from": "x", "data": {"directory": "x", "augment": "none"}, "batch_size": 8}
    values |= {"stages": [{"samples": 16}], "optimizer": {"lr": 0.125}, "tracking": {"wandb": "disabled"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_folder / f"{number}.png")
        (image_folder / f"{number}.txt").write_text("gradient" if number % 2 else "ramp")
    flags = ("--model", TINY, "--output", tmp_path / "run", "--config", "mine.yaml")
    done = call("finetune", image_folder, *flags)
    assert done.returncode == 0, done.stderr
    assert "training images: 16 samples, peak rate 0.125, retain 0\n" in done.stdout

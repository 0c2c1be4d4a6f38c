"""Several commands in a row, as in the README."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import assert_one_line
from paths import TINY
from PIL import Image

from joytag.core.terminal import quote


def test_a_small_run_goes_from_config_to_tags_without_network(call, offline, run_values, dataset_directory, tmp_path):
    run, config = Path(run_values["output"]), tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(run_values | {"tracking": {"wandb": "auto"}}))
    done = offline("train", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stderr, done.stderr
    assert list(run.glob("wandb/offline-run-*"))
    assert f"joytag evaluate --model {run}/release --data {dataset_directory}\n" in done.stdout
    assert done.stdout.endswith(f"  joytag tag --model {run}/release IMAGES\n")

    again = call("train", "--config", config)
    assert_one_line(again, "--resume auto")
    done = call("train", "--config", config, "--resume", "auto")
    assert done.returncode == 0, done.stderr

    done = call("evaluate", "--model", run / "release", "--data", dataset_directory, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["sources"].keys() == {"drawn", "photo"}
    macro_f1 = metrics["headline"]["fixed"]["macro_f1"]["value"]
    text = (tmp_path / "out" / "full-metrics.txt").read_text()
    f1 = [float(value) for value in re.findall(r"^F1: ([\d.]+)$", text, re.MULTILINE)]
    assert sum(f1) / len(f1) == pytest.approx(macro_f1, abs=5e-5)
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["val_macro_f1"] == pytest.approx(macro_f1)

    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    image = tmp_path / "an image.png"
    Image.new("RGB", (30, 20), "red").save(image)
    options = ("--output", "print", "--threshold", "0.01")
    first = call("tag", "--model", run / "release", image, *options)
    second = call("tag", "--model", checkpoint, image, *options)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    scores = [float(value) for value in re.findall(r"^  ([\d.]+)  tag_\d$", first.stdout, re.MULTILINE)]
    assert scores
    assert scores == sorted(scores, reverse=True)

    (run / "release" / "metrics.json").write_text((tmp_path / "out" / "metrics.json").read_text())
    done = call("show", "--run", run, "--data", dataset_directory)
    assert done.returncode == 0, done.stderr
    assert (run / "contact-sheet.png").exists()
    assert (run / "curves.png").exists()
    assert "The model predicts 6 tags with micro F1" in done.stdout

    shutil.move(run / "release", tmp_path / "finished")  # as during a run
    done = call("show", "--run", run, "--data", dataset_directory)
    assert done.returncode == 0
    assert f"tagged by {checkpoint}" in done.stdout


def test_tag_fine_tune_and_tag_again(call, image_folder, tmp_path):
    """The three commands of the README, with a model that has none of the tags."""
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_folder / f"{number}.png")
        (image_folder / f"{number}.txt").write_text("noise, grainy texture")
    assert call("tag", "--model", TINY, image_folder, "--append").returncode == 0
    run = tmp_path / "my run"
    short = ("stages.0.samples=64", "batch_size=16", "tracking.wandb=disabled")
    done = call("finetune", image_folder, "--model", TINY, "--output", run, *short)
    assert done.returncode == 0, done.stderr
    assert "23 tags kept, 2 tags new, 0 tags dropped" in done.stdout
    assert re.search(r"^\d+ training images: 64 samples, peak rate [\d.]+, retain 0.5$", done.stdout, re.MULTILINE)
    last = done.stdout.splitlines()[-5:]
    assert last[3:] == [
        f"  joytag tag --model {quote(run / 'release')} IMAGES",
        f"  joytag evaluate --model {quote(run / 'release')} --data {quote(run / 'dataset')}",
    ]
    assert re.match(r"old tags: micro F1 (nan|\d\.\d+) against the original model's own tags, on \d+ of your", last[0])
    assert re.match(r"new tags: macro F1 \d\.\d+ on \d+ held-out images \((noise|grainy_texture), ", last[1])
    assert {"noise", "grainy_texture"} <= set((run / "release" / "top_tags.txt").read_text().split("\n"))
    done = call("tag", "--model", run / "release", image_folder, "--append")
    assert done.returncode == 0, done.stderr
    assert_one_line(call("finetune", image_folder, "--model", TINY, "--output", run, *short), "another --output")

    done = call("finetune", image_folder, "--model", TINY, "--output", tmp_path / "new", "--only-new-tags", *short)
    assert done.returncode == 0, done.stderr
    assert "dropped" in done.stdout
    assert "grainy_texture" in (tmp_path / "new/release/top_tags.txt").read_text()

"""`joytag evaluate`: reports with and without the model, several processes, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import assert_one_line
from paths import ROOT, TINY
from requirements import needs_unix
from training_runs import build_run, newest_checkpoint

from joytag.models import release
from joytag.training.state import initial_state, save_state

CPU, FLOAT = torch.device("cpu"), torch.float32


def test_evaluate_names_unusable_inputs_and_flags(call, dataset_directory, tmp_path):
    both = ("--model", TINY, "--data", dataset_directory)
    assert_one_line(call("evaluate", *both), "tags")
    assert_one_line(call("evaluate", *both, "--threshold", "1.5"), "--threshold")
    assert_one_line(call("evaluate", *both, "--batch-size", "0"), "--batch-size")
    assert_one_line(call("evaluate", "--model", TINY), str(TINY), "names a dataset", "add --data")
    assert_one_line(call("evaluate"), "either --model or --predictions")
    assert_one_line(call("evaluate", "--model", TINY, "--predictions", tmp_path), "either --model or --predictions")
    assert_one_line(call("evaluate", "--predictions", tmp_path), str(tmp_path), "no predictions here")
    assert_one_line(call("evaluate", "--predictions", tmp_path, "--groups", tmp_path / "gone.yaml"), "gone.yaml")


@pytest.fixture
def untrained(run_values, tmp_path) -> Path:
    """A release for the dataset."""
    run = build_run(run_values)
    release.save(tmp_path / "untrained", initial_state(run).model, run.dataset.tags.names, "focal2")
    return tmp_path / "untrained"


def reports(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_reports_are_rebuilt_without_model_and_images(call, untrained, dataset_directory, tmp_path):
    data = tmp_path / "dataset"
    shutil.copytree(dataset_directory, data)
    release_files = {path.name for path in untrained.iterdir()}
    done = call("evaluate", "--model", untrained, "--data", data)
    assert done.returncode == 0, done.stderr
    assert "Threshold 0.4" in done.stdout
    first = reports(untrained)
    tables = {"per_tag.parquet", "per_tag.csv", "thresholds.csv", "label_errors.csv"}
    assert {"full-metrics.txt", "metrics.json", "report.html", *tables, *release_files} == first.keys()
    stored = untrained / "predictions"
    done = call("evaluate", "--predictions", stored)
    assert done.returncode == 0, done.stderr
    assert reports(untrained) == first, "with the images of the dataset, which still exists"
    assert b"data:image" in first["report.html"]
    image = next(data.glob("images/*/*/*.jpg"))
    assert call("tag", "--model", untrained, image, "--output", "print").returncode == 0

    stored.rename(tmp_path / "stored")
    shutil.rmtree(untrained)
    shutil.rmtree(data)
    done = call("evaluate", "--predictions", tmp_path / "stored", "--threshold", "0.35", "--output", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "Threshold 0.35" in done.stdout
    again = reports(tmp_path / "new")
    assert again.keys() == first.keys() - release_files
    assert b"data:image" not in again["report.html"]
    assert json.loads(again["metrics.json"])["thresholds"]["fixed"] == 0.35
    assert again["full-metrics.txt"] != first["full-metrics.txt"]
    assert again["thresholds.csv"] == first["thresholds.csv"], "they do not depend on the threshold"
    (tmp_path / "groups.yaml").write_text("even: [tag_0, tag_2, tag_4]\nodd: [tag_1, tag_3, tag_5]\n")
    flags = ("--groups", tmp_path / "groups.yaml", "--data", dataset_directory, "--output", tmp_path / "new")
    done = call("evaluate", "--predictions", tmp_path / "stored", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "new" / "metrics.json").read_text())["groups"].keys() == {"even", "odd"}
    assert b"data:image" in (tmp_path / "new" / "report.html").read_bytes()


def test_another_threshold_does_not_replace_the_reports(call, untrained, dataset_directory):
    model = ("--model", untrained, "--data", dataset_directory)
    assert call("evaluate", *model).returncode == 0
    first = reports(untrained)
    for source in (("--predictions", untrained / "predictions"), model):
        done = call("evaluate", *source, "--threshold", "0.35")
        assert done.returncode == 0, done.stderr
        assert reports(untrained) == first
        metrics = untrained / "at-0.35" / "metrics.json"
        assert json.loads(metrics.read_text())["thresholds"]["fixed"] == 0.35
        assert not (untrained / "at-0.35" / "predictions").exists()
        shutil.rmtree(untrained / "at-0.35")


def test_reports_about_a_checkpoint_survive_its_removal(call, run_values, dataset_directory, tmp_path):
    run = build_run(run_values)
    state = initial_state(run)
    save_state(state, run, required=True)
    path = newest_checkpoint(run)
    data = ("--data", dataset_directory)
    done = call("evaluate", "--model", run_values["output"], *data)  # a run: its newest checkpoint
    assert done.returncode == 0, done.stderr
    results = Path(run_values["output"]) / "evaluations" / path.name
    first = reports(results)
    assert "report.html" in first
    done = call("evaluate", "--predictions", results / "predictions", *data)
    assert done.returncode == 0, done.stderr
    assert reports(results) == first
    shutil.copytree(results / "predictions", path / "predictions")
    done = call("evaluate", "--predictions", path / "predictions", *data)
    assert done.returncode == 0, done.stderr
    assert not list(path.glob("*.html"))
    for command in (("evaluate", "--model", path, *data), ("compare", path, path)):
        assert_one_line(call(*command, "--output", path / "here"), "--output", "is a checkpoint")
    for samples in range(16, 80, 16):  # more than are kept
        state.samples = samples
        save_state(state, run, required=True)
    assert not path.exists()
    assert reports(results) == first


def test_a_run_is_evaluated_by_its_release(call, untrained, dataset_directory, tmp_path):
    untrained.rename(tmp_path / "release")
    done = call("evaluate", "--model", tmp_path, "--data", dataset_directory)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "release" / "report.html").exists()
    assert_one_line(call("evaluate", "--model", tmp_path / "none", "--data", dataset_directory), "none", "missing")


@pytest.mark.faults
@needs_unix
def test_torchrun_shares_an_evaluation(call, untrained, dataset_directory, tmp_path):
    flags = ("--model", untrained, "--data", dataset_directory, "--batch-size", "4")
    done = call("evaluate", *flags, "--output", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, ROOT / "scripts/evaluate.py", *flags, "--output", tmp_path / "shared"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    shared = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("Written") == 1
    alone, together = (reports(tmp_path / name / "predictions") for name in ("alone", "shared"))
    assert {k: v for k, v in alone.items() if k != "provenance.json"} == {
        k: v for k, v in together.items() if k != "provenance.json"
    }
    texts = [(tmp_path / name / "full-metrics.txt").read_text() for name in ("alone", "shared")]
    assert texts[0] == texts[1]

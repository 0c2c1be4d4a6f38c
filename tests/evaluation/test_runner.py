"""Evaluation: the same scores for any number of processes, killed or not; and the same metrics during training."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import add_originals, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import build_run, newest_checkpoint

from joytag.cli.command import report_errors
from joytag.core import distributed
from joytag.core.files import file_hash
from joytag.data import loader, order
from joytag.data.dataset import Dataset
from joytag.evaluation import metrics, predictions_writer, runner
from joytag.evaluation.predictions import Predictions, PredictionsError
from joytag.models import checkpoint, inference, release
from joytag.models.vit import ViT, ViTConfig
from joytag.training import trainer

IMAGES, BATCH = 1001, 16
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return Dataset.open(make_dataset(tmp_path_factory.mktemp("many"), {"train": 20, "validation": IMAGES}))


@pytest.fixture(scope="module")
def model(tmp_path_factory, dataset) -> Path:
    """A release with random weights."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ViTConfig(
        n_tags=6,
        image_size=16,
        num_blocks=2,
        patch_size=4,
        d_model=16,
        mlp_dim=32,
        num_heads=2,
        cnn_stem=None,
        stochdepth_rate=0.5,
    )
    network = ViT(config)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    release.save(directory, network, dataset.tags.names, "focal2")
    return directory


@pytest.fixture
def run(dataset, model):
    """Predict with the model into a directory."""

    def predict(directory: Path, **changes) -> bool:
        given = {"model": model, "dataset": dataset, "split": "validation", "batch": BATCH, "device_name": "cpu"}
        return runner.predict_release(directory, **(given | changes))

    return predict


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset, model) -> Path:
    """The predictions of one process without interruptions."""
    directory = tmp_path_factory.mktemp("whole") / "predictions"
    assert runner.predict_release(directory, model, dataset, "validation", BATCH, device_name="cpu")
    return directory


def test_processes_that_read_different_models_do_not_mix_their_scores(run, monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "run_on_rank_zero", lambda action: {"model.safetensors": "of rank 0"})
    with pytest.raises(release.ReleaseError, match="other processes read another model"):
        run(tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()


def content(directory: Path) -> dict[str, bytes]:
    """Return every file's bytes, but for the date."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    provenance = json.loads(files.pop("provenance.json"))
    assert provenance.pop("date")
    return files | {"provenance": json.dumps(provenance).encode()}


def start(action: Callable[[], object], processes: int, errors: Path) -> list[BaseProcess]:
    """Run an action in forks of this process, with the environment of torchrun; forks need no imports."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def run_action() -> None:
        action()

    def rank(number: int) -> None:
        sys.stderr = errors.with_suffix(f".{number}").open("w", buffering=1)
        os.environ |= {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        report_errors(Path(sys.argv[0]).stem, run_action)

    pytest.importorskip("fcntl")  # Unix has it
    context = multiprocessing.get_context("fork")
    started: list[BaseProcess] = [context.Process(target=rank, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    return started


def together(action: Callable[[], object], processes: int, errors: Path) -> tuple[list[int | None], list[str]]:
    """Run an action in several processes; returns their exit codes and stderr."""
    started = start(action, processes, errors)
    for process in started:
        process.join(60)
    return [process.exitcode for process in started], [
        errors.with_suffix(f".{number}").read_text() for number in range(processes)
    ]


def test_the_model_scores_each_image_once(dataset, model, whole):
    opened, posts = Predictions.open(whole), dataset.posts("validation")
    network, _ = release.load(model)
    images = loader.ImageDataset(dataset, "validation", 16)
    assert opened.ids.tolist() == [*range(IMAGES)]
    assert len({bytes(h) for h in opened.hashes}) == IMAGES
    for rows in (range(16), range(992, 1001)):
        batch = images.__getitems__([(0, row) for row in rows])
        assert isinstance(batch, loader.Batch)
        logits = network((batch.images / 255 - MEAN) / STD)
        np.testing.assert_allclose(opened.scores[rows], logits.sigmoid().detach(), atol=5e-4)
    np.testing.assert_array_equal(opened.labels.toarray(), posts.labels(np.arange(IMAGES), 6))
    assert opened.scores.std() > 0.1, "else any would do"
    facts = {"split": "validation", "image_size": 16, "dtype": "float32", "device": "cpu", "batch": BATCH}
    assert facts.items() <= opened.provenance.items()
    assert opened.provenance["undecodable"] == []
    expected = {name: file_hash(model / name) for name in release.FILES}
    assert opened.provenance["model_files"] == expected


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_write_the_same_bytes(run, whole, tmp_path, processes):
    codes, errors = together(lambda: run(tmp_path / "predictions"), processes, tmp_path / "errors")
    assert codes == [0] * processes, errors
    assert content(tmp_path / "predictions") == content(whole)


def slowly(monkeypatch, seconds: float = 0.01) -> None:
    """Wait before each block, so that tests can interrupt in between."""
    write = predictions_writer.PredictionsWriter.write

    def wait_and_write(*arguments):
        time.sleep(seconds)
        write(*arguments)

    monkeypatch.setattr(predictions_writer.PredictionsWriter, "write", wait_and_write)


def lines(directory: Path) -> int:
    return sum(path.read_text().count("}") for path in directory.glob("work/done.*.jsonl"))


def test_a_killed_evaluation_resumes_with_other_processes_to_the_same_bytes(run, whole, tmp_path, monkeypatch):
    directory, rng, before = tmp_path / "predictions", np.random.default_rng(0), 0
    slowly(monkeypatch)
    for processes in (1, 1, 2, 1, 3):
        started = start(lambda: run(directory), processes, tmp_path / "errors")
        while all(process.is_alive() for process in started) and lines(directory) < before + 5:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        for process in started:
            process.kill()
        for process in started:
            process.join()
        codes = [process.exitcode for process in started]
        assert -signal.SIGKILL in codes, "it ended too early"
        assert 0 not in codes, "it ended too early"
        assert lines(directory) > before, "it started over"
        before = lines(directory)
    assert before < 63
    codes, errors = together(lambda: run(directory), 3, tmp_path / "errors")
    assert codes == [0, 0, 0], errors
    assert lines(directory) == 0
    assert content(directory) == content(whole)


def test_finished_predictions_are_not_repeated(run, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "predictions")
    monkeypatch.setattr(inference, "predict", None)
    assert run(tmp_path / "predictions", batch=32)
    assert content(tmp_path / "predictions") == content(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_evaluation_stopped_by_a_signal_after_a_block_resumes(run, whole, tmp_path, monkeypatch, number, code):
    predict = inference.predict
    calls: list[None] = []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 7:
            os.kill(os.getpid(), number)
        return predict(*arguments)

    def counted(*arguments):
        calls.append(None)
        return predict(*arguments)

    monkeypatch.setattr(inference, "predict", interrupted)
    with pytest.raises(runner.Unfinished) as end:
        run(tmp_path / "predictions")
    assert end.value.code == code
    assert str(end.value) == "stopped after 112 of 1,001 images, as requested"
    calls.clear()
    monkeypatch.setattr(inference, "predict", counted)
    assert run(tmp_path / "predictions")
    assert len(calls) == 63 - 7
    assert content(tmp_path / "predictions") == content(whole)


def test_a_signal_to_one_process_stops_all(run, whole, tmp_path, monkeypatch):
    slowly(monkeypatch)
    directory = tmp_path / "predictions"
    started = start(lambda: run(directory), 2, tmp_path / "errors")
    while lines(directory) < 6:
        time.sleep(0.001)
    assert started[1].pid is not None
    os.kill(started[1].pid, signal.SIGINT)
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [130, 130]
    first, second = ((tmp_path / f"errors.{number}").read_text() for number in (0, 1))
    assert "images, as requested" in first
    assert second == ""
    assert run(directory)
    assert content(directory) == content(whole)


def test_predictions_of_another_model_dataset_or_precision_are_refused(
    run, whole, model, dataset, dataset_directory, tmp_path
):
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    network, tags = release.load(model)
    network.head.bias.data += 1
    release.save(changed, network, tags, "focal2")
    shutil.copytree(whole, tmp_path / "done")
    slow = tmp_path / "begun"
    predictions_writer.PredictionsWriter(slow, IMAGES, 6, BATCH).begin(Predictions.open(whole).provenance)
    for directory in (tmp_path / "done", slow):
        before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        for change, message in (
            ({"model": changed}, "another model"),
            ({"dataset": Dataset.open(dataset_directory)}, "another dataset"),
            ({"split": "train"}, r"another split \(validation there, train now\)"),
            ({"precision": "bf16"}, r"another precision \(float32 there, bfloat16 now\)"),
        ):
            with pytest.raises(
                PredictionsError, match=rf"^{directory}: .*{message}.*; remove it, or choose another out"
            ):
                run(directory, **change)
        assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    codes, errors = together(lambda: run(slow, precision="bf16"), 2, tmp_path / "errors")
    assert codes == [2, 2]
    assert "another precision" in errors[0]
    assert errors[0].count("\n") == 1
    assert errors[1] == ""


def test_undecodable_images_are_left_out_and_listed(dataset, run, whole, tmp_path):
    directory = tmp_path / "dataset"
    shutil.copytree(dataset.directory, directory)
    spoilt, originals = Dataset.open(directory), add_originals(directory, "validation")
    hashes = spoilt.posts("validation").hashes
    bad = [3, 500, *range(992, 1001)]  # all of the last block
    for row in bad:
        spoilt.image_path(hashes[row].tobytes()).write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"11 of 1001 images are left out, the first because of .*provenance\.json lists"
    ):
        run(tmp_path / "predictions", dataset=spoilt)
    opened, expected = Predictions.open(tmp_path / "predictions"), Predictions.open(whole)
    kept = [row for row in range(IMAGES) if row not in bad]
    assert opened.ids.tolist() == kept
    np.testing.assert_allclose(opened.scores, expected.scores[kept], atol=1e-3)
    assert opened.labels.toarray().tolist() == expected.labels.toarray()[kept].tolist()
    listed = opened.provenance["undecodable"]
    assert [(entry["id"], entry["path"]) for entry in listed] == [(row, originals[row]) for row in bad]
    assert all(entry["reason"] for entry in listed)
    codes, errors = together(lambda: run(tmp_path / "shared", dataset=spoilt), 2, tmp_path / "errors")
    assert codes == [0, 0], errors
    assert "left out" in errors[0]
    assert errors[1] == ""
    assert content(tmp_path / "shared") == content(tmp_path / "predictions")


@pytest.mark.parametrize("moment", ["begin", "write", "finish"])
def test_an_evaluation_stopped_by_a_full_disk_resumes(run, whole, tmp_path, monkeypatch, moment):
    """A limit on file sizes, set before a step, simulates the full disk; scores.npy takes 12,140 bytes."""
    resource = pytest.importorskip("resource")
    step = getattr(predictions_writer.PredictionsWriter, moment)

    def cramped(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predictions_writer.PredictionsWriter, moment, cramped)
        codes, errors = together(lambda: run(tmp_path / "predictions"), 1, tmp_path / "errors")
    assert codes == [2]
    assert errors[0].count("\n") == 1
    assert "cannot write" in errors[0]
    assert "File too large; then evaluate again, which resumes" in errors[0]
    assert run(tmp_path / "predictions")
    assert content(tmp_path / "predictions") == content(whole)


def test_a_model_of_another_vocabulary_is_refused(run, model, dataset, tmp_path):
    network, tags = release.load(model)
    release.save(tmp_path / "other", network, [f"other_{tag}" for tag in tags], "focal2")
    with pytest.raises(ValueError, match=r"other: its 6 tags are not those of"):
        run(tmp_path / "predictions", model=tmp_path / "other")
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize("processes", [1, 3])
def test_training_computes_the_histogram_of_the_predictions(dataset, model, whole, tmp_path, processes):
    """The streamed histogram, over any number of processes, is that of the scores on disk."""
    network, _ = release.load(model)

    def stream():
        with distributed.process_group(CPU, 60):
            images = loader.ImageDataset(dataset, "validation", 16)
            table = runner.score_histogram(network, images, BATCH, 0, CPU, FLOAT).table
            np.save(tmp_path / f"{distributed.rank()}.npy", table.numpy())

    codes, errors = together(stream, processes, tmp_path / "errors")
    assert codes == [0] * processes, errors
    opened = Predictions.open(whole)
    stored = metrics.Histogram.zeros(6)
    stored.add(torch.from_numpy(np.array(opened.scores)), torch.from_numpy(opened.labels.toarray()))
    for rank in range(processes):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), stored.table)
    assert stored.table[:, 0].sum() == IMAGES


def test_scoring_uses_evaluation_mode_and_restores_the_previous_mode(dataset, model, monkeypatch):
    network = release.load(model)[0].train()
    images, modes, predict = loader.ImageDataset(dataset, "train", 16), [], inference.predict

    def recorded(*arguments):
        modes.append(arguments[0].training)
        return predict(*arguments)

    monkeypatch.setattr(inference, "predict", recorded)
    runner.score_histogram(network, images, BATCH, 0, CPU, FLOAT)
    assert network.training
    with pytest.raises(runner.Interrupted):
        runner.score_histogram(network, images, BATCH, 0, CPU, FLOAT, should_stop=lambda: True)
    assert network.training
    runner.score_histogram(network.eval(), images, BATCH, 0, CPU, FLOAT)
    assert not network.training
    assert modes
    assert not any(modes)


def test_a_checkpoint_with_predictions_inside_is_still_complete(run_values, tmp_path):
    run = build_run(run_values)
    trainer.train(run, None)
    newest = newest_checkpoint(run)
    assert runner.predict_release(newest / "predictions", newest, run.dataset, "validation", device_name="cpu")
    assert checkpoint.newest(run.root) == newest
    assert checkpoint.is_intact(newest)
    assert trainer.load_state(newest, run).samples == 184
    assert release.load(newest)
    assert len(Predictions.open(newest / "predictions")) == 12


@given(rows=st.integers(1, 40), batch=st.integers(1, 9), world=st.integers(1, 4), done=st.sets(st.integers(0, 39)))
@settings(max_examples=60)
def test_remaining_blocks_do_not_depend_on_the_number_of_processes(rows, batch, world, done):
    shares = [order.evaluation_keys(rows, batch, rank, world, done) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    result = [[row for _, row in block] for step in zip(*shares, strict=True) for block in step if block]
    blocks = [[*range(first, min(first + batch, rows))] for first in range(0, rows, batch)]
    assert result == [block for number, block in enumerate(blocks) if number not in done]

"""Evaluation: the same scores for any number of processes, killed or not; and the same figures during training."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from joytag.cli.command import report_errors
from joytag.core import distributed
from joytag.core.errors import Exit
from joytag.core.files import file_hash
from joytag.data import loader
from joytag.data.dataset import Dataset
from joytag.evaluation import metrics, predictions_writer, runner
from joytag.evaluation.predictions import Predictions, PredictionsError
from joytag.models import checkpoint, inference, release
from joytag.models.vit import ViT, ViTConfig
from joytag.training import trainer, validation
from joytag.training.config import RunSettings

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
    config = ViTConfig(n_tags=6, image_size=16, num_blocks=2, patch_size=4, d_model=16, mlp_dim=32, num_heads=2,
                       cnn_stem=None, stochdepth_rate=0.5)  # fmt: skip
    network = ViT(config)
    torch.nn.init.normal_(network.head.weight, std=0.5)
    release.save(directory, network, dataset.tags.names, "focal2")
    return directory


@pytest.fixture
def run(dataset, model):
    """Have the model's predictions in a directory."""

    def predict(directory: Path, **changes) -> bool:
        given = {"model": model, "dataset": dataset, "split": "validation", "batch": BATCH, "device_name": "cpu"}
        return runner.predict_release(directory, **(given | changes))

    return predict


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset, model) -> Path:
    """The predictions of one process that nothing befell."""
    directory = tmp_path_factory.mktemp("whole") / "predictions"
    assert runner.predict_release(directory, model, dataset, "validation", BATCH, device_name="cpu")
    return directory


def content(directory: Path) -> dict[str, bytes]:
    """Every file, byte by byte, but for the date."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    provenance = json.loads(files.pop("provenance.json"))
    assert provenance.pop("date")
    return files | {"provenance": json.dumps(provenance).encode()}


def start(action: Callable[[], object], processes: int, errors: Path) -> list[multiprocessing.Process]:
    """Do something in copies of this process, which take themselves for torchrun's; saves the imports."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def rank(number: int) -> None:
        sys.stderr = errors.with_suffix(f".{number}").open("w", buffering=1)
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        report_errors(Path(sys.argv[0]).stem, action)

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=rank, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    return started


def together(action: Callable[[], object], processes: int, errors: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes and what was said on stderr, by process."""
    started = start(action, processes, errors)
    for process in started:
        process.join(60)
    return [process.exitcode for process in started], [
        errors.with_suffix(f".{number}").read_text() for number in range(processes)
    ]


def test_scores_are_the_models_each_image_once(dataset, model, whole):
    found, posts = Predictions.open(whole), dataset.posts("validation")
    network, _ = release.load(model)
    pictures = loader.ImageDataset(dataset, "validation", 16)
    assert found.ids.tolist() == [*range(IMAGES)]
    assert len({bytes(h) for h in found.hashes}) == IMAGES
    for rows in (range(16), range(992, 1001)):
        logits = network((pictures.__getitems__([(0, row) for row in rows]).images / 255 - MEAN) / STD)
        np.testing.assert_allclose(found.scores[rows], logits.sigmoid().detach(), atol=5e-4)
    np.testing.assert_array_equal(found.labels.toarray(), posts.labels(np.arange(IMAGES), 6))
    assert found.scores.std() > 0.1, "else any would do"
    told = {"split": "validation", "image_size": 16, "dtype": "float32", "device": "cpu", "batch": BATCH}
    assert told.items() <= found.provenance.items()
    assert found.provenance["undecodable"] == []
    expected = {name: file_hash(model / name) for name in release.FILES}
    assert found.provenance["model_files"] == expected


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_write_the_same_bytes(run, whole, tmp_path, processes):
    codes, errors = together(lambda: run(tmp_path / "predictions"), processes, tmp_path / "errors")
    assert codes == [0] * processes, errors
    assert content(tmp_path / "predictions") == content(whole)


def slowly(monkeypatch, seconds: float = 0.01) -> None:
    """Leave time between the blocks for whatever is to befall them."""
    write = predictions_writer.PredictionsWriter.write

    def wait_and_write(*arguments):
        time.sleep(seconds)
        write(*arguments)

    monkeypatch.setattr(predictions_writer.PredictionsWriter, "write", wait_and_write)


def lines(directory: Path) -> int:
    return sum(path.read_text().count("}") for path in directory.glob("work/done.*.jsonl"))


def test_killed_at_any_moment_and_gone_on_with_by_others_it_writes_the_same_bytes(run, whole, tmp_path, monkeypatch):
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
        assert -signal.SIGKILL in codes and 0 not in codes, "else it ended too early"
        assert lines(directory) > before, "it begins anew"
        before = lines(directory)
    assert before < 63
    codes, errors = together(lambda: run(directory), 3, tmp_path / "errors")
    assert codes == [0, 0, 0], errors
    assert lines(directory) == 0
    assert content(directory) == content(whole)


def test_what_is_done_is_not_done_again(run, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "predictions")
    monkeypatch.setattr(inference, "predict", None)
    assert run(tmp_path / "predictions", batch=32)
    assert content(tmp_path / "predictions") == content(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_it_after_a_block_and_it_goes_on(run, whole, tmp_path, monkeypatch, number, code):
    predict, calls = inference.predict, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 7:
            os.kill(os.getpid(), number)
        return predict(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Exit) as end:
        patch.setattr(inference, "predict", interrupted)
        run(tmp_path / "predictions")
    assert end.value.code == code
    assert str(end.value) == "stopped after 112 of 1,001 images, as requested"
    calls.clear()
    monkeypatch.setattr(inference, "predict", lambda *arguments: calls.append(None) or predict(*arguments))
    assert run(tmp_path / "predictions")
    assert len(calls) == 63 - 7
    assert content(tmp_path / "predictions") == content(whole)


def test_a_signal_to_one_process_stops_all(run, whole, tmp_path, monkeypatch):
    slowly(monkeypatch)
    directory = tmp_path / "predictions"
    started = start(lambda: run(directory), 2, tmp_path / "errors")
    while lines(directory) < 6:
        time.sleep(0.001)
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
        for change, told in (
            ({"model": changed}, "another model"),
            ({"dataset": Dataset.open(dataset_directory)}, "another dataset"),
            ({"split": "train"}, r"another split \(validation there, train now\)"),
            ({"precision": "bf16"}, r"another precision \(float32 there, bfloat16 now\)"),
        ):
            with pytest.raises(PredictionsError, match=rf"^{directory}: .*{told}.*; remove it, or choose another out"):
                run(directory, **change)
        assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    codes, errors = together(lambda: run(slow, precision="bf16"), 2, tmp_path / "errors")
    assert codes == [2, 2]
    assert "another precision" in errors[0]
    assert errors[0].count("\n") == 1
    assert errors[1] == ""


def test_images_that_cannot_be_decoded_are_left_out_and_listed(dataset, run, whole, tmp_path):
    directory = tmp_path / "dataset"
    shutil.copytree(dataset.directory, directory)
    spoilt = Dataset.open(directory)
    hashes = spoilt.posts("validation").hashes
    bad = [3, 500, *range(992, 1001)]  # the last block is of nothing else
    for row in bad:
        spoilt.image_path(hashes[row].tobytes()).write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"11 of 1001 images are left out, the first because of .*provenance\.json lists"
    ):
        run(tmp_path / "predictions", dataset=spoilt)
    found, expected = Predictions.open(tmp_path / "predictions"), Predictions.open(whole)
    kept = [row for row in range(IMAGES) if row not in bad]
    assert found.ids.tolist() == kept
    np.testing.assert_allclose(found.scores, expected.scores[kept], atol=1e-3)
    assert found.labels.toarray().tolist() == expected.labels.toarray()[kept].tolist()
    listed = found.provenance["undecodable"]
    assert [entry["id"] for entry in listed] == bad
    assert all(entry["reason"] for entry in listed)
    codes, errors = together(lambda: run(tmp_path / "shared", dataset=spoilt), 2, tmp_path / "errors")
    assert codes == [0, 0] and "left out" in errors[0] and errors[1] == "", errors
    assert content(tmp_path / "shared") == content(tmp_path / "predictions")


@pytest.mark.parametrize("moment", ["begin", "write", "finish"])
def test_a_disk_that_is_full_is_one_line_and_then_it_goes_on(run, whole, tmp_path, monkeypatch, moment):
    """A limit on the size of files, from some moment on, stands for it; scores.npy takes 12,140."""
    step = getattr(predictions_writer.PredictionsWriter, moment)

    def cramped(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predictions_writer.PredictionsWriter, moment, cramped)
        codes, errors = together(lambda: run(tmp_path / "predictions"), 1, tmp_path / "errors")
    assert codes == [2]
    assert errors[0].count("\n") == 1
    assert "cannot be written" in errors[0]
    assert "free some space and evaluate again, which resumes" in errors[0]
    assert run(tmp_path / "predictions")
    assert content(tmp_path / "predictions") == content(whole)


def test_a_model_of_another_vocabulary_is_refused(run, model, dataset, tmp_path):
    network, tags = release.load(model)
    release.save(tmp_path / "other", network, [f"other_{tag}" for tag in tags], "focal2")
    with pytest.raises(ValueError, match=r"other: its 6 tags are not those of"):
        run(tmp_path / "predictions", model=tmp_path / "other")
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize("processes", [1, 3])
def test_training_sees_the_figures_of_the_predictions(dataset, model, whole, tmp_path, processes):
    """The streamed histogram, over any number of processes, is that of the scores on disk, and so are its figures."""
    network, _ = release.load(model)

    def stream():
        with distributed.process_group(CPU, 60):
            pictures = loader.ImageDataset(dataset, "validation", 16)
            table = runner.score_histogram(network, pictures, BATCH, 0, CPU, FLOAT).table
            np.save(tmp_path / f"{distributed.rank()}.npy", table.numpy())

    codes, errors = together(stream, processes, tmp_path / "errors")
    assert codes == [0] * processes, errors
    found = Predictions.open(whole)
    stored = metrics.Histogram.zeros(6)
    stored.add(torch.from_numpy(np.array(found.scores)), torch.from_numpy(found.labels.toarray()))
    for rank in range(processes):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), stored.table)
    assert stored.table[:, 0].sum() == IMAGES


def test_the_model_is_in_evaluation_mode_and_then_in_the_one_that_it_was_in(dataset, model, monkeypatch):
    network = release.load(model)[0].train()
    pictures, modes, predict = loader.ImageDataset(dataset, "train", 16), [], inference.predict
    monkeypatch.setattr(inference, "predict", lambda *given: modes.append(given[0].training) or predict(*given))
    runner.score_histogram(network, pictures, BATCH, 0, CPU, FLOAT)
    assert network.training
    with pytest.raises(runner.Interrupted):
        runner.score_histogram(network, pictures, BATCH, 0, CPU, FLOAT, stopping=lambda: True)
    assert network.training
    runner.score_histogram(network.eval(), pictures, BATCH, 0, CPU, FLOAT)
    assert not network.training
    assert modes
    assert not any(modes)


def test_validation_logs_what_is_defined_of_the_images_that_can_be_decoded(run_values, monkeypatch):
    config = RunSettings.model_validate(run_values)
    run = trainer.Run(config, Dataset.open(Path(config.data.directory)), CPU, FLOAT)
    state = trainer.initial_state(run)
    names = {"val_loss", "val_micro_f1", "val_macro_f1", "val_macro_precision", "val_macro_recall", "val_map"}
    state.model.head.bias.data += 10
    assert validation.validate(state, run, trainer.Interrupts()).keys() == names
    state.model.head.bias.data -= 30
    silent = validation.validate(state, run, trainer.Interrupts())
    assert silent.keys() == names - {"val_macro_precision"}, "no tag is ever predicted"
    assert silent["val_macro_f1"] == silent["val_macro_recall"] == 0
    gone = {run.dataset.posts("validation").hashes[row].tobytes() for row in range(4)}
    there, losses = Dataset.image_path, []
    for part in (range(4, 12), range(12)):
        pictures = loader.ImageDataset(run.dataset, "validation", 8).__getitems__([(0, row) for row in part])
        logits = inference.predict(state.model.eval(), pictures.images, CPU, FLOAT)
        losses.append(128 * run.criterion(logits, pictures.labels).item())
    assert silent["val_loss"] == pytest.approx(losses[1], rel=1e-5)
    monkeypatch.setattr(
        Dataset, "image_path", lambda self, hash: Path("gone.jpg") if hash in gone else there(self, hash)
    )
    with pytest.warns(UserWarning, match=r"gone\.jpg: no such file: left out, with 3 other images"):
        assert validation.validate(state, run, trainer.Interrupts())["val_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_a_checkpoint_that_holds_predictions_is_still_whole(run_values, tmp_path):
    config = RunSettings.model_validate(run_values)
    run = trainer.Run(config, Dataset.open(Path(config.data.directory)), CPU, FLOAT)
    trainer.train(run, None)
    newest = checkpoint.newest(run.root)
    assert runner.predict_release(newest / "predictions", newest, run.dataset, "validation", device_name="cpu")
    assert checkpoint.newest(run.root) == newest
    assert checkpoint.is_intact(newest)
    assert trainer.load_state(newest, run).samples == 184
    assert release.load(newest)
    assert len(Predictions.open(newest / "predictions")) == 12


@given(rows=st.integers(1, 40), batch=st.integers(1, 9), world=st.integers(1, 4), done=st.sets(st.integers(0, 39)))
@settings(max_examples=60)
def test_blocks_are_the_same_for_any_processes_and_those_that_are_done_are_left_out(rows, batch, world, done):
    shares = [loader.evaluation_keys(rows, batch, rank, world, done) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    found = [[row for _, row in block] for step in zip(*shares, strict=True) for block in step if block]
    blocks = [[*range(first, min(first + batch, rows))] for first in range(0, rows, batch)]
    assert found == [block for number, block in enumerate(blocks) if number not in done]

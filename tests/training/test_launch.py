"""The checkpoint that a run starts from."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import make_dataset
from paths import TINY
from training_runs import build_run

from joytag.data import dataset, decoders, tables
from joytag.models import checkpoint
from joytag.training import launch, trainer


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_job_resumes_from_its_newest_checkpoint(run_values, monkeypatch, name):
    run = build_run(run_values)
    monkeypatch.setenv(name, "0")
    assert launch.starting_point(run, None) is None
    trainer.train(run, None)
    with pytest.raises(launch.HasCheckpoints, match="holds checkpoints"):
        launch.starting_point(run, None)
    monkeypatch.setenv(name, "1")
    assert launch.starting_point(run, None) == checkpoint.newest(run.root)


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_branch_resumes_from_its_own_newest_checkpoint(run_values, monkeypatch, tmp_path, name):
    run = build_run(run_values)
    trainer.train(run, None)
    older = checkpoint.checkpoints(run.root)[0]
    branch = build_run(run_values, output=str(tmp_path / "branch"), optimizer={"lr": 0.001})
    monkeypatch.setenv(name, "1")
    assert launch.starting_point(branch, str(older)) == older, "the branch has no checkpoint yet"
    trainer.train(branch, older)
    newest = checkpoint.newest(branch.root)
    assert newest is not None
    assert newest.name > older.name
    assert launch.starting_point(branch, str(older)) == newest
    monkeypatch.setenv(name, "0")
    with pytest.raises(launch.HasCheckpoints, match="holds newer checkpoints than"):
        launch.starting_point(branch, str(older))


def test_resuming_from_an_older_checkpoint_is_refused(run_values, tmp_path):
    run = build_run(run_values)
    trainer.train(run, None)
    older, newer = checkpoint.checkpoints(run.root)[-2:]
    assert launch.starting_point(run, str(newer)) == newer
    with pytest.raises(launch.HasCheckpoints, match="holds newer checkpoints than"):
        launch.starting_point(run, str(older))
    assert launch.starting_point(build_run(run_values, output=str(tmp_path / "other")), str(older)) == older


@pytest.mark.parametrize("name", ["log.jsonl", "events.jsonl"])
@pytest.mark.parametrize("content", ["a text\n", '{"time": "12:00", "message": "x"}\n'])
def test_another_programs_log_is_never_overwritten(run_values, name, content):
    run = build_run(run_values)
    path = Path(run.config.output) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: not a run's log; set another output"):
        launch.starting_point(run, None)
    path.write_text('{"samples": 8, "loss": 1.0}\n{"sam')
    assert launch.starting_point(run, None) is None
    path.write_text('{"sam')
    assert launch.starting_point(run, None) is None


@pytest.fixture
def free(monkeypatch):
    """Set the free space of all disks, in bytes."""

    def set_free(number: int, total: int = 10**12) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=number, total=total))

    return set_free


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"optimizer": {"name": "adamw"}}], ids=str)
def test_the_size_of_a_checkpoint_is_known_beforehand(run_values, changes):
    changes |= {"model": run_values["model"] | {"d_model": 128, "mlp_dim": 512, "cnn_stem": None, "freeze": 1}}
    run = build_run(run_values, **changes, stages=[{"image_size": 8, "samples": 8}])
    trainer.train(run, None)
    [path] = checkpoint.checkpoints(run.root)
    written = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert written == pytest.approx(run.config.checkpoint_bytes(len(run.dataset.tags)), rel=0.05)


def test_a_disk_without_space_for_the_checkpoints_is_known_before_the_first_step(run_values, monkeypatch, free):
    run = build_run(run_values)
    size = run.config.checkpoint_bytes(len(run.dataset.tags))
    monkeypatch.setattr(trainer, "train_step", lambda *_: pytest.fail("took a step"))
    free(4 * size - 1)
    with pytest.raises(ValueError, match=r"run/checkpoints: needs 0.\d MB for 4 checkpoints more, but the disk has"):
        launch.start(run.config, None)
    assert not Path(run.config.output).exists()
    launch.check_disk(build_run(run_values, keep_last=2), None)
    launch.check_disk(build_run(run_values, every={"checkpoint": 100}), None)
    free(size)
    launch.check_disk(run, Path("000000000168"))
    free(0, total=0)  # of a file system that reports no sizes
    launch.check_disk(run, None)


def test_the_first_checkpoint_must_succeed(run_values, monkeypatch):
    run = build_run(run_values)

    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", fill)
        with pytest.raises(checkpoint.CheckpointError, match=r"000016: No space left on device; free some space"):
            trainer.train(run, None)
    state = trainer.initial_state(run)
    trainer.save_state(state, run, required=True)
    state.samples = 16
    monkeypatch.setattr(checkpoint, "_write", fill)
    with pytest.warns(UserWarning, match=r"000016: No space left on device; .* the run goes on"):
        trainer.save_state(state, run, required=False)


def test_too_little_shared_memory_is_known_before_the_first_step(run_values, monkeypatch, free, tmp_path):
    monkeypatch.setattr(trainer, "train_step", lambda *_: pytest.fail("took a step"))
    data = run_values["data"] | {"workers": 2}
    config = build_run(run_values, data=data).config
    images = 9 * 4  # of six batches for training, and three of validation
    free(images * (3 * 16**2 + 6) - 1)
    monkeypatch.setattr(launch, "check_disk", lambda *_: None)
    monkeypatch.setattr(decoders, "SHARED", tmp_path)
    with pytest.raises(ValueError, match=r"loading needs 0.0 MB .* but has 0.0 MB; .*--shm-size 1g.* data.workers"):
        launch.start(config, None)
    free(images * (3 * 16**2 + 6))
    launch.check_shared_memory(build_run(run_values, data=data))
    free(0)
    launch.check_shared_memory(build_run(run_values))
    monkeypatch.setattr(decoders, "SHARED", tmp_path / "absent")
    launch.check_shared_memory(build_run(run_values, data=data))


def test_tags_without_images_of_a_split_are_named_at_the_start_unless_they_are_distilled(
    run_values, tmp_path, monkeypatch, capsys
):
    directory = make_dataset(tmp_path / "data", {"train": 50, "validation": 12})
    tags = pq.read_table(directory / "tags.parquet").to_pydict()
    assert min(tags["count_train"]) > 0
    for row, split in ((1, "train"), (3, "train"), (4, "validation")):
        tags["count"][row] -= tags[f"count_{split}"][row]
        tags[f"count_{split}"][row] = 0
    tags["count"][3], tags["count_validation"][3] = 1, 1
    tags["count"][1], tags["count_validation"][1] = 0, 0
    tables.write_table(pa.table(tags), dataset.TAGS_SCHEMA, directory / "tags.parquet")
    monkeypatch.setattr(launch, "train", lambda *_: None)
    run_values["data"]["directory"] = str(directory)
    launch.start(build_run(run_values).config, None)
    expected = "1 without any image (tag_1), 1 without a training image (tag_3), 1 without a validation image (tag_4)"
    assert f"{directory}: of 6 tags: {expected}\n" in capsys.readouterr().out
    launch.start(build_run(run_values, distill=True, init_from=str(TINY)).config, None)
    assert "image (tag_" not in capsys.readouterr().out

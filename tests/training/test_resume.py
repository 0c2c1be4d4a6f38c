"""What must match when a run resumes: everything but the settings that are marked, and a finished run is finished."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import assert_one_line
from datasets import make_dataset
from training_runs import assert_equal_weights, build_run, newest_checkpoint, weights

from joytag.core.files import file_hash
from joytag.core.settings import Settings
from joytag.models import checkpoint, matmul, release
from joytag.training import launch, trainer
from joytag.training.config import AS_NAMES, BRANCHING, RESUMING, RunSettings
from joytag.training.run import Run
from joytag.training.state import initial_state, load_state, save_state

# Every setting that a resumed run may change. A new setting decides what is learned, unless it is added here.
MAY_CHANGE = {
    "compile",
    "data.directory",
    "data.max_bad",
    "data.tags",
    "data.timeout",
    "data.workers",
    "device",
    "every",
    "init_from",
    "keep_every",
    "keep_last",
    "matmul",
    "max_skips",
    "micro_batch",
    "output",
    "precision",
    "threshold",
    "timeout",
    "tracking",
}


def fields(schema: type[Settings], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield the key and the marks of every setting, without those in sections that have a mark."""
    for name, field in schema.model_fields.items():
        inner = next((a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(a)), None)
        if inner is None or RESUMING in field.metadata:
            yield f"{prefix}{name}", field.metadata
        else:
            start = f"{prefix}{name}" + ("" if inner is field.annotation else ".0")
            yield from fields(inner, f"{start}.")


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


FIELDS = dict(fields(RunSettings))


def changed(settings: Any, key: str) -> Any:
    """Return settings with another value for one key, which need not be valid."""
    name, _, rest = key.partition(".")
    if isinstance(settings, list):
        return [changed(item, rest) if i == int(name) else item for i, item in enumerate(settings)]
    value = getattr(settings, name)
    return settings.model_copy(update={name: changed(value, rest) if rest else f"not {value}"})


@pytest.fixture
def saved(run_values) -> tuple[Run, Path]:
    """A run that has saved a checkpoint before its first step."""
    run = build_run(run_values)
    save_state(initial_state(run), run, required=True)
    return run, newest_checkpoint(run)


def test_the_settings_that_a_resumed_run_may_change_are_known():
    assert {key for key, marks in FIELDS.items() if RESUMING in marks or AS_NAMES in marks} == MAY_CHANGE
    assert {key for key, marks in FIELDS.items() if BRANCHING in marks} == {"optimizer.lr"}


@pytest.mark.parametrize("key", sorted(FIELDS.keys() - MAY_CHANGE))
def test_a_setting_that_decides_what_is_learned_must_not_change(saved, key):
    run, path = saved
    other = Run(changed(run.config, key), run.dataset, run.device, run.dtype)
    with pytest.raises(ValueError, match=rf"{path}: {key}: was .+ there, is not .+ now"):
        load_state(path, other)


def test_a_run_resumes_with_other_values_of_all_other_settings_and_learns_the_same(run_values, tmp_path):
    whole = trainer.train(build_run(run_values | {"keep_last": 99}), None)
    early = checkpoint.checkpoints(Path(run_values["output"]) / checkpoint.DIRECTORY)[3]
    moved = tmp_path / "moved"
    shutil.copytree(run_values["data"]["directory"], moved)
    changes: dict[str, Any] = {
        "output": str(tmp_path / "other"),
        "data": {"directory": str(moved), "workers": 1, "max_bad": 0.5, "timeout": 99, "tags": 6},
        "device": "auto",
        "precision": "auto",
        "every": {"log": 8, "evaluate": 1000, "checkpoint": 1000},
        "keep_every": 10,
        "keep_last": 1,
        "max_skips": 9,
        "threshold": 0.7,
        "timeout": 99,
        "tracking": {"wandb": "disabled", "project": "other"},
    }
    tested = {key for key in MAY_CHANGE if key.partition(".")[0] in changes}
    assert MAY_CHANGE - tested == {"compile", "init_from", "matmul", "micro_batch"}  # all but init_from change rounding
    assert_equal_weights(weights(trainer.train(build_run(run_values, **changes), early)), weights(whole))


@pytest.mark.parametrize("library", [*matmul.LIBRARIES])
def test_a_resumed_run_keeps_its_library_of_products(run_values, monkeypatch, library):
    monkeypatch.setattr(matmul, "is_exact", lambda library: True)
    monkeypatch.setattr(matmul.time, "thread_time", lambda: pytest.fail("it is measured again"))
    used = list[str]()
    monkeypatch.setattr(matmul, "use", lambda name, *models: used.append(name))
    trainer.train(build_run(run_values, matmul=library), None)
    trainer.train(build_run(run_values), checkpoint.checkpoints(Path(run_values["output"]) / checkpoint.DIRECTORY)[0])
    assert used == [library, library]


def test_a_run_that_resumes_on_another_cpu_says_so(saved, monkeypatch, capsys):
    run, path = saved
    load_state(path, run)
    assert "CPU" not in capsys.readouterr().out
    monkeypatch.setattr("joytag.core.devices.cpu_name", lambda: "Z80, no vectors")
    load_state(path, run)
    assert "was computed on another CPU (" in capsys.readouterr().out


def test_all_that_differs_is_named_with_both_values_and_the_remedy(saved, call, run_values, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(run_values))  # JSON is YAML
    changes = ("model.num_heads=4", "model.stochdepth_rate=0.5", "optimizer.lr=0.002", "stages.1.samples=88")
    done = call("train", "--config", tmp_path / "run.yaml", "--resume", "auto", *changes)
    assert_one_line(
        done,
        f"{saved[1]}: model.num_heads: was 2 there, is 4 now, model.stochdepth_rate: was 0.2 there, is 0.5 now, "
        "optimizer.lr: was 0.004 there, is 0.002 now, stages.1.samples: was 80 there, is 88 now; "
        "change them back, or start a new run in another output",
    )
    done = call("train", "--config", tmp_path / "run.yaml", "--resume", "auto", "optimizer.lr=0.002")
    assert_one_line(done, "optimizer.lr: was 0.004 there, is 0.002 now; set another output to branch off")


def relabel(rows: pa.Table) -> pa.Table:
    """Exchange the tags of each image for others, without changing their number."""
    field = rows.schema.field("tags")
    tags = [[5 - tag for tag in tags] for tags in rows["tags"].to_pylist()]
    return rows.set_column(rows.schema.get_field_index("tags"), field, pa.array(tags, field.type))


@pytest.mark.parametrize("change", [relabel, lambda rows: rows[::-1], lambda rows: rows.slice(1)])
def test_a_dataset_with_other_labels_order_or_images_is_refused(run_values, tmp_path, change):
    run_values["data"]["directory"] = str(make_dataset(tmp_path / "data", {"train": 20, "validation": 4}))
    run = build_run(run_values)
    save_state(initial_state(run), run, required=True)
    path = tmp_path / "data" / "train.parquet"
    rows = pq.read_table(path)
    pq.write_table(change(rows).cast(rows.schema), path)
    with pytest.raises(ValueError, match=r"data\.directory: its content was another"):
        load_state(newest_checkpoint(run), build_run(run_values))


def test_a_dataset_whose_images_were_stored_in_another_size_is_refused(run_values, tmp_path):
    run_values["data"]["directory"] = str(make_dataset(tmp_path / "data", {"train": 20, "validation": 4}))
    run = build_run(run_values)
    save_state(initial_state(run), run, required=True)
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"longest_side": 99, "format": "jpeg"}}))
    with pytest.raises(ValueError, match=r"data\.directory: its content was another"):
        load_state(newest_checkpoint(run), build_run(run_values))


def test_a_release_to_start_from_may_move_but_not_change(run_values, tmp_path, saved):
    run, _ = saved
    source = tmp_path / "source"
    release.save(source, initial_state(run).model, run.dataset.tags.names, "focal2")
    values = run_values | {"output": str(tmp_path / "tuned"), "init_from": str(source)}
    tuned = build_run(values)
    save_state(initial_state(tuned), tuned, required=True)
    shutil.move(source, tmp_path / "elsewhere")
    moved = values | {"init_from": str(tmp_path / "elsewhere")}
    assert load_state(newest_checkpoint(tuned), build_run(moved)).samples == 0
    release.save(tmp_path / "elsewhere", initial_state(build_run(run_values, seed=1)).model, list("abcdef"), "focal2")
    with pytest.raises(ValueError, match="init_from: its content was another"):
        load_state(newest_checkpoint(tuned), build_run(moved))


def snapshot(directory: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, file_hash(path)) for path in files}


def test_a_finished_run_says_so_and_never_changes(call, run_values, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(run_values))
    start = ("train", "--config", tmp_path / "run.yaml")
    run = Path(run_values["output"])
    assert call(*start).returncode == 0
    before = snapshot(run)

    done = call(*start, "--resume", "auto")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{run}/release: the run is finished; nothing to do\n")
    assert_one_line(call(*start), "holds checkpoints", "--resume auto", "output=DIR")
    assert_one_line(call(*start, "--resume", "auto", "seed=1"), "seed: was 0 there, is 1 now")
    assert snapshot(run) == before

    shutil.rmtree(run / "checkpoints")
    before = snapshot(run)
    assert "the run is finished" in call(*start, "--resume", "auto").stdout
    assert_one_line(call(*start), "holds a finished run", "output=DIR")
    assert snapshot(run) == before


def test_a_run_that_was_killed_before_its_release_was_written_still_writes_it(run_values):
    run = build_run(run_values)
    trainer.train(run, None)
    before = {name: file_hash(run.release / name) for name in release.FILES}
    (run.release / release.WEIGHTS).unlink()
    launch.start(run.config, "auto")
    assert {name: file_hash(run.release / name) for name in release.FILES} == before

"""The checkpoint that a run starts from."""

from pathlib import Path

import pytest
from training_runs import build_run

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

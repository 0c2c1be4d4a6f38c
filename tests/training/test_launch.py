"""The checkpoint that a run starts from."""

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


def test_resuming_from_an_older_checkpoint_is_refused(run_values, tmp_path):
    run = build_run(run_values)
    trainer.train(run, None)
    older, newer = checkpoint.checkpoints(run.root)[-2:]
    assert launch.starting_point(run, str(newer)) == newer
    with pytest.raises(ValueError, match="holds newer checkpoints than"):
        launch.starting_point(run, str(older))
    assert launch.starting_point(build_run(run_values, output=str(tmp_path / "other")), str(older)) == older

"""The search for the largest micro-batch that fits in memory."""

import dataclasses

import pytest
import torch
from training_runs import build_run

from joytag.training import micro_batch, state
from joytag.training.state import TrainState


def test_the_micro_batch_is_searched_once_and_recorded(run_values, monkeypatch, capsys):
    """On a simulated GPU with memory for 6 samples."""
    run = dataclasses.replace(build_run(run_values, micro_batch="auto", batch_size=48), device=torch.device("cuda"))
    tried = []

    def fits(run, micro):
        tried.append(micro)
        return micro <= 6

    monkeypatch.setattr(micro_batch, "fits", fits)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    assert micro_batch.resolve(run).config.micro_batch == 6
    assert len(tried) <= 5
    assert "micro_batch: 6 samples at once on a GPU" in capsys.readouterr().out
    tried.clear()
    assert micro_batch.resolve(run).config.micro_batch == 6
    assert not tried
    micro_batch.resolve(dataclasses.replace(run, config=run.config.model_copy(update={"average": 0.9})))
    assert tried, "an average of the weights needs memory"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a smaller GPU")
    monkeypatch.setattr(micro_batch, "fits", lambda run, micro: False)
    with pytest.raises(ValueError, match="micro_batch: not even 1 fits"):
        micro_batch.resolve(run)


def test_an_odd_batch_has_no_micro_batch_for_mixup(run_values):
    with pytest.raises(ValueError, match="15 samples a process, an odd number"):
        micro_batch.resolve(
            build_run(run_values, data=run_values["data"] | {"mixup": 0.2}, micro_batch="auto", batch_size=15)
        )


def test_the_search_takes_two_steps_at_the_largest_image_size(run_values, monkeypatch):
    run, batch_loss, tried = build_run(run_values, average=0.9), micro_batch.batch_loss, []
    states: list[TrainState] = []

    def recorded_state(*arguments):
        states.append(state.new_state(*arguments))
        return states[-1]

    def recorded_loss(model, batch, noise, run):
        moments = len(states[-1].optimizer.state)
        tried.append((tuple(batch.images.shape), len(noise.depth), model.training, moments > 0))
        return batch_loss(model, batch, noise, run)

    monkeypatch.setattr(micro_batch, "new_state", recorded_state)
    monkeypatch.setattr(micro_batch, "batch_loss", recorded_loss)
    assert micro_batch.fits(run, 8)
    assert tried == [((8, 3, 16, 16), 8, True, False), ((8, 3, 16, 16), 8, True, True)]
    assert states[0].average is not None
    assert all(parameter.grad is not None for parameter in states[0].model.parameters())


@pytest.mark.parametrize("step", [1, 2])
def test_a_micro_batch_that_runs_out_of_memory_does_not_fit(run_values, monkeypatch, step):
    batch_loss, calls = micro_batch.batch_loss, []

    def limited(*arguments):
        calls.append(arguments)
        if len(calls) == step:
            raise torch.OutOfMemoryError
        return batch_loss(*arguments)

    monkeypatch.setattr(micro_batch, "batch_loss", limited)
    assert not micro_batch.fits(build_run(run_values), 8)

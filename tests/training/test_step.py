"""One optimizer step: gradients, micro-batches, overflows."""

import dataclasses
from itertools import islice

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss
from training_runs import build_run, weights

from joytag.data.preprocessing import normalize
from joytag.training import schedule, state, trainer
from joytag.training import step as training_step


def test_a_step_is_gradient_descent_with_clipped_gradients_of_the_multiplied_loss(run_values):
    run = build_run(run_values, model=run_values["model"] | {"stochdepth_rate": 0.0}, micro_batch=2)
    state = trainer.initial_state(run)
    batches = list(islice(trainer.begin_stage(state, run)[0], 4))
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    before = weights(state)
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    expected = 128 * sigmoid_focal_loss(
        state.model(normalize(images)), labels.float(), alpha=-1, gamma=2, reduction="mean"
    )
    gradients = torch.autograd.grad(expected, list(state.model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()

    step = training_step.train_step(state, state.model, iter(batches), run)
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    assert step.norm == pytest.approx(float(norm), rel=1e-4)
    assert norm > 1, "otherwise nothing is clipped"
    assert not step.skipped
    assert (state.samples, state.skipped) == (8, 0)
    for (name, after), gradient in zip(state.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after.detach(), before[name] - 0.004 * gradient / norm, rtol=1e-4, atol=1e-6)


def test_weights_do_not_depend_on_the_micro_batch(run_values, tmp_path):
    changes = {"data": run_values["data"] | {"mixup": 0.4}, "stages": [{"image_size": 8, "samples": 24}]}
    runs = [
        build_run(run_values, output=str(tmp_path / str(micro)), micro_batch=micro, **changes) for micro in (8, 4, 2)
    ]
    first, *others = [weights(trainer.train(run, None)) for run in runs]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_an_overflow_only_halves_the_scale(run_values, monkeypatch):
    """On a CPU with the scaler of fp16, whose first scale is small enough not to overflow by itself."""
    monkeypatch.setattr(state, "FIRST_SCALE", 65536.0)
    run = build_run(run_values, stages=[{"image_size": 8, "samples": 48}], loss={"multiplier": 1.0})
    run = dataclasses.replace(run, dtype=torch.float16)
    take_step, batch_loss = training_step.train_step, training_step.batch_loss
    seen: list[tuple[float, int, float, bool, int]] = []

    def recorded(current, *arguments):
        factor = float("inf") if len(seen) == 2 else 1.0
        monkeypatch.setattr(training_step, "batch_loss", lambda *inputs: batch_loss(*inputs) * factor)
        before = weights(current)
        result = take_step(current, *arguments)
        group = current.optimizer.param_groups[0]
        same = all(torch.equal(value, before[name]) for name, value in current.model.state_dict().items())
        [step] = {int(entry["step"]) for entry in current.optimizer.state.values()}
        seen.append((current.scaler.get_scale(), step, group["lr"], same, current.samples))
        return result

    monkeypatch.setattr(trainer, "train_step", recorded)
    trainer.train(run, None)
    assert [scale for scale, *_ in seen] == [65536.0] * 2 + [32768.0] * 5
    assert [step for _, step, *_ in seen] == [1, 2, 2, 3, 4, 5, 6]
    assert [same for *_, same, _ in seen] == [False] * 2 + [True] + [False] * 4
    assert [samples for *_, samples in seen] == [8, 16, 16, 24, 32, 40, 48]
    expected = [schedule.learning_rate(samples, run.stages, 0.004) for samples in (0, 8, 16, 16, 24, 32, 40)]
    assert [rate for _, _, rate, *_ in seen] == pytest.approx(expected)

"""The schedule against torch's cosine annealing and against the recipe's step counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from joytag.training.schedule import Stage, due, learning_rate, locate, total, whole_batches

RESTARTED = [Stage(224, 1000, True), Stage(448, 2000, True)]
CONTINUED = [Stage(224, 1000, True), Stage(448, 2000, False), Stage(448, 500, True)]


def test_the_recipe_has_the_published_number_of_steps():
    assert whole_batches(220_000_000, 4096) // 4096 == 53_710
    assert whole_batches(440_000_000, 4096) // 4096 == 107_421


@pytest.mark.parametrize(("stages", "curves"), [(RESTARTED, [1000, 2000]), (CONTINUED, [3000, 500])])
def test_the_learning_rate_matches_torchs_cosine_in_each_curve(stages, curves):
    seen = 0
    for length in curves:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.004)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length // 10)
        for done in range(0, length, 10):
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate(seen + done, stages, 0.004) == pytest.approx(expected, rel=1e-9, abs=1e-15)
            optimizer.step()
            cosine.step()
        seen += length


def test_a_stage_begins_where_the_one_before_ends():
    assert locate(0, RESTARTED) == (0, 0)
    assert locate(999, RESTARTED) == (0, 999)
    assert locate(1000, RESTARTED) == (1, 0)
    assert locate(3000, RESTARTED) == (1, 2000)
    assert total(RESTARTED) == 3000


@given(every=st.integers(1, 500), batch=st.integers(1, 200), steps=st.integers(1, 100))
def test_an_event_is_due_once_per_multiple_reached(every, batch, steps):
    happened = sum(due(every, n * batch, (n + 1) * batch) for n in range(steps))
    multiples = {(n * batch) // every for n in range(1, steps + 1)} - {0}
    assert happened == len(multiples)

"""The order of samples depends only on the position."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joytag.data import order


def keys(rows=10, start=0, stop=48, batch=8, micro=4, rank=0, world=1, seed=0, stage=0):
    count = -(-(stop - start) // batch) * batch // world // micro
    return list(islice(order.training_keys(seed, stage, rows, start, batch, micro, rank, world), count))


def flat(batches):
    return [key for batch in batches for key in batch]


@given(rows=st.integers(1, 30), stop=st.integers(1, 12), micro=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=30)
def test_every_epoch_is_a_permutation_of_all_rows(rows, stop, micro):
    seen = flat(keys(rows=rows, stop=stop * 8, micro=micro))
    assert len(seen) == stop * 8
    for epoch in range(len(seen) // rows):
        of_epoch = seen[epoch * rows : (epoch + 1) * rows]
        assert sorted(of_epoch) == [(epoch, row) for row in range(rows)]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_global_batches_are_the_same_for_any_processes_and_micro_batches(world, micro):
    expected = keys(micro=8)
    ranks = [keys(micro=micro, rank=rank, world=world) for rank in range(world)]
    per_step = 8 // world // micro
    for step, batch in enumerate(expected):
        result = [key for rank in ranks for key in flat(rank[step * per_step : (step + 1) * per_step])]
        assert result == batch


@pytest.mark.parametrize("start", [0, 8, 16, 40])
def test_resuming_continues_the_same_sequence(start):
    assert keys(start=start) == keys()[start // 4 :]


def test_seeds_stages_and_epochs_differ():
    orders = [flat(keys(rows=100, stop=96, seed=seed, stage=stage)) for seed, stage in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(order.permutation(0, 0, 0, 100)) != list(order.permutation(0, 0, 1, 100))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_row_once(world):
    shares = [order.evaluation_keys(13, 4, rank, world) for rank in range(world)]
    assert sorted(row for share in shares for _, row in flat(share)) == list(range(13))
    assert len({len(share) for share in shares}) == 1, "processes that reduce together must do so equally often"

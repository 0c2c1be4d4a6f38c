"""Tests of joytag.core.parallel."""

import time

from joytag.core.parallel import batches, read_ahead


def test_reading_ahead_is_ordered_bounded_and_stops():
    started = []

    def read(number: int) -> int:
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    values = read_ahead(read, iter(range(1000)), workers=4, depth=8)
    assert [next(values) for _ in range(20)] == list(range(20))
    values.close()
    assert len(started) <= 20 + 8 + 4
    assert list(read_ahead(read, range(10), workers=3, depth=4)) == list(range(10))
    assert list(read_ahead(read, [], workers=3, depth=4)) == []


def test_batches_have_a_size_and_the_last_may_be_shorter():
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []

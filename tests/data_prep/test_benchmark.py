"""Tests of data_prep.tools.benchmark."""

import pytest

from data_prep.tools import benchmark, synthetic


@pytest.mark.benchmarks
def test_preparation_is_compared_side_by_side():
    text = benchmark.scanning(n_images=2, rounds=1)
    assert "JPEG" in text
    assert "PNG" in text
    assert "same pHash 100.00%, at most 0 bits apart" in text
    assert "same groups: True" in benchmark.grouping(2_000, 500)
    assert "mixed" in benchmark.formats(n_images=2, rounds=1)


@pytest.mark.slow
def test_a_build_without_images_has_the_vocabulary_of_the_simple_one(tmp_path):
    synthetic.write(tmp_path, 40_000, images=False)
    assert "same vocabulary: True" in benchmark.metadata(40_000, tmp_path)

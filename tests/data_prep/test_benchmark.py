"""Tests of data_prep.tools.benchmark."""

from data_prep.tools import benchmark, synthetic


def test_preparation_is_compared_side_by_side(tmp_path):
    text = benchmark.scanning(n_images=2, rounds=1)
    assert "JPEG" in text
    assert "PNG" in text
    assert "same pHash 100.00%, at most 0 bits apart" in text
    assert "same groups: True" in benchmark.grouping(20_000, 1_000)
    assert "mixed" in benchmark.formats(n_images=2, rounds=1)
    synthetic.write(tmp_path, 40_000, images=False)
    assert "same vocabulary: True" in benchmark.metadata(40_000, tmp_path)

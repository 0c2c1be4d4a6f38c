"""The benchmark of measuring does the same work as its reference."""

from joytag.benchmarks import tagging


def test_figures_are_those_of_scikit_learn():
    text = tagging.measuring(n_images=300, tags=20, rounds=1)
    assert "300 images and 20 tags" in text
    assert float(text.rpartition(" ")[2]) < 1e-9

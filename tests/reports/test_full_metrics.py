"""full-metrics.txt: the published format and its numbers, byte for byte."""

import analyses
import numpy as np
import pytest
from full_metrics_file import read_full_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from joytag.evaluation.metrics import Counts
from joytag.reports.full_metrics import write_full_metrics


def random_counts(n_tags: int, images: int, seed: int = 0) -> Counts:
    """Counts of a model of mixed skill; some tags are never labelled, some never predicted."""
    rng = np.random.default_rng(seed)
    positives = rng.binomial(images, rng.beta(0.3, 30, n_tags))
    tp = rng.binomial(positives, rng.beta(2, 2, n_tags))
    fp = rng.binomial(images - positives, rng.beta(0.3, 60, n_tags))
    positives[::50], tp[::50] = 0, 0
    tp[::70], fp[::70] = 0, 0
    return Counts(tp=tp, fp=fp, fn=positives - tp, tn=images - positives - fp)


def test_the_file_has_the_published_format(tmp_path):
    counts = Counts(*(np.array(row) for row in ([1, 0, 9, 1], [1, 0, 1, 1], [1, 0, 2, 1], [7, 10, 0, 7])))
    path = tmp_path / "full-metrics.txt"
    write_full_metrics(path, ["b", "none", "1girl", "ö_(x)"], [5, 4, 3_097_226, 5], counts)
    assert path.read_bytes().decode() == (
        "Tag: 1girl (2) (cnt: 3097226)\nPrecision: 0.9000\nRecall: 0.8182\nF1: 0.8571\nTP: 9, TN: 0, FP: 1, FN: 2\n\n"
        "Tag: b (0) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: ö_(x) (3) (cnt: 5)\nPrecision: 0.5000\nRecall: 0.5000\nF1: 0.5000\nTP: 1, TN: 7, FP: 1, FN: 1\n\n"
        "Tag: none (1) (cnt: 4)\nPrecision: 0.0000\nRecall: 0.0000\nF1: 0.0000\nTP: 0, TN: 10, FP: 0, FN: 0\n\n"
    )


def published(counts: Counts, names: list[str], trained: list[int]) -> str:
    """Return full-metrics.txt computed in plain Python, each operation rounded to float32, which orders near-ties."""
    rows = []
    for i, (tp, fp, fn, tn) in enumerate(zip(*map(np.ndarray.tolist, vars(counts).values()), strict=True)):
        single, tiny = np.float32, np.float32(1e-8)
        p, r = single(tp) / (single(tp) + single(fp) + tiny), single(tp) / (single(tp) + single(fn) + tiny)
        f1 = 2 * p * r / (p + r + tiny)
        block = (
            f"Tag: {names[i]} ({i}) (cnt: {trained[i]})\nPrecision: {p:.4f}\nRecall: {r:.4f}\nF1: {f1:.4f}\n"
            f"TP: {tp}, TN: {tn}, FP: {fp}, FN: {fn}\n\n"
        )
        rows.append((-f1, i, block))
    return "".join(block for *_, block in sorted(rows))


def test_a_published_file_is_reproduced_to_the_byte(tmp_path):
    """5,813 tags and 32,768 images, as many as in the published file."""
    counts, names = random_counts(5_813, 32_768), analyses.names(5_813)
    trained = sorted(np.random.default_rng(1).integers(1_200, 3_100_000, 5_813).tolist(), reverse=True)
    original, again = tmp_path / "full-metrics.txt", tmp_path / "again.txt"
    original.write_bytes(published(counts, names, trained).encode())
    read = read_full_metrics(original)
    write_full_metrics(again, *read)
    assert again.read_bytes() == original.read_bytes()
    assert (read.names, read.train_counts) == (names, trained)
    for name, values in vars(read.counts).items():
        np.testing.assert_array_equal(values, getattr(counts, name), name)


def test_the_mean_f1_of_the_file_is_that_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.random((200, 30)) < 0.2, rng.random((200, 30)) < 0.3
    labels[:, 3], predicted[:, 4] = False, False
    pairs = ((labels, predicted), (~labels, predicted), (labels, ~predicted), (~labels, ~predicted))
    counts = Counts(*((a & b).sum(0) for a, b in pairs))
    write_full_metrics(tmp_path / "f.txt", [f"tag_{i}" for i in range(30)], range(30), counts)
    printed = [float(line.split()[1]) for line in (tmp_path / "f.txt").read_text().splitlines() if line[:2] == "F1"]
    assert np.mean(printed) == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0), abs=5e-5)


names_without_line_breaks = st.text(min_size=1).filter(lambda text: not {"\n", "\r"} & set(text))


@settings(max_examples=50)
@given(st.lists(st.tuples(names_without_line_breaks, *[st.integers(0, 40_000)] * 5), min_size=1, max_size=20))
def test_any_names_and_counts_survive_writing_and_reading(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("full") / "full-metrics.txt"
    names, trained, *counts = map(list, zip(*rows, strict=True))
    write_full_metrics(path, names, trained, Counts(*map(np.array, counts)))
    read = read_full_metrics(path)
    assert (read.names, read.train_counts) == (names, trained)
    assert [list(values) for values in vars(read.counts).values()] == counts


def test_a_name_with_a_line_break_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"full-metrics.txt: tag 0, 'a\\nb': contains a line break; rename it"):
        write_full_metrics(tmp_path / "full-metrics.txt", ["a\nb"], [1], Counts(*np.ones((4, 1), dtype=int)))

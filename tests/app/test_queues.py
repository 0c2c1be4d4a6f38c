"""The order of questions finds the images of a tag, and the estimates that come with it hold."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from paths import ROOT
from requirements import require
from scipy import stats
from sklearn.linear_model import Ridge

from joytag.app import queues
from joytag.app.queues import TagQueue
from joytag.evaluation.predictions import Predictions

IMAGES, TAGS, THRESHOLD = 1_500, 20, 0.4
PREDICTIONS = ROOT / "runs" / "openmoji" / "release" / "predictions"


class Corpus(NamedTuple):
    """Images with a hidden truth, bool [P, T], and the scores of a model that is mostly right about it, [P, T]."""

    images: list[str]
    truth: NDArray[np.bool_]
    scores: NDArray[np.float16]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Tags from 2 % to 20 % of the images, on which models are good, poor, over- and under-confident."""
    rng = np.random.default_rng(0)
    rates = np.geomspace(0.02, 0.2, TAGS)
    truth = rng.random((IMAGES, TAGS)) < rates
    skill, shift = rng.uniform(2.0, 6.0, TAGS), rng.uniform(-1.0, 1.0, TAGS)
    logits = np.log(rates / (1 - rates)) + shift + skill * (truth - 0.2) + rng.normal(0, 1.2, (IMAGES, TAGS))
    images = [rng.bytes(32).hex() for _ in range(IMAGES)]
    return Corpus(images, truth, (1 / (1 + np.exp(-logits))).astype(np.float16))


def open_queue(corpus: Corpus, tag: int, answers: dict[str, str]) -> TagQueue:
    return TagQueue(f"tag {tag}", corpus.images, corpus.scores[:, tag], THRESHOLD, answers)


def vectors(corpus: Corpus) -> queues.Vectors:
    return lambda rows: corpus.scores[rows]


Open = Callable[[Corpus, int, dict[str, str]], TagQueue]  # takes a tag and the answers so far


def open_new(corpus: Corpus, tag: int, answers: dict[str, str], hidden: NDArray[np.int64]) -> TagQueue:
    """The queue of a tag that the model does not know, since its `hidden` ones are left out."""
    known = np.delete(corpus.scores, hidden, axis=1)
    places = {image: place for place, image in enumerate(corpus.images)}
    yes, no = ([places[image] for image in answers if answers[image] == answer] for answer in ("yes", "no"))
    scores = queues.scores_by_example(len(places), lambda rows: known[rows], yes, no)
    return TagQueue(f"tag {tag}", corpus.images, scores, 0.5, answers)


def annotate(
    corpus: Corpus, tag: int, count: int, pages: int, opened: Open = open_queue
) -> Iterator[tuple[NDArray[np.int64], TagQueue]]:
    """Answer truthfully; yield each page of questions, and the queue after it."""
    answers: dict[str, str] = {}
    queue = opened(corpus, tag, answers)
    for _ in range(pages):
        page = queue.page(count, vectors(corpus))
        answers |= {corpus.images[i]: "yes" if corpus.truth[i, tag] else "no" for i in page}
        queue = opened(corpus, tag, answers)
        yield page, queue


def decisions(truth: NDArray[np.bool_], asked: NDArray[np.int64], recall: float) -> tuple[int, float]:
    """Decisions in an order until a share of a tag's images is found, and those expected of a random order."""
    wanted = int(np.ceil(recall * truth.sum()))
    return 1 + int(np.searchsorted(truth[asked].cumsum(), wanted)), wanted * (len(truth) + 1) / (truth.sum() + 1)


def is_covered(corpus: Corpus, tag: int, queue: TagQueue) -> bool:
    """Whether the interval of the precision among what is left above the threshold holds the true one."""
    left, estimate = queue.is_left & (queue.margins > 0), queue.precision()
    return not left.any() or estimate.low - 1e-9 <= corpus.truth[left, tag].mean() <= estimate.high + 1e-9


def test_a_third_of_the_questions_of_a_random_order_find_nine_tenths_of_the_images(corpus):
    shares = []
    for tag in range(TAGS):
        asked = np.concatenate([page for page, _ in annotate(corpus, tag, 25, IMAGES // 25)])
        needed, at_random = decisions(corpus.truth[:, tag], asked, 0.9)
        shares.append(needed / at_random)
    assert np.median(shares) < 1 / 3
    assert np.mean(np.array(shares) < 1 / 3) >= 0.8, np.round(shares, 2)


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
def test_fewer_decisions_than_in_a_random_order_find_nine_tenths_of_the_drawings(is_known):
    """20 tags of the quickstart's held-out images, pages of 10 images; settings were chosen on 40 others.

    How many fewer depends on how well the model ranks images that have no relatives in its training.
    """
    require(PREDICTIONS.exists(), "the quickstart's results: make quickstart")
    held_out = Predictions.open(PREDICTIONS)
    images = [sha256.tobytes().hex() for sha256 in held_out.hashes]
    order = np.argsort(images)  # as the app has them
    corpus = Corpus(sorted(images), held_out.labels.toarray()[order], np.asarray(held_out.scores)[order])
    counts, recalls = corpus.truth.sum(axis=0), (0.8, 0.9)
    tags = np.random.default_rng(1).permutation(np.flatnonzero((counts >= 20) & (counts <= 250)))[20:40]
    opened = open_queue if is_known else partial(open_new, hidden=tags)
    needed, covered, estimates = [], [], []
    for tag in tags:
        asked, is_right = np.zeros(0, np.int64), []
        for page, queue in annotate(corpus, tag, 10, len(images) // 10, opened):
            asked = np.append(asked, page)
            is_right.append(is_covered(corpus, tag, queue))
            estimates += [is_right[-1]] * (queue.precision().seen > 0)
            if corpus.truth[asked, tag].sum() >= max(recalls) * counts[tag]:
                break
        needed.append([decisions(corpus.truth[:, tag], asked, recall) for recall in recalls])
        covered.append(np.mean(is_right) >= 0.9)
    for recall, (asked_by_tag, at_random) in zip(recalls, np.moveaxis(np.array(needed), 0, -1), strict=True):
        shares, total = asked_by_tag / at_random, asked_by_tag.sum() / at_random.sum()
        print(
            f"\nrecall {recall}: {asked_by_tag.sum():,.0f} decisions, {total:.3f} of a random order's; by tag "
            f"{np.median(shares):.3f} in the median, at most {shares.max():.2f}"
        )
        assert total <= (1 / 2 if is_known else 2 / 3)
    print(
        f"precision covered for {np.mean(covered):.0%} of the tags; with an estimate {np.mean(estimates):.1%} of pages"
    )
    assert np.mean(covered) >= 0.9


def test_every_image_is_asked_about_once(corpus):
    pages = [page for page, _ in annotate(corpus, 5, 50, IMAGES // 50)]
    assert sorted(np.concatenate(pages)) == list(range(IMAGES))
    assert len(open_queue(corpus, 5, dict.fromkeys(corpus.images, "no")).page(50, vectors(corpus))) == 0


def test_the_interval_of_the_precision_covers_what_is_left_for_nine_tenths_of_the_tags(corpus):
    shares, seen = [], []
    for tag in range(TAGS):
        covered = []
        for _, queue in annotate(corpus, tag, 20, 12):
            if queue.left()[0]:
                covered.append(is_covered(corpus, tag, queue))
                seen.append(queue.precision().seen)
        shares.append(np.mean(covered or [True]))
    assert np.mean(shares) >= 0.95
    assert np.mean(np.array(shares) >= 0.9) >= 0.9, shares
    assert np.mean(np.array(seen) > 0) > 0.5  # an interval of nothing would cover everything


@given(st.integers(0, 200).flatmap(lambda seen: st.tuples(st.integers(0, seen), st.just(seen))))
def test_the_interval_is_that_of_scipy(counts):
    right, seen = counts
    found = queues.interval(right, seen)
    if seen:
        exact = stats.binomtest(right, seen).proportion_ci(0.95, "exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    else:
        assert (found.low, found.high) == (0, 1)


def test_what_is_set_aside_does_not_depend_on_the_answers(corpus):
    first = open_queue(corpus, 0, {})
    again = open_queue(corpus, 0, dict.fromkeys(corpus.images[:700], "no"))
    assert np.array_equal(first.is_audited, again.is_audited)
    above = first.margins > 0
    assert not (first.is_audited & ~above).any()
    other_tag = TagQueue("another", corpus.images, corpus.scores[:, 0], THRESHOLD, {})
    assert not np.array_equal(first.is_audited, other_tag.is_audited)
    assert 0.03 < first.is_audited.sum() / above.sum() < 0.25


def test_one_question_in_ten_is_drawn_at_random(corpus):
    tag = TAGS - 1
    page = open_queue(corpus, tag, {}).page(30, vectors(corpus))
    audited = open_queue(corpus, tag, {}).is_audited[page]
    assert np.flatnonzero(audited).tolist() == [9, 19, 29]


@pytest.mark.parametrize("answer", ["yes", "no", "unsure"])
def test_decided_images_never_return(corpus, answer):
    answers: dict[str, str] = {}
    for _ in range(10):
        page = {corpus.images[i] for i in open_queue(corpus, 3, answers).page(24, vectors(corpus))}
        assert len(page) == 24
        assert not page & answers.keys()
        answers |= dict.fromkeys(page, answer)


def test_of_a_rare_tag_what_seems_to_have_it_comes_first():
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(-6, 1, 980), np.linspace(-0.5, 4, 20)])
    order = np.argsort(-queues.information(logits))
    assert (order[:20] >= 980).mean() > 0.9
    assert 980 + 2 <= order[0] < 980 + 12  # nearest to the threshold, from above


def test_information_is_the_variance_and_the_worth_of_a_yes():
    logits = np.linspace(-3, 3, 61)
    p = 1 / (1 + np.exp(-logits))
    assert queues.information(logits) == pytest.approx(p * (1 - p) + p / 4)


def test_neighbours_are_not_shown_in_a_row():
    groups = np.repeat(np.arange(10), 10)
    points = np.eye(10)[groups] + 0.01 * np.random.default_rng(0).random((100, 10))
    order = np.arange(100)
    kept = queues.thin(order, np.zeros(0, np.int64), lambda rows: points[rows], 10)
    assert sorted(groups[kept]) == list(range(10))
    recent = np.array([0, 1, 10])
    kept = queues.thin(order[2:], recent, lambda rows: points[rows], 8)
    assert not {0, 1} & set(groups[kept].tolist())
    assert kept[0] == 20
    assert queues.thin(order[:5], recent, lambda rows: points[rows], 5).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]  # nothing else is left


def test_a_tag_that_the_model_does_not_know_follows_the_examples():
    rng = np.random.default_rng(1)
    points = rng.uniform(0.1, 0.4, (400, 16)).astype(np.float16)
    truth = np.arange(400) < 40
    points[truth, :3] += 0.5
    yes, no = [0, 1, 2], list(range(100, 130))
    scores = queues.scores_by_example(400, lambda rows: points[rows], yes, no)
    others = np.setdiff1d(np.arange(400), [*yes, *no])
    best = others[np.argsort(-scores[others])][:37]
    assert truth[best].mean() > 0.95


def test_until_a_yes_all_images_score_the_same():
    points = np.random.default_rng(1).random((9, 4)).astype(np.float16)
    assert len(set(queues.scores_by_example(9, lambda rows: points[rows], [], [0, 1]))) == 1
    assert len(queues.scores_by_example(0, lambda rows: points[rows], [], [])) == 0


def scores_of_sklearn(points: NDArray[np.float16], yes: list[int], no: list[int]) -> NDArray[np.float64]:
    """The same by scikit-learn's ridge regression, once for each decided image without it."""
    odds = np.log(points.astype(float) / (1 - points.astype(float)))
    odds -= odds.mean(axis=0)
    targets = np.array([1] * len(yes) + [0] * len(no))
    decided, ridge = np.array([*yes, *no]), Ridge(1 + odds.var(axis=0).sum(), fit_intercept=False)
    values = ridge.fit(odds[decided], targets).predict(odds)
    for place, image in enumerate(decided):
        rest = np.arange(len(decided)) != place
        model = ridge.fit(odds[decided[rest]], targets[rest])
        values[image] = model.predict(odds[[image]])[0]
    return 1 / (1 + np.exp(-queues.STEEPNESS * (values - 0.5)))


def test_examples_are_learned_by_ridge_regression_and_none_speaks_for_itself():
    points = np.random.default_rng(2).uniform(0.01, 0.99, (60, 9)).astype(np.float16)
    yes, no = [3, 50, 7], [10, 11, 40, 20, 59, 0, 33]
    scores = queues.scores_by_example(60, lambda rows: points[rows], yes, no)
    np.testing.assert_allclose(scores, scores_of_sklearn(points, yes, no), atol=1e-4)


def test_images_that_all_score_the_same_are_no_obstacle():
    points = np.full((5, 3), 0.5, np.float16)
    scores = queues.scores_by_example(5, lambda rows: points[rows], [0], [1])
    assert np.isfinite(scores).all()


def test_unsure_answers_do_not_count(corpus):
    tag = TAGS - 1
    queue = open_queue(corpus, tag, {})
    audited = [corpus.images[i] for i in np.argsort(queue.draws, kind="stable") if queue.is_audited[i]]
    answers = dict.fromkeys(audited[:3], "yes") | {audited[3]: "unsure", audited[4]: "no"}
    found = open_queue(corpus, tag, answers).precision()
    assert (found.right, found.seen) == (3, 4)
    skipped = {image: answer for image, answer in answers.items() if image != audited[1]}
    assert open_queue(corpus, tag, skipped).precision().seen == 1  # those after it are no random sample yet


def test_it_says_when_to_stop(corpus):
    tag = TAGS - 1
    assert open_queue(corpus, tag, {}).reason_to_stop() == ""
    everything = {image: "yes" if has else "no" for image, has in zip(corpus.images, corpus.truth[:, tag], strict=True)}
    assert "decided" in open_queue(corpus, tag, everything).reason_to_stop()
    queue = open_queue(corpus, tag, {})
    agreed = {corpus.images[i]: "yes" if queue.margins[i] > 0 else "no" for i in queue.ranks[: queues.ENOUGH]}
    assert "agreed" in open_queue(corpus, tag, agreed).reason_to_stop()
    assert open_queue(corpus, tag, dict(list(agreed.items())[1:])).reason_to_stop() == ""
    disagreed = agreed | {next(iter(agreed)): "unsure"}
    assert open_queue(corpus, tag, disagreed).reason_to_stop() == ""


def test_it_stops_when_what_is_left_is_reliable():
    images = [f"{i:064x}" for i in range(2_000)]
    scores = np.linspace(0.6, 0.99, 2_000)
    queue = TagQueue("sure", images, scores, 0.4, {})
    audited = [images[i] for i in np.argsort(queue.draws) if queue.is_audited[i]]
    assert len(audited) > 120
    wrong = dict.fromkeys(audited[:3], "no")
    reason = TagQueue("sure", images, scores, 0.4, wrong | dict.fromkeys(audited[3:120], "yes")).reason_to_stop()
    assert "of the 1,880 images left above the threshold" in reason
    assert TagQueue("sure", images, scores, 0.4, dict.fromkeys(audited[:20], "yes")).reason_to_stop() == ""

"""The paired tests: known values, intervals as wide as theory says, and chance that is not taken for a difference."""

import math
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from attnlstm.evaluation.comparison import (
    Metric,
    _stretch,
    binomial_tail,
    difference,
    flips,
    lost_classes,
    student_quantile,
)
from attnlstm.evaluation.metrics import evaluate

METRICS = get_args(Metric)
NUM_CLASSES = 5


def classifier(labels: npt.NDArray[np.int64], rate: float, seed: int) -> npt.NDArray[np.float32]:
    """Probabilities (N, 5) that name the label at about this rate, and another class at random else."""
    random = np.random.default_rng(seed)
    named = np.where(random.random(len(labels)) < rate, labels, random.integers(0, NUM_CLASSES, len(labels)))
    p = random.random((len(labels), NUM_CLASSES))
    p[np.arange(len(labels)), named] += 2
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def labels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).choice(NUM_CLASSES, 700, p=[0.5, 0.3, 0.1, 0.07, 0.03])


@pytest.mark.parametrize("metric", METRICS)
def test_difference_is_that_of_the_figures_and_positive_for_the_better(
    metric: Metric, labels: npt.NDArray[np.int64]
) -> None:
    worse, better = classifier(labels, 0.6, seed=2), classifier(labels, 0.8, seed=3)
    names = tuple("abcde")
    figures = [evaluate(p, labels, names)[metric] for p in (worse, better)]
    found = difference(metric, labels, worse, better)
    sign = -1 if metric == "log_loss" else 1
    assert found.value == pytest.approx(sign * (figures[1] - figures[0]))  # type: ignore[operator]
    assert 0 < found.low < found.value < found.high
    turned = difference(metric, labels, better, worse)
    assert turned.value == pytest.approx(-found.value)
    assert turned.high < 0


@pytest.mark.parametrize("metric", METRICS)
def test_equal_classifiers_differ_by_nothing(metric: Metric, labels: npt.NDArray[np.int64]) -> None:
    p = classifier(labels, 0.7, seed=4)
    found = difference(metric, labels, p, p)
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_seed_decides_the_bounds(metric: Metric, labels: npt.NDArray[np.int64]) -> None:
    a, b = classifier(labels, 0.7, seed=4), classifier(labels, 0.7, seed=5)
    assert difference(metric, labels, a, b, seed=6) == difference(metric, labels, a, b, seed=6)
    assert difference(metric, labels, a, b, seed=6) != difference(metric, labels, a, b, seed=7)


def test_interval_of_accuracy_is_as_wide_as_theory_says(labels: npt.NDArray[np.int64]) -> None:
    a, b = classifier(labels, 0.7, seed=4), classifier(labels, 0.75, seed=5)
    gains = (b.argmax(1) == labels).astype(float) - (a.argmax(1) == labels)
    half = 1.645 * gains.std() / math.sqrt(len(labels))
    found = difference("accuracy", labels, a, b)
    assert found.low == pytest.approx(gains.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gains.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_a_row_in_one_group_say_no_more_than_the_row(metric: Metric, labels: npt.NDArray[np.int64]) -> None:
    a, b = classifier(labels, 0.7, seed=4), classifier(labels, 0.75, seed=5)
    alone = difference(metric, labels, a, b, seed=6)
    nine = np.repeat(np.arange(len(labels)), 9)
    grouped = difference(metric, labels[nine], a[nine], b[nine], groups=nine * 17 - 3, seed=6)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    for_themselves = difference(metric, labels[nine], a[nine], b[nine], seed=6)
    assert for_themselves.high - for_themselves.low < 0.5 * (grouped.high - grouped.low)


def test_lower_bound_promises_too_much_about_once_in_twenty_times() -> None:
    random = np.random.default_rng(8)
    too_high = 0
    for trial in range(60):
        labels = random.integers(0, NUM_CLASSES, 200)
        a, b = classifier(labels, 0.8, seed=2 * trial), classifier(labels, 0.8, seed=2 * trial + 1)
        too_high += difference("accuracy", labels, a, b, seed=trial).low > 0
    assert 1 <= too_high <= 7


@pytest.mark.parametrize(("num_groups", "quantile"), [(2, 6.314), (3, 2.920), (4, 2.353), (6, 2.015), (31, 1.697)])
def test_interval_of_a_few_groups_is_stretched_to_students(num_groups: int, quantile: float) -> None:
    expected = quantile / 1.645 * math.sqrt(num_groups / (num_groups - 1))
    assert _stretch(num_groups) == pytest.approx(expected, rel=0.003)


def test_one_group_alone_is_judged_by_its_rows(labels: npt.NDArray[np.int64]) -> None:
    a, b = classifier(labels, 0.7, seed=4), classifier(labels, 0.75, seed=5)
    assert difference("accuracy", labels, a, b, np.full(len(labels), 7)) == difference("accuracy", labels, a, b)


def test_mcnemar_of_known_tables() -> None:
    # 2 * sum over k <= 3 of C(15, k) / 2^15, and the tail of the worse side.
    right_a = np.array([True] * 12 + [False] * 3 + [True] * 20)
    right_b = np.array([False] * 12 + [True] * 3 + [True] * 20)
    found = flips(right_a, right_b)
    assert (found.num_lost, found.num_won, found.groups_lost, found.groups_won) == (12, 3, 12, 3)
    expected = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert found.p_worse == pytest.approx(expected)
    assert found.p_value == pytest.approx(2 * expected)
    assert flips(right_b, right_a).p_worse == pytest.approx(sum(math.comb(15, k) for k in range(3, 16)) / 2**15)
    assert (flips(right_a, right_a).p_value, flips(right_a, right_a).p_worse) == (1, 1)


def test_groups_are_tested_and_not_their_rows() -> None:
    right_a, right_b = np.array([True] * 20), np.array([False] * 10 + [True] * 10)
    found = flips(right_a, right_b, groups=np.array([5] * 10 + [9] * 10))
    assert (found.num_lost, found.groups_lost, found.groups_won) == (10, 1, 0)
    assert found.p_worse == 0.5


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (0, 9), (5, 9), (9, 9), (600, 1000)])
def test_binomial_tail_is_exact(successes: int, trials: int) -> None:
    exact = sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials
    assert binomial_tail(successes, trials) == pytest.approx(exact, rel=1e-9)


def test_class_that_is_lost_is_named_and_one_that_flips_both_ways_is_not() -> None:
    labels = np.repeat([0, 1, 2], [1000, 40, 40])
    right_a, right_b = np.ones(1080, bool), np.ones(1080, bool)
    right_b[1000:1010] = False  # ten of class 1, none won
    right_a[1040:1050] = right_b[1050:1060] = False  # class 2: ten each way
    right_b[:2] = False  # two of a thousand
    assert lost_classes(labels, right_a, right_b) == [1]
    assert lost_classes(labels, right_b, right_a) == []


def test_many_classes_do_not_make_a_loss_of_chance() -> None:
    random = np.random.default_rng(9)
    alarms = 0
    for _ in range(100):
        labels = random.integers(0, 60, 1200)
        right_a, right_b = random.random(1200) < 0.7, random.random(1200) < 0.7
        alarms += bool(lost_classes(labels, right_a, right_b))
    assert alarms <= 10


@pytest.mark.parametrize("shapes", [((3, 2), (3, 3), 3), ((3, 2), (3, 2), 4), ((0, 2), (0, 2), 0)])
def test_shapes_that_disagree_are_refused(shapes: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    a, b, num_rows = shapes
    with pytest.raises(ValueError, match=r"probabilities \(N, C\), the same of both, and labels \(N,\)"):
        difference("accuracy", np.zeros(num_rows, np.int64), np.ones(a), np.ones(b))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 31, 1000, 10_000, 10**6])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile_is_that_of_scipy(confidence: float, freedom: int) -> None:
    expected = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))

    assert student_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-6 if freedom <= 10_000 else 1e-3)

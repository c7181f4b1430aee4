"""How much few rows show: the interval of an accuracy against what a simulation finds, and at its ends."""

import numpy as np
import pytest
from scipy import stats

from attnlstm.evaluation.chance import accuracy_interval


def test_interval_of_many_single_rows_is_wilsons() -> None:
    right = np.arange(20_000) < 17_000
    low, high = stats.binomtest(17_000, 20_000).proportion_ci(0.90, method="wilson")
    assert accuracy_interval(right) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("is_right", [True, False])
def test_rows_that_are_all_alike_are_no_certainty_and_groups_of_them_say_less(is_right: bool) -> None:
    right = np.full(8, is_right)
    widths = [high - low for low, high in (accuracy_interval(right), accuracy_interval(right, np.arange(8) // 2))]
    assert 0.25 < widths[0] < 0.4
    assert widths[1] > 1.5 * widths[0]
    assert (1.0 if is_right else 0.0) in accuracy_interval(right)


@pytest.mark.parametrize(("num_groups", "of_each"), [(30, 1), (12, 1), (20, 6)])
def test_interval_holds_the_true_accuracy_as_often_as_it_says(num_groups: int, of_each: int) -> None:
    rng = np.random.default_rng(61)
    groups = np.repeat(np.arange(num_groups), of_each)
    held = 0
    for _ in range(500):
        of_group = rng.beta(0.8 * 3, 0.2 * 3, num_groups)  # rows of a group resemble each other
        low, high = accuracy_interval(rng.random(len(groups)) < of_group[groups], groups)
        held += low <= 0.8 <= high
    assert held / 500 > 0.86

"""Which predictions are withheld, and at which score a class reaches a precision."""

import numpy as np
import pytest

from attnlstm.evaluation.abstention import coverage_and_accuracy, precision_steps, thresholds_of, withheld


def probabilities_of(scores: list[float], winners: list[int]) -> np.ndarray:
    """Of two classes: the winner has the score."""
    p = np.empty((len(scores), 2), np.float32)
    p[np.arange(len(scores)), winners] = scores
    p[np.arange(len(scores)), 1 - np.array(winners)] = 1 - np.array(scores)
    return p


def test_steps_are_the_lowest_scores_from_which_on_a_class_is_so_precise() -> None:
    # From the top: 1 right of 2, 2 of 3, 3 of 4, 3 of 5; the two rows of 0.7 come together. One wrong row is assumed.
    p = probabilities_of([0.95, 0.9, 0.8, 0.7, 0.7, 0.6], [0, 0, 0, 0, 0, 1])
    labels = np.array([0, 0, 0, 1, 0, 1])
    first, second = precision_steps(p, labels)
    assert [(at, precision) for at, precision in first] == [
        (pytest.approx(0.7, abs=2e-6), pytest.approx(4 / 6, abs=1e-4)),
        (pytest.approx(0.8, abs=2e-6), pytest.approx(3 / 4)),
    ]
    assert second == [(pytest.approx(0.6, abs=2e-6), 0.5)]
    steps = {"a": first, "b": second}
    assert thresholds_of("precision=0.7", ("a", "b"), steps) == pytest.approx([0.8, 2.0], abs=2e-6)
    assert withheld(p, thresholds_of("precision=0.7", ("a", "b"), steps)).tolist() == [False] * 3 + [True] * 3


def test_precision_that_is_asked_for_holds_on_other_rows() -> None:
    rng = np.random.default_rng(73)
    scores = rng.uniform(0.5, 1, 20_000)
    winners = rng.integers(0, 2, 20_000)
    labels = np.where(rng.random(20_000) < scores**2, winners, 1 - winners)  # too sure of itself
    p = probabilities_of(scores.tolist(), winners.tolist())
    steps = dict(zip("ab", precision_steps(p[:10_000], labels[:10_000]), strict=True))
    coverage, accuracy = coverage_and_accuracy(
        p[10_000:], labels[10_000:], thresholds_of("precision=0.8", ("a", "b"), steps)
    )
    assert accuracy == pytest.approx(0.8, abs=0.02)
    assert 0.2 < coverage < 0.6
    assert len(steps["a"]) <= 40


def test_score_is_the_same_for_all_classes_and_none_is_withheld_at_it() -> None:
    p = probabilities_of([0.75, 0.5], [0, 1])
    thresholds = thresholds_of("0.75", ("a", "b"), {})
    assert withheld(p, thresholds).tolist() == [False, True]
    assert coverage_and_accuracy(p, np.array([0, 0]), thresholds) == (0.5, 1.0)
    assert coverage_and_accuracy(p, np.array([0, 0]), np.full(2, 2.0, np.float32)) == (0.0, None)


@pytest.mark.parametrize("wanted", ["", "1.5", "80%", "precision=", "recall=0.9", "-0.1"])
def test_what_is_neither_a_score_nor_a_precision_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"a score such as 0\.8 or a precision such as precision=0\.95 is needed, not"):
        thresholds_of(wanted, ("a", "b"), {})


def test_precision_of_a_class_that_nothing_is_known_of_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not known at which scores 'b' reaches a precision"):
        thresholds_of("precision=0.9", ("a", "b"), {"a": []})

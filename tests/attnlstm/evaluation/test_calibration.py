"""The temperature and the biases that were there are found again."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from attnlstm.evaluation.calibration import fit_biases, fit_temperature


def overconfident(temperature: float, num_rows: int = 20_011) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times too large for their labels."""
    rng = np.random.default_rng(61)
    honest = rng.normal(size=(num_rows, 5)) * 2
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)
    return (honest * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature: float) -> None:
    assert fit_temperature(*overconfident(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("weights", [None, np.random.default_rng(3).random(307)])
def test_it_is_the_minimum_of_the_log_loss_with_one_more_row(weights: np.ndarray | None) -> None:
    logits, labels = overconfident(2.0, num_rows=307)
    counting = np.ones(307) if weights is None else weights

    def loss(temperature: float) -> float:
        of_all = -log_softmax(logits.astype(np.float64) / temperature, axis=1)
        of_labels = counting @ of_all[np.arange(307), labels]
        return of_labels + counting @ of_all.mean(axis=1) / counting.sum()

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(logits, labels, weights) == pytest.approx(expected, rel=1e-5)


def test_few_rows_that_are_all_right_are_no_ground_for_certainty() -> None:
    labels = np.arange(100) % 2
    logits = np.where(labels[:, None] == np.arange(2), 9.0, -9.0)
    confidence = 1 / (1 + np.exp(-18 / fit_temperature(logits, labels)))
    assert confidence == pytest.approx(1 - 0.5 / 101)


def test_rows_that_say_nothing_about_it_end_at_a_bound() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert fit_temperature(logits / 99, np.array([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(20.0)


def test_huge_logits_do_not_overflow() -> None:
    logits, labels = overconfident(2.0, num_rows=307)
    logits += 1e6
    assert 0.05 <= fit_temperature(logits * 1e6, labels) <= 20.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "N > 0"),
        (np.zeros((3, 2)), np.zeros(2, int), r"got \(3, 2\) and \(2,\)"),
        (np.array([[np.nan, 1.0]]), np.zeros(1, int), "logits must be finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    for fit in (fit_temperature, fit_biases):
        with pytest.raises(ValueError, match=message):
            fit(logits, labels)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_biases_that_were_taken_away_are_found_again(temperature: float) -> None:
    logits, labels = overconfident(temperature)
    taken = np.array([2.0, -1.0, 0.0, *np.zeros(logits.shape[1] - 3)]) * temperature
    found = fit_biases(logits - taken, labels)
    assert found - found.mean() == pytest.approx(taken - taken.mean(), abs=0.1 * temperature)
    assert fit_temperature(logits - taken + found, labels) == pytest.approx(temperature, rel=0.03)


def test_biases_are_not_fitted_to_chance_nor_without_bound_to_a_class_without_rows() -> None:
    logits, labels = np.zeros((300, 3), np.float32), np.tile([0, 0, 1], 100)
    assert not fit_biases(logits[:3], labels[:3]).any()
    first, second, third = fit_biases(logits, labels)
    assert first > second > third > first - 10


@settings(deadline=None, max_examples=60)
@given(data=strategies.data())
def test_biases_are_finite_whatever_the_logits(data: strategies.DataObject) -> None:
    shape = data.draw(strategies.tuples(strategies.integers(1, 9), strategies.integers(2, 5)))
    logits = data.draw(arrays(np.float32, shape, elements=strategies.floats(-1e4, 1e4, width=32)))
    labels = data.draw(arrays(np.int64, shape[:1], elements=strategies.integers(0, shape[1] - 1)))
    weights = data.draw(arrays(np.float64, shape[:1], elements=strategies.floats(0.01, 1)))
    assert np.isfinite(fit_biases(logits, labels, weights)).all()

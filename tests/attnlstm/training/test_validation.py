"""What decides which weights are kept."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from attnlstm.training.validation import calibration_weights, count_repeats, validate


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(67)
    logits = rng.normal(size=(503, 3))
    return logits.astype(np.float32), (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def test_figures_are_scikit_learns() -> None:
    logits, labels = example()
    found = validate(logits, labels, np.ones(503))
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(sklearn_metrics.log_loss(labels, probabilities))
    predicted = logits.argmax(axis=1)
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))


def test_being_too_sure_does_not_count_against_weights() -> None:
    logits, labels = example()
    honest, too_sure = validate(logits, labels, np.ones(503)), validate(logits * 7, labels, np.ones(503))
    assert too_sure.loss > honest.loss
    assert too_sure.calibrated_loss == pytest.approx(honest.calibrated_loss, rel=1e-3)


def test_logits_that_are_not_finite_are_an_error() -> None:
    logits, labels = example()
    logits[3, 1] = np.nan
    with pytest.raises(FloatingPointError, match="logits that are not finite"):
        validate(logits, labels, np.ones(503))


def test_rows_that_are_the_same_count_once() -> None:
    logits, labels = example()
    repeats = np.random.default_rng(73).integers(1, 9, 503)
    repeated, again = np.repeat(logits, repeats, axis=0), np.repeat(labels, repeats)
    lengths = np.full(len(again), 2)
    tokens = np.repeat(np.stack((np.arange(503) // 256, np.arange(503) % 256), axis=1), repeats, axis=0)
    counted = count_repeats(tokens.ravel().astype(np.uint8), np.concatenate(([0], np.cumsum(lengths))))
    np.testing.assert_array_equal(counted, np.repeat(repeats, repeats))
    found, expected = validate(repeated, again, 1 / counted), validate(logits, labels, np.ones(503))
    assert found.calibrated_loss == pytest.approx(expected.calibrated_loss)
    assert found.loss != pytest.approx(expected.loss, rel=1e-3)


def test_for_calibration_no_number_of_equal_rows_counts_like_more_than_ten() -> None:
    repeats = np.array([1, 2, 10, 1000])
    np.testing.assert_allclose(calibration_weights(repeats) * repeats, [1, 2 / 1.1, 10 / 1.9, 1000 / 100.9])

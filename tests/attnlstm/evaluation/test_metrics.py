"""The figures against scikit-learn's, and against counts by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from attnlstm.evaluation.metrics import auroc, evaluate

CLASSES = ("a", "b", "c", "d", "e")


def example(num_rows: int = 211) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities over five classes and labels, of which "e" is never one and "d" is never predicted."""
    rng = np.random.default_rng(59)
    labels = rng.choice(4, num_rows, p=[0.5, 0.2, 0.2, 0.1])
    logits = rng.normal(size=(num_rows, 5))
    logits[np.arange(num_rows), labels] += 1.0
    logits[:, 3] = -9.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_figures_are_scikit_learns() -> None:
    probabilities, labels = example()
    predicted = probabilities.argmax(axis=1)
    found = evaluate(probabilities, labels, CLASSES)
    assert (found["num_rows"], found["majority_accuracy"]) == (211, np.bincount(labels).max() / 211)
    assert found["auroc"] is None, "a class has no row"
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predicted, labels=[0, 1, 2, 3], average="macro", zero_division=0)
    )
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(labels, exact, labels=range(5)), rel=1e-6)
    assert found["confusion"] == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(5)).tolist()
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=0
    )
    for i, name in enumerate(CLASSES):
        assert found["per_class"][name] == pytest.approx(  # type: ignore[index]
            {"precision": precision[i], "recall": recall[i], "f1": f1[i], "num_rows": support[i]}
        )


def test_calibration_error_by_hand() -> None:
    # Two rows in one bin: confidence 0.9, accuracy 0.5. One in another: confidence 0.62, right.
    probabilities = np.array([[0.91, 0.09], [0.89, 0.11], [0.38, 0.62]])
    found = evaluate(probabilities, np.array([0, 1, 1]), ("a", "b"))["ece"]
    assert found == pytest.approx((2 * 0.4 + 0.38) / 3)


def test_auroc_is_scikit_learns_ties_included() -> None:
    rng = np.random.default_rng(71)
    labels = rng.integers(0, 4, 307)
    probabilities = rng.dirichlet(np.ones(4), 307).round(1) + 0.05
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert auroc(probabilities, labels) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    two = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    found = evaluate(two, labels % 2, ("a", "b"))["auroc"]
    assert found == pytest.approx(sklearn_metrics.roc_auc_score(labels % 2, two[:, 1]))


def test_a_certain_and_wrong_row_has_a_finite_loss() -> None:
    found = evaluate(np.array([[1.0, 0.0]], np.float32), np.array([1]), ("a", "b"))
    assert found["log_loss"] == pytest.approx(15.94, abs=0.01)
    assert found["ece"] == 1.0


@pytest.mark.parametrize(
    ("num_rows", "labels", "classes", "message"),
    [
        (0, [], ("a", "b"), r"must agree; got \(0, 2\), \(0,\) and 2"),
        (2, [0], ("a", "b"), r"must agree; got \(2, 2\), \(1,\) and 2"),
        (1, [0], ("a", "b", "c"), r"must agree; got \(1, 2\), \(1,\) and 3"),
        (2, [0, 2], ("a", "b"), r"labels must be in 0\.\.1; found 0\.\.2"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    num_rows: int, labels: list[int], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(np.full((num_rows, 2), 0.5), np.array(labels, np.int64), classes)

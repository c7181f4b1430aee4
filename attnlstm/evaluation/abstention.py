"""When a network may say that it does not know: scores below which its predictions are withheld.

Owns what can be asked for, the scores at which a class reaches a precision, and what is left and right above them. A
score is the probability of the predicted class. Knows numpy only.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

PATTERN = r"^(precision=)?(0|1|0?\.[0-9]+|1\.0+)$"
"""What can be asked for: a score such as 0.8, or a precision of each class, such as precision=0.95."""

LADDER = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Scores, and precisions, of which a card says what is left and how much of it is right."""

NEVER = 2.0
"""A score that no row has: of a class that does not reach the precision."""

_MOST_STEPS = 40


def precision_steps(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
) -> list[list[tuple[float, float]]]:
    """For each class the scores from which on its predictions reach a precision: pairs (score, precision), both rising.

    probabilities: float (N, C), of rows that were not trained on. labels: integer (N,), in 0 .. C - 1.
    To the predictions of a class at a score or above, one more that is wrong is taken to have been seen: a few that are
    all right are no ground for certainty. So precision=0.95 needs 19 of them.
    """
    best, scores = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
    steps = []
    for c in range(probabilities.shape[1]):
        rows = np.flatnonzero(best == c)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        right = np.cumsum(labels[rows] == c)
        precision = right / (np.arange(len(rows)) + 2)
        # Rows of one score come together: the last of them stands for all.
        is_last = np.append(scores[rows][1:] != scores[rows][:-1], True) if len(rows) else np.zeros(0, bool)
        found: list[tuple[float, float]] = []
        for at, reached in zip(scores[rows][is_last][::-1], precision[is_last][::-1], strict=True):
            # Rounded down, so that the rows of this very score are kept.
            if reached > (found[-1][1] if found else 0.0):
                found.append((float(np.floor(at * 1e6) / 1e6), float(round(reached, 4))))
        steps.append(found[:: max(1, -(-len(found) // _MOST_STEPS))])
    return steps


def thresholds_of(
    wanted: str, classes: Sequence[str], by_class: Mapping[str, Sequence[Sequence[float]]]
) -> npt.NDArray[np.float32]:
    """float32 (C,): the score below which a prediction of each class is withheld.

    wanted: as PATTERN has it. by_class: `precision_steps`, by the names of the classes.
    Raises ValueError if it is a precision and a class has no steps, or if it is something else.
    """
    if not re.fullmatch(PATTERN, wanted):
        raise ValueError(f"a score such as 0.8 or a precision such as precision=0.95 is needed, not {wanted!r}")
    value = float(wanted.removeprefix("precision="))
    if not wanted.startswith("precision="):
        return np.full(len(classes), value, np.float32)
    if missing := [name for name in classes if name not in by_class]:
        raise ValueError(f"it is not known at which scores {missing[0]!r} reaches a precision")
    reached = [next((at for at, precision in by_class[name] if precision >= value), NEVER) for name in classes]
    return np.array(reached, np.float32)


def withheld(probabilities: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """bool (N,): rows whose score is below the threshold of their class. probabilities: (N, C). thresholds: (C,)."""
    if not len(probabilities):
        return np.zeros(0, bool)
    below: npt.NDArray[np.bool_] = probabilities.max(axis=1) < thresholds[probabilities.argmax(axis=1)]
    return below


def coverage_and_accuracy(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.integer], thresholds: npt.NDArray[np.float32]
) -> tuple[float, float | None]:
    """The share of rows that keep their prediction, and the share of right ones among them; None of none."""
    kept = ~withheld(probabilities, thresholds)
    right = probabilities.argmax(axis=1) == labels
    return float(kept.mean()), float(right[kept].mean()) if kept.any() else None

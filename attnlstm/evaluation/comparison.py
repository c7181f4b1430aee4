"""Two classifiers on the same rows: how far apart they are, and how sure one can be of it.

Owns the paired tests: McNemar's, and the bootstrap interval of a difference. Knows numpy only, and nothing of what is
decided by them. In all of it B is the new classifier and A the old one, and a positive difference speaks for B.

Rows of a group (pieces of one file, messages of one author) resemble each other, so a hundred of them say less than a
hundred rows from everywhere. Wherever chance is weighed here, groups are drawn and counted, not rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.metrics import log_losses

Metric = Literal["accuracy", "macro_f1", "log_loss"]

NUM_RESAMPLES = 2000
"""Of the bootstrap: enough that the bounds of a 90% interval move by a few hundredths of its width."""

CONFIDENCE = 0.90
"""Of the interval; each of its bounds alone is one of 95%, which is what a decision by one bound rests on."""

FALSE_ALARMS = 0.05
"""The chance of naming a class as lost that is not."""

_COUNTS_AT_ONCE = 1 << 22
_NORMAL_95 = 1.6449
_MOST_FREEDOM = 10_000  # beyond it Student's distribution is the normal one, to three digits and more

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Booleans = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.number]


@dataclass(frozen=True)
class Difference:
    """Of a metric, B less A (for a loss A less B), with its paired bootstrap interval over groups."""

    metric: Metric
    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Flips:
    """Rows on which one of two classifiers is right and the other wrong.

    num_lost: only A is right. num_won: only B is. groups_lost, groups_won: groups with more of the one than of the
    other; where every row is a group of its own, the same numbers.
    """

    num_lost: int
    num_won: int
    groups_lost: int
    groups_won: int

    @property
    def p_worse(self) -> float:
        """The probability of so many lost groups or more if each went either way with equal chance."""
        return binomial_tail(self.groups_lost, self.groups_lost + self.groups_won)

    @property
    def p_value(self) -> float:
        """Two-sided; McNemar's test (1947) in its exact form where every row is a group, else a sign test of groups."""
        p_better = binomial_tail(self.groups_won, self.groups_lost + self.groups_won)
        return min(1.0, 2 * min(self.p_worse, p_better))


def flips(right_a: Booleans, right_b: Booleans, groups: Integers | None = None) -> Flips:
    """right_a, right_b: bool (N,), whether each classifier names the class of each row. groups: see `difference`."""
    gained = right_b.astype(np.int64) - right_a
    if groups is None:
        by_group = gained
    else:
        numbers = np.unique(groups, return_inverse=True)[1]
        by_group = np.bincount(numbers, gained).astype(np.int64) if len(gained) else gained
    counts = [int(np.count_nonzero(each)) for each in (gained < 0, gained > 0, by_group < 0, by_group > 0)]
    return Flips(*counts)


def binomial_tail(successes: int, trials: int) -> float:
    """The probability of this many successes or more in trials of chance one half; 1 without trials."""
    if successes <= 0:
        return 1.0
    logs = [
        math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in range(successes, trials + 1)
    ]
    return min(1.0, math.fsum(math.exp(log - trials * math.log(2)) for log in logs))


def lost_classes(labels: Integers, right_a: Booleans, right_b: Booleans, groups: Integers | None = None) -> list[int]:
    """Classes that B names worse than A beyond chance.

    One exact test a class, with Holm's correction (Holm 1979), so that the chance of naming any class wrongly
    stays within FALSE_ALARMS, however many classes there are.
    """
    tests = []
    for c in np.unique(labels).tolist():
        rows = labels == c
        tests.append((flips(right_a[rows], right_b[rows], None if groups is None else groups[rows]).p_worse, c))
    found = []
    for rank, (p, c) in enumerate(sorted(tests)):
        if p > FALSE_ALARMS / (len(tests) - rank):
            break
        found.append(c)
    return sorted(found)


def difference(
    metric: Metric, labels: Integers, p_a: Floats, p_b: Floats, groups: Integers | None = None, seed: int = 0
) -> Difference:
    """How much better B is, with the bounds of its interval.

    labels: integer (N,), in 0 .. C - 1. p_a, p_b: float (N, C), probabilities of the same rows.
    groups: integer (N,), equal for rows that belong together; None: every row for itself.
    seed: of the resampling; the same gives the same bounds. Raises ValueError if shapes disagree or without rows.
    """
    if p_a.shape != p_b.shape or p_a.shape[:1] != labels.shape or not len(labels):
        raise ValueError(
            f"probabilities (N, C), the same of both, and labels (N,), N > 0, are needed; "
            f"got {p_a.shape}, {p_b.shape} and {labels.shape}"
        )
    draws = _Draws(numbered_groups(groups, len(labels)), seed)
    if metric == "log_loss":
        gains = log_losses(p_a, labels) - log_losses(p_b, labels)
        value, resampled = float(gains.mean()), draws.means(gains)
    else:
        score = _accuracies if metric == "accuracy" else _macro_f1s
        triples = np.stack([labels, p_a.argmax(axis=1), p_b.argmax(axis=1)], axis=1).astype(np.int64)
        # What counts of a row is its label and both predictions, so how many rows there are of each kind is all.
        kinds, kind_of_row, counts = np.unique(triples, axis=0, return_inverse=True, return_counts=True)
        label, a, b = kinds.T

        def gain(counts: Numbers) -> npt.NDArray[np.float64]:
            return score(counts, label, b, p_b.shape[1]) - score(counts, label, a, p_a.shape[1])

        value = float(gain(counts[None])[0])
        resampled = np.concatenate([gain(each) for each in draws.counts(kind_of_row, len(kinds))])
    tail = (1 - CONFIDENCE) / 2
    bounds = np.quantile(resampled, [tail, 1 - tail])
    low, high = (value + (bounds - value) * _stretch(draws.num_groups)).tolist()
    return Difference(metric, value, low, high)


def _stretch(num_groups: int) -> float:
    """By how much the bootstrap's interval is too narrow: much for a few groups, nothing for many (Hesterberg 2015).

    It takes the spread among the groups for the true one, which is larger by a factor and not known for certain:
    Student's quantile belongs in place of the normal one.
    """
    freedom = max(1, num_groups - 1)
    return student_quantile(CONFIDENCE, freedom) / _NORMAL_95 * math.sqrt((freedom + 1) / freedom)


def student_quantile(confidence: float, freedom: int) -> float:
    """The bound that a variable of Student's t distribution stays within, on both sides, with this probability.

    confidence: above 0 and below 1. freedom: degrees of freedom, 1 or more. The probability of a bound is the finite
    series of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4; it is bisected.
    """
    freedom = min(freedom, _MOST_FREEDOM)
    low, high = 0.0, math.pi / 2  # the angle whose tangent is the bound over the root of the freedom
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _probability_within(angle, freedom) < confidence else (low, angle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _probability_within(angle: float, freedom: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    steps = np.arange(1 + is_odd, freedom - 1, 2)  # factors of a term over the one before it: n / (n + 1) of cosine^2
    terms = np.cumprod(np.concatenate(([1.0], steps / (steps + 1) * cosine**2)))
    if not is_odd:
        return float(sine * terms.sum())
    series = sine * cosine * terms.sum() if freedom > 1 else 0.0
    return float(2 / math.pi * (angle + series))


def numbered_groups(groups: Integers | None, num_rows: int) -> npt.NDArray[np.int64]:
    """Groups by numbers from 0 on. One group alone shows no spread at all, so then rows have to do."""
    if groups is None or (groups == groups[0]).all():
        return np.arange(num_rows)
    return np.unique(groups, return_inverse=True)[1]


class _Draws:
    """NUM_RESAMPLES draws of as many groups as there are, with replacement. groups: (N,), numbers from 0 on."""

    def __init__(self, groups: Integers, seed: int) -> None:
        self._groups = groups
        self.num_groups = int(groups.max()) + 1
        self._rng = np.random.default_rng(seed)

    def _times_drawn(self) -> npt.NDArray[np.int64]:
        return np.bincount(self._rng.integers(0, self.num_groups, self.num_groups), minlength=self.num_groups)

    def means(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """float64 (NUM_RESAMPLES,): the mean over the rows drawn. values: (N,)."""
        sums, sizes = np.bincount(self._groups, values), np.bincount(self._groups).astype(np.float64)
        times = (self._times_drawn().astype(np.float64) for _ in range(NUM_RESAMPLES))
        return np.array([each @ sums / (each @ sizes) for each in times])

    def counts(self, kind_of_row: Integers, num_kinds: int) -> Iterator[npt.NDArray[np.float64]]:
        """(R, K) at a time, NUM_RESAMPLES in all: how many rows of each kind were drawn."""
        at_once = max(1, _COUNTS_AT_ONCE // num_kinds)
        for start in range(0, NUM_RESAMPLES, at_once):
            yield np.stack(
                [
                    np.bincount(kind_of_row, self._times_drawn()[self._groups], num_kinds)
                    for _ in range(min(at_once, NUM_RESAMPLES - start))
                ]
            )


def _accuracies(counts: Numbers, label: Integers, predicted: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """float64 (R,). counts: (R, K), rows of each of K kinds in each of R samples. label, predicted: (K,)."""
    accuracies: npt.NDArray[np.float64] = counts[:, label == predicted].sum(axis=1) / counts.sum(axis=1)
    return accuracies


def _macro_f1s(counts: Numbers, label: Integers, predicted: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """The same for the mean F1 over the classes among a sample's labels, as in `metrics.evaluate`."""
    is_class = np.eye(num_classes)
    of_label, of_prediction = counts @ is_class[label], counts @ is_class[predicted]
    right = counts[:, label == predicted] @ is_class[label[label == predicted]]
    f1 = 2 * right / np.maximum(of_label + of_prediction, 1)
    present = of_label > 0
    means: npt.NDArray[np.float64] = (f1 * present).sum(axis=1) / present.sum(axis=1)
    return means

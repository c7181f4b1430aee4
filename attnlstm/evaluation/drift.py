"""Whether the rows that a checkpoint scores still look like the rows that it was measured on.

Owns what of the rows is looked at (tokens, lengths, predicted classes, confidence), how two samples of them are
compared, and how far apart is too far. Knows numpy only: where a reference is kept, and what comes of a verdict, is
the caller's.

Two samples of the same rows are never equal, and the fewer the rows, the further they are apart, so a rule of thumb
for an index of distance raises alarms about small samples. The limit here is such a rule plus what chance explains:
for shares p and q of K bins, 8 ln 2 times their Jensen-Shannon divergence is about sum((p - q)^2 / p), which among
samples of n and m rows is spread as (1 / n + 1 / m) * sum(eigenvalue_k * chi-square_k(1)), with the eigenvalues of
the shares' covariance between rows, divided by the shares (Rao and Scott 1981, section 3). Rows count, not tokens:
the tokens of a row resemble each other. Two moments of the eigenvalues are enough for a quantile (Satterthwaite's
approximation, Rao and Scott 1981, section 4), and the reference keeps them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]

ASPECTS = ("tokens", "lengths", "classes", "confidence")
"""What of the rows is compared: classes as predicted, confidence as the probability of the predicted class."""

TOLERANCE = 0.1
"""Population stability index that is let pass beside what chance explains: by rule of thumb, below it is no shift."""

_QUANTILE = 3.09  # of the standard normal distribution at 0.999: each aspect's share of alarms by chance alone
_PSI_PER_BIT = 8 * math.log(2)  # for small shifts, the index is this many times the divergence in bits
_MOST_TOKENS = 256  # commonest tokens with a bin of their own; all others share one
_NUM_QUANTILES = 10
_NUM_CONFIDENCES = 10  # bins of equal width over 0..1
_NUM_BUCKETS = 4096  # enough for a covariance, however many rows
# numpy's bincount makes a copy eight times the size of bytes, and is twice as fast when that stays in the cache.
_TOKENS_AT_ONCE = 1 << 18


def reference(
    values: Integers,
    offsets: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.floating],
    groups: Integers | None = None,
) -> dict[str, Any]:
    """What scored rows look like, for a checkpoint's card; it fits into JSON.

    values, offsets: N ragged rows that were not trained on, as `Engine.score` takes them.
    probabilities: float (N, C), what the checkpoint says about them.
    groups: integer (N,), equal for rows that belong together, such as pieces of one file, and so resemble each other;
    rows to come are taken to be grouped likewise. None: every row for itself.
    Returns num_rows and, by aspect, its bins, the share of each, and noise: the first two moments of the eigenvalues
    that say how much the shares vary between rows.
    Raises ValueError without rows or if shapes disagree.
    """
    lengths = np.diff(offsets)
    num_rows = len(lengths)
    groups = np.arange(num_rows) if groups is None else groups
    if not num_rows or len(probabilities) != num_rows or len(values) != offsets[-1] or len(groups) != num_rows:
        raise ValueError(
            f"values, offsets (N + 1,), probabilities (N, C) and groups (N,), N > 0, must agree; got {values.shape}, "
            f"{offsets.shape}, {probabilities.shape} and {groups.shape}"
        )
    deciles = np.quantile(lengths, np.arange(_NUM_QUANTILES) / _NUM_QUANTILES).astype(np.int64)
    bins = _Bins(
        token_ids=_commonest(values),
        # Below the shortest and above the longest there is nothing, so what is found there later stands out.
        length_edges=np.unique([*deciles, lengths.max() + 1]),
        num_classes=probabilities.shape[1],
    )
    buckets = (groups % _NUM_BUCKETS).astype(np.int64)  # groups may be hashes, of which uint64 does not add up
    by_bucket = {"tokens": np.zeros((_NUM_BUCKETS, len(bins.token_ids) + 1), np.int64)}
    for start in range(0, len(values), _TOKENS_AT_ONCE):
        tokens = np.arange(start, min(start + _TOKENS_AT_ONCE, len(values)))
        rows = np.searchsorted(offsets, tokens, side="right") - 1
        by_bucket["tokens"] += _cross(buckets[rows], bins.of_tokens(values[tokens]), len(bins.token_ids) + 1)
    rows_by_aspect = bins.of_rows(lengths, probabilities.argmax(axis=1), probabilities.max(axis=1))
    for name, (of_row, size) in rows_by_aspect.items():
        by_bucket[name] = _cross(buckets, of_row, size)
    aspects = {
        name: {"shares": (counts.sum(axis=0) / counts.sum()).tolist(), "noise": _noise(counts, num_rows)}
        for name, counts in by_bucket.items()
    }
    aspects["tokens"]["ids"] = bins.token_ids.tolist()
    aspects["lengths"]["edges"] = bins.length_edges.tolist()
    return {"num_rows": num_rows, **aspects}


class Observed:
    """Counts over scored rows, in the bins of a reference. A few kilobytes, whatever the number of rows.

    confidence: sum over the rows of the probability of the predicted class. counts: by aspect, in each bin.
    """

    def __init__(self, reference: Mapping[str, Any]) -> None:
        sizes = {name: len(reference[name]["shares"]) for name in ASPECTS}
        self._bins = _Bins(
            token_ids=np.array(reference["tokens"]["ids"], np.int64),
            length_edges=np.array(reference["lengths"]["edges"], np.int64),
            num_classes=sizes["classes"],
        )
        self.num_rows = 0
        self.confidence = 0.0
        self.counts: dict[str, Counts] = {name: np.zeros(size, np.int64) for name, size in sizes.items()}

    def add(
        self,
        values: Integers,
        offsets: npt.NDArray[np.int64],
        predicted: Integers,
        confidence: npt.NDArray[np.floating],
    ) -> None:
        """Count N more rows.

        values, offsets: ragged rows. predicted: integer (N,), the class that the reference's checkpoint gave them;
        confidence: float (N,), its probability. Both in place of all probabilities, since whoever counts while scoring
        has them at hand.
        """
        self.num_rows += len(predicted)
        self.confidence += float(confidence.sum(dtype=np.float64))
        for name, count in self._bins.counts(values, np.diff(offsets), predicted, confidence).items():
            self.counts[name] += count

    def merge(self, other: Self) -> None:
        """Count what `other`, of the same reference, has counted."""
        self.num_rows += other.num_rows
        self.confidence += other.confidence
        # Not in place: counts that a process of a Ray cluster has sent are read-only.
        self.counts = {name: count + other.counts[name] for name, count in self.counts.items()}


@dataclass(frozen=True)
class Shift:
    """How far one aspect of the rows is from the reference.

    psi: population stability index, sum of (p - q) ln(p / q), with half a row added to each bin. For the eye: among
    few rows it is large by chance, so the verdict is not drawn from it.
    jensen_shannon: divergence in bits, 0 for equal shares, 1 for shares that have no bin in common.
    limit: of the divergence; drifted: whether it is above.
    """

    psi: float
    jensen_shannon: float
    limit: float
    drifted: bool


@dataclass(frozen=True)
class DriftReport:
    """How far scored rows are from the reference.

    estimated_accuracy: mean probability of the predicted class. It estimates the share of right predictions as long
    as the checkpoint's probabilities are calibrated for these rows, which nobody knows without labels, and which
    drifted rows make doubtful.
    shifts: by aspect. shares: by aspect, of the scored rows or their tokens in each bin of the reference.
    """

    num_rows: int
    estimated_accuracy: float
    shifts: dict[str, Shift]
    shares: dict[str, list[float]]

    @property
    def drifted(self) -> list[str]:
        """The aspects that are beyond their limits."""
        return [name for name, shift in self.shifts.items() if shift.drifted]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "drifted": self.drifted}


def compare(reference: Mapping[str, Any], observed: Observed, *, tolerance: float = TOLERANCE) -> DriftReport:
    """Hold scored rows against the reference.

    reference: as `reference` made it. observed: counts of at least one row, in its bins.
    tolerance: population stability index that is let pass beside what chance explains.
    Raises ValueError if no row was counted.
    """
    if not observed.num_rows:
        raise ValueError("there is no scored row to compare with the reference")
    rows = (reference["num_rows"], observed.num_rows)
    shifts, shares = {}, {}
    for name, count in observed.counts.items():
        p, q = np.array(reference[name]["shares"]), count / count.sum()
        chance = _chance(*reference[name]["noise"]) * (1 / rows[0] + 1 / rows[1])
        distance, limit = _jensen_shannon(p, q), (tolerance + chance) / _PSI_PER_BIT
        shifts[name] = Shift(
            psi=_digits(_stability_index(p, q, *rows)),
            jensen_shannon=_digits(distance),
            limit=_digits(limit),
            drifted=distance > limit,
        )
        shares[name] = [_digits(share) for share in q.tolist()]
    return DriftReport(observed.num_rows, _digits(observed.confidence / observed.num_rows), shifts, shares)


@dataclass(frozen=True)
class _Bins:
    """token_ids: (K,) ascending, a bin each, and one more for all others. length_edges: (L,), where each bin starts."""

    token_ids: npt.NDArray[np.int64]
    length_edges: npt.NDArray[np.int64]
    num_classes: int

    def of_tokens(self, token_ids: Integers) -> npt.NDArray[np.intp]:
        """The bin of each token."""
        others = len(self.token_ids)
        table = np.full(int(self.token_ids[-1]) + 2, others)
        table[self.token_ids] = np.arange(others)
        return table[np.minimum(token_ids, len(table) - 1, dtype=np.int64)]

    def of_rows(
        self, lengths: Integers, predicted: Integers, confidence: npt.NDArray[np.floating]
    ) -> dict[str, tuple[Integers, int]]:
        """By aspect, the bin of each row, and the number of bins."""
        return {
            "lengths": (np.searchsorted(self.length_edges, lengths, side="right"), len(self.length_edges) + 1),
            "classes": (predicted, self.num_classes),
            "confidence": (_tenths(confidence), _NUM_CONFIDENCES),
        }

    def counts(
        self, values: Integers, lengths: Integers, predicted: Integers, confidence: npt.NDArray[np.floating]
    ) -> dict[str, Counts]:
        """By aspect, the number of tokens or rows in each bin."""
        of_id = _count_ids(values)
        tokens = np.zeros(len(self.token_ids) + 1, np.int64)
        np.add.at(tokens, self.of_tokens(np.arange(len(of_id))), of_id)
        # Where the edges are among the sorted lengths: ten times as fast as where the lengths are among the edges.
        before_edge = np.searchsorted(np.sort(lengths), self.length_edges)
        return {
            "tokens": tokens,
            "lengths": np.diff(before_edge, prepend=0, append=len(lengths)),
            "classes": np.bincount(predicted, minlength=self.num_classes),
            "confidence": np.bincount(_tenths(confidence), minlength=_NUM_CONFIDENCES),
        }


def _tenths(confidence: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """The bin of each: 0 for [0, 0.1), and so on; the last includes 1."""
    bins: npt.NDArray[np.intp] = np.minimum((confidence * _NUM_CONFIDENCES).astype(np.intp), _NUM_CONFIDENCES - 1)
    return bins


def _count_ids(values: Integers) -> Counts:
    """How often each token id occurs, up to the highest."""
    total = np.zeros(1, np.int64)
    for start in range(0, len(values), _TOKENS_AT_ONCE):
        counts = np.bincount(values[start : start + _TOKENS_AT_ONCE], minlength=len(total))
        counts[: len(total)] += total
        total = counts
    return total


def _commonest(values: Integers) -> npt.NDArray[np.int64]:
    """The commonest token ids, ascending."""
    counts = _count_ids(values)
    order = np.argsort(-counts, kind="stable")[:_MOST_TOKENS]
    return np.sort(order[counts[order] > 0])


def _cross(buckets: Integers, bins: Integers, num_bins: int) -> Counts:
    """How often a bucket and a bin meet: (_NUM_BUCKETS, num_bins)."""
    return np.bincount(buckets * num_bins + bins, minlength=_NUM_BUCKETS * num_bins).reshape(_NUM_BUCKETS, num_bins)


def _noise(counts: Counts, num_rows: int) -> list[float]:
    """Sum of the eigenvalues, and of their squares, of num_rows times the covariance of an aspect's shares, divided by
    the shares: the trace and the squared Frobenius norm of that matrix.

    counts: (_NUM_BUCKETS, K), of rows spread over buckets, groups undivided. A share is a ratio of sums over groups,
    whose variance is that of the sum of n_k - n * share_k, for n_k in bin k among n (Cochran 1977, section 2.11); and
    sums over several groups have the covariance that the groups have (the random group method).
    """
    shares = counts.sum(axis=0) / counts.sum()
    scale = np.divide(math.sqrt(num_rows) / counts.sum(), np.sqrt(shares), out=np.zeros(len(shares)), where=shares > 0)
    surplus = (counts - counts.sum(axis=1, keepdims=True) * shares) * scale
    covariance = surplus.T @ surplus
    return [float(covariance.trace()), float((covariance**2).sum())]


def _chance(first: float, second: float) -> float:
    """The quantile of sum(eigenvalue_k * chi-square_k(1)), from the sum of the eigenvalues and of their squares."""
    if not second:
        return 0.0
    freedom = first**2 / second
    spread = 2 / (9 * freedom)
    # Wilson and Hilferty 1931: the cube root of a chi-square is nearly normal.
    return first * (1 - spread + _QUANTILE * math.sqrt(spread)) ** 3


def _jensen_shannon(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence in bits (Lin 1991): unlike the stability index, finite where a bin is empty."""
    middle = (p + q) / 2

    def bits(shares: npt.NDArray[np.float64]) -> float:
        there = shares > 0
        return float((shares[there] * np.log2(shares[there] / middle[there])).sum())

    return max(0.0, (bits(p) + bits(q)) / 2)


def _stability_index(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64], rows_of_p: int, rows_of_q: int) -> float:
    p, q = ((shares * rows + 0.5) / (rows + 0.5 * len(shares)) for shares, rows in ((p, rows_of_p), (q, rows_of_q)))
    return float(((p - q) * np.log(p / q)).sum())


def _digits(number: float) -> float:
    return round(number, 6)

"""Drift: alarms about rows that differ, none about rows that don't, and figures against counts by hand."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from attnlstm.evaluation import drift

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
NUM_CLASSES = 3


def make_rows(
    random: np.random.Generator,
    num_rows: int,
    *,
    first_token: int = 0,
    longest: int = 90,
    class_shares: tuple[float, ...] = (0.6, 0.3, 0.1),
    logit: float = 3.0,
    rows_per_group: int = 1,
) -> Rows:
    """Rows as they come: of 2 to `longest` tokens out of 60, each with a few favourites of its own.

    Rows of a group have the same class, and a class has favourites that the others lack.
    """
    lengths = random.integers(2, longest, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    classes = np.repeat(random.choice(NUM_CLASSES, -(-num_rows // rows_per_group), p=class_shares), rows_per_group)
    classes = classes[:num_rows]
    favourites = random.integers(0, 60, (num_rows, 5)) // (1 + classes[:, None])
    of_token = np.repeat(np.arange(num_rows), lengths)
    values = favourites[of_token, random.integers(0, 5, len(of_token))] + first_token
    logits = random.normal(size=(num_rows, NUM_CLASSES))
    logits[np.arange(num_rows), classes] += logit
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return values.astype(np.uint8), offsets, probabilities.astype(np.float32)


def take(rows: Rows, chosen: np.ndarray) -> Rows:
    values, offsets, probabilities = rows
    parts = [values[:0], *(values[offsets[row] : offsets[row + 1]] for row in chosen)]
    return np.concatenate(parts), np.cumsum([len(part) for part in parts]), probabilities[chosen]


def compared(reference: dict[str, Any], rows: Rows) -> drift.DriftReport:
    observed = drift.Observed(reference)
    count(observed, rows)
    return drift.compare(reference, observed)


def count(observed: drift.Observed, rows: Rows) -> None:
    values, offsets, probabilities = rows
    observed.add(values, offsets, probabilities.argmax(axis=1), probabilities.max(axis=1))


def num_alarms(reference: dict[str, Any], draw: Callable[[], Rows], num_draws: int = 200) -> int:
    return sum(bool(compared(reference, draw()).drifted) for _ in range(num_draws))


@pytest.mark.parametrize("num_rows", [20, 200, 2000])
def test_rows_of_the_same_kind_raise_no_alarm(num_rows: int) -> None:
    random = np.random.default_rng(97)
    reference = drift.reference(*make_rows(random, 1500))

    assert num_alarms(reference, lambda: make_rows(random, num_rows)) <= 1


def test_index_alone_would_raise_alarms_about_few_rows() -> None:
    random = np.random.default_rng(101)
    report = compared(drift.reference(*make_rows(random, 1500)), make_rows(random, 20))

    assert report.shifts["tokens"].psi > 0.2
    assert not report.drifted


@pytest.mark.parametrize("name", ["names", "sms_spam", "splice"])
def test_real_rows_of_the_same_kind_raise_no_alarm(name: str, shared_data: Path) -> None:
    random = np.random.default_rng(103)
    table = pl.read_parquet(shared_data / name / "train.parquet")
    tokens = table["tokens"].to_list()
    labels = table["label"].cast(pl.Categorical).to_physical().to_numpy()
    # Predictions in place of a network's: the label, mostly, with some doubt.
    probabilities = random.dirichlet(np.full(labels.max() + 1, 0.2), len(labels)) * 0.3
    probabilities[np.arange(len(labels)), labels] += 0.7
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in tokens])))
    rows = np.frombuffer(b"".join(tokens), np.uint8), offsets, probabilities
    order = random.permutation(len(tokens))
    reference = drift.reference(*take(rows, order[:500]))

    assert num_alarms(reference, lambda: take(rows, random.choice(order[500:], 60))) <= 2


def test_rows_that_come_in_groups_raise_no_alarm_where_the_reference_knows_groups() -> None:
    random = np.random.default_rng(107)
    rows = make_rows(random, 2000, rows_per_group=10)

    def draw() -> Rows:
        return make_rows(random, 60, rows_per_group=10)

    assert num_alarms(drift.reference(*rows, np.arange(2000) // 10), draw) <= 3
    assert num_alarms(drift.reference(*rows), draw) > 20


@pytest.mark.parametrize("num_rows", [150, 2000])
@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ({"first_token": 9}, "tokens"),
        ({"first_token": 120}, "tokens"),
        ({"longest": 45}, "lengths"),
        ({"longest": 180}, "lengths"),
        ({"class_shares": (0.2, 0.4, 0.4)}, "classes"),
        ({"logit": 1.0}, "confidence"),
    ],
)
def test_rows_of_another_kind_raise_an_alarm(change: dict[str, Any], aspect: str, num_rows: int) -> None:
    random = np.random.default_rng(109)
    reference = drift.reference(*make_rows(random, 1500))

    reports = [compared(reference, make_rows(random, num_rows, **change)) for _ in range(20)]

    assert all(aspect in report.drifted for report in reports)


def test_tokens_and_lengths_that_the_reference_never_had_are_counted_apart() -> None:
    values, offsets = np.array([70_000, 5, 5, 9], np.int32), np.array([0, 1, 4])
    certain = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    reference = drift.reference(values, offsets, certain)
    observed = drift.Observed(reference)
    count(observed, (np.array([9, 6, 0, 90_000, 5], np.int32), np.array([0, 5]), certain[:1]))

    assert reference["tokens"]["ids"] == [5, 9, 70_000]
    assert reference["tokens"]["shares"] == [0.5, 0.25, 0.25, 0]
    assert observed.counts["tokens"].tolist() == [1, 1, 0, 3]
    assert reference["lengths"]["shares"][0] == reference["lengths"]["shares"][-1] == 0
    assert observed.counts["lengths"].tolist()[-1] == 1


def test_bytes_that_only_the_reference_has_are_counted_as_none() -> None:
    one = np.ones((1, 1), np.float32)
    reference = drift.reference(np.arange(40, 256).astype(np.uint8), np.array([0, 216]), one)
    observed = drift.Observed(reference)
    count(observed, (np.array([3, 41, 41], np.uint8), np.array([0, 3]), one))

    assert observed.counts["tokens"].sum() == 3
    assert observed.counts["tokens"][[1, -1]].tolist() == [2, 1]


def test_only_the_commonest_of_many_tokens_have_a_bin() -> None:
    values = np.concatenate((np.arange(1000), np.arange(700, 956)))
    reference = drift.reference(values, np.array([0, len(values)]), np.ones((1, 1)))

    assert reference["tokens"]["ids"] == list(range(700, 956))
    assert reference["tokens"]["shares"][-1] == pytest.approx((1000 - 256) / 1256)


def test_counts_are_the_same_in_pieces_and_merged_after_travel() -> None:
    random = np.random.default_rng(113)
    rows = make_rows(random, 400)
    reference = drift.reference(*rows)
    whole, first, second = (drift.Observed(reference) for _ in range(3))
    count(whole, rows)
    count(first, take(rows, np.arange(150)))
    count(first, take(rows, np.arange(0)))
    count(second, take(rows, np.arange(150, 400)))
    for counts in first.counts.values():
        counts.flags.writeable = False  # as after a journey through shared memory
    first.merge(pickle.loads(pickle.dumps(second)))

    assert first.num_rows == 400
    assert {name: count.tolist() for name, count in first.counts.items()} == {
        name: count.tolist() for name, count in whole.counts.items()
    }
    assert drift.compare(reference, first) == drift.compare(reference, whole)


def test_rows_of_the_reference_are_counted_as_the_reference_counts_them() -> None:
    rows = make_rows(np.random.default_rng(167), 700)
    reference = drift.reference(*rows)
    observed = drift.Observed(reference)
    count(observed, rows)

    for name, counts in observed.counts.items():
        assert (counts / counts.sum()).tolist() == reference[name]["shares"]
    assert all(shift.psi == shift.jensen_shannon == 0 for shift in drift.compare(reference, observed).shifts.values())


def test_counts_of_long_input_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_TOKENS_AT_ONCE", 7)
    random = np.random.default_rng(127)
    values, offsets, probabilities = make_rows(random, 50)
    in_pieces = drift.reference(values, offsets, probabilities)
    monkeypatch.undo()

    assert in_pieces == drift.reference(values, offsets, probabilities)
    assert in_pieces["tokens"]["ids"] == np.unique(values).tolist()
    assert in_pieces["tokens"]["shares"][:-1] == (np.unique(values, return_counts=True)[1] / len(values)).tolist()


def test_noise_of_classes_is_that_of_independent_rows() -> None:
    # A multinomial over C classes: C - 1 eigenvalues, all 1.
    first, second = drift.reference(*make_rows(np.random.default_rng(131), 4000))["classes"]["noise"]

    assert first == pytest.approx(NUM_CLASSES - 1, rel=0.01)
    assert second == pytest.approx(NUM_CLASSES - 1, rel=0.01)


@pytest.mark.parametrize("length", [1, 4])
def test_noise_of_tokens_counts_rows_and_not_their_tokens(length: int) -> None:
    # Rows of one token each, again and again: a multinomial over rows, with one eigenvalue of 1, however long they are.
    values = np.repeat(np.array([3, 5] * 50, np.uint8), length)
    reference = drift.reference(values, np.arange(101) * length, np.ones((100, 1)))

    assert reference["tokens"]["noise"] == pytest.approx([1, 1])


def test_figures_by_hand() -> None:
    # Two classes, half and half, against three of four rows; all rows have the same token, length and confidence.
    probabilities = np.array([[0.8, 0.2], [0.2, 0.8]] * 2, np.float32)
    values, offsets = np.full(4, 7, np.uint8), np.arange(5)
    reference = drift.reference(values, offsets, probabilities)
    observed = drift.Observed(reference)
    count(observed, (values, offsets, probabilities[[0, 0, 0, 1]]))
    report = drift.compare(reference, observed, tolerance=0.05)

    entropy = -0.625 * np.log2(0.625) - 0.375 * np.log2(0.375)
    of_each = (1 + (-0.75 * np.log2(0.75) - 0.25 * np.log2(0.25))) / 2
    shift = report.shifts["classes"]
    assert shift.jensen_shannon == pytest.approx(entropy - of_each, abs=1e-6)
    # (2 + 1/2) / (4 + 1) for both, against (3 + 1/2) / 5 and (1 + 1/2) / 5.
    assert shift.psi == pytest.approx(0.2 * np.log(0.7 / 0.5) + -0.2 * np.log(0.3 / 0.5), abs=1e-6)
    # One eigenvalue of 1; 0.999 of a chi-square with one degree of freedom is 10.83, approximated.
    assert shift.limit == pytest.approx((0.05 + 10.83 * (1 / 4 + 1 / 4)) / (8 * np.log(2)), rel=0.04)
    assert report.shifts["tokens"] == drift.Shift(0.0, 0.0, round(0.05 / (8 * np.log(2)), 6), False)
    assert report.estimated_accuracy == pytest.approx(0.8)
    assert report.num_rows == 4


def test_reference_and_record_are_json() -> None:
    rows = make_rows(np.random.default_rng(139), 80)
    reference = json.loads(json.dumps(drift.reference(*rows), allow_nan=False))
    record = compared(reference, make_rows(np.random.default_rng(149), 80, longest=20)).record()

    assert reference == drift.reference(*rows)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["drifted"] == ["lengths"]
    assert set(record["shifts"]) == set(drift.ASPECTS)


def test_no_rows_are_no_reference_and_no_comparison() -> None:
    nothing = np.zeros(0, np.uint8), np.zeros(1, np.int64), np.zeros((0, 2), np.float32)
    with pytest.raises(ValueError, match=r"N > 0, must agree; got \(0,\), \(1,\), \(0, 2\) and \(0,\)"):
        drift.reference(*nothing)
    with pytest.raises(ValueError, match="there is no scored row"):
        compared(drift.reference(*make_rows(np.random.default_rng(151), 5)), nothing)


def test_rows_that_do_not_fit_together_are_refused() -> None:
    values, offsets, probabilities = make_rows(np.random.default_rng(157), 5)
    for wrong in ((values[:-1], offsets, probabilities), (values, offsets, probabilities[:4])):
        with pytest.raises(ValueError, match="must agree"):
            drift.reference(*wrong)
    with pytest.raises(ValueError, match=r"must agree; .* and \(4,\)"):
        drift.reference(values, offsets, probabilities, np.arange(4))
